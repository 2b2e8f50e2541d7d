"""Why a search is run as it is, and what each step of it did: data, for others to draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nestvec.engine.planner import Choice
from nestvec.engine.record import FilterReport, Hits
from nestvec.index.work import Work

_NEAR_POINTS = 2  # on either side of the chosen one


@dataclass(frozen=True)
class Explanation:
    """`choice`: the plan and why; `rows`: live rows; `hits` and `work`: None where the search was not run."""

    k: int
    rows: int
    filter: FilterReport
    choice: Choice
    work: Work | None = None
    hits: Hits | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the hits' payloads."""
        return {
            "k": self.k,
            "rows": self.rows,
            "filter": asdict(self.filter),
            "choice": choice_json(self.choice),
            "work": None if self.work is None else asdict(self.work),
            "hits": None if self.hits is None else [{"id": hit.id, "score": hit.score} for hit in self.hits],
        }


def choice_json(choice: Choice) -> dict[str, Any]:
    """A choice as plain JSON types, with the operating points close to the chosen one."""
    return {
        "plan": choice.plan.to_json(),
        "reason": choice.reason,
        "target": choice.target,
        "estimate": choice.estimate,
        "micros": choice.micros,
        "bytes": choice.bytes,
        "basis": None if choice.basis is None else asdict(choice.basis),
        "stale": choice.stale,
        "considered": [point.to_json() for point in close_points(choice)],
    }


def close_points(choice: Choice) -> list[Any]:
    """The operating points just more careful and just cheaper than the chosen one, with it between them."""
    points = list(choice.considered)
    at = next((i for i, point in enumerate(points) if point.plan == choice.plan), None)
    if at is None:
        return points[: 2 * _NEAR_POINTS + 1]
    return points[max(0, at - _NEAR_POINTS) : at + _NEAR_POINTS + 1]
