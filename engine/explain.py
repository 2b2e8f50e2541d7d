"""Why a search is run as it is, and what each step of it did: data, for others to draw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from nestvec.engine.calibration.points import OperatingPoint
from nestvec.engine.plan import Plan
from nestvec.engine.planner import Basis, Choice
from nestvec.engine.record import FilterReport, Hit, Hits
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
        """Plain JSON types: hits without payloads, and of the operating points those close to the chosen one."""
        return {
            "k": self.k,
            "rows": self.rows,
            "filter": asdict(self.filter),
            "choice": choice_json(self.choice),
            "work": None if self.work is None else asdict(self.work),
            "hits": None if self.hits is None else [{"id": hit.id, "score": hit.score} for hit in self.hits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Explanation:
        """The explanation that `to_json` wrote."""
        choice, filter = _choice_from(data["choice"]), FilterReport(**data["filter"])
        work = None if data["work"] is None else Work(**data["work"])
        hits = None
        if work is not None and data["hits"] is not None:
            found = [Hit(hit["id"], hit["score"]) for hit in data["hits"]]
            generation = None if choice.basis is None else choice.basis.generation
            hits = Hits(found, choice.plan, work, generation, filter, choice)
        return cls(data["k"], data["rows"], filter, choice, work, hits)


def choice_json(choice: Choice) -> dict[str, Any]:
    """A choice as plain JSON types, with the operating points close to the chosen one."""
    near = close_points(choice)
    return {
        "plan": near.plan.to_json(),
        "reason": near.reason,
        "target": near.target,
        "estimate": near.estimate,
        "micros": near.micros,
        "bytes": near.bytes,
        "basis": None if near.basis is None else basis_json(near.basis),
        "considered": [point.to_json() for point in near.considered],
        "at": near.at,
        "stale": near.stale,
        "k": near.k,
    }


def recall_json(choice: Choice) -> dict[str, Any]:
    """What a choice promises, as plain JSON types: the words of REST."""
    basis = None if choice.basis is None else basis_json(choice.basis)
    return {
        "k": choice.k,
        "target": choice.target,
        "estimate": choice.estimate,
        "basis": basis,
        "stale": choice.stale,
        "reason": choice.reason,
    }


def basis_json(basis: Basis) -> dict[str, Any]:
    """What an estimate rests on, and its age."""
    return {
        "ks": list(basis.ks),
        "selectivities": list(basis.selectivities),
        "queries": basis.queries,
        "source": basis.source,
        "created": basis.created,
        "delta": basis.delta,
        "generation": basis.generation,
        "age_seconds": age_seconds(basis.created),
    }


def basis_from(data: Mapping[str, Any]) -> Basis:
    """The basis that `basis_json` wrote."""
    return Basis(
        tuple(data["ks"]),
        tuple(data["selectivities"]),
        data["queries"],
        data["source"],
        data["created"],
        data["delta"],
        data["generation"],
    )


def age_seconds(created: str) -> int:
    """How long ago that was, ISO 8601 in UTC; 0 where clocks disagree."""
    return max(0, int(time.time() - datetime.fromisoformat(created).timestamp()))


def close_points(choice: Choice) -> Choice:
    """The same, with only those operating points considered that lie close to the chosen one; the first few where none
    was chosen."""
    first = max(0, (choice.at or 0) - _NEAR_POINTS)
    considered = choice.considered[first : (choice.at or 0) + _NEAR_POINTS + 1]
    return replace(choice, considered=considered, at=None if choice.at is None else choice.at - first)


def neighbours(choice: Choice) -> tuple[OperatingPoint | None, OperatingPoint | None]:
    """The operating points just more careful and just cheaper than the chosen one; None where there is none.

    Where none was chosen, the most careful one is what would have been cheaper.
    """
    points, at = choice.considered, choice.at
    if at is None:
        return None, points[0] if points else None
    return points[at - 1] if at else None, points[at + 1] if at + 1 < len(points) else None


def _choice_from(data: Mapping[str, Any]) -> Choice:
    return Choice(
        Plan.from_json(data["plan"]),
        data["reason"],
        data["target"],
        data["estimate"],
        data["micros"],
        data["bytes"],
        None if data["basis"] is None else basis_from(data["basis"]),
        tuple(OperatingPoint.from_json(point) for point in data["considered"]),
        data["at"],
        data["stale"],
        data["k"],
    )
