"""The planner: from what a user asks for to the cheapest plan that calibration says will give it.

The promise is Learn-then-Test's (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: points are tried
from the most careful on, and the first whose floor misses the target ends the walk. Then, with probability at least
1 - delta over the calibration queries, the chosen plan's mean recall reaches the target on queries that are
exchangeable with them. Nothing is promised about any single query, nor about queries of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nestvec.engine.calibration.points import Calibration, Frontier, OperatingPoint
from nestvec.engine.plan import Plan
from nestvec.errors import InvalidInput
from nestvec.index.funnel import Cut, Stage

DEFAULT_RECALL = 0.95
_NEAR = 1.15  # a selectivity within this ratio of a measured one counts as that one
EXACT = Plan("exact")


@dataclass(frozen=True)
class Goal:
    """What the user asks for: a mean recall, or a budget per query; none of them: the collection's default recall."""

    recall: float | None = None
    budget_ms: float | None = None
    budget_bytes: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("recall", "budget_ms", "budget_bytes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidInput(f"give one of recall, budget_ms and budget_bytes; got {' and '.join(given)}")
        recall = self.recall
        if recall is not None and not (_is_number(recall) and 0 < recall <= 1):
            raise InvalidInput(f"recall must be a number above 0 and at most 1, got {recall!r}")
        for name in ("budget_ms", "budget_bytes"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise InvalidInput(f"{name} must be a number above 0, got {value!r}")


NO_GOAL = Goal()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Basis:
    """What an estimate rests on: the frontiers used, by k and selectivity, and the calibration that they are of."""

    ks: tuple[int, ...]
    selectivities: tuple[float, ...]
    queries: int
    source: str
    created: str
    delta: float
    generation: int


@dataclass(frozen=True)
class Choice:
    """A plan and why. `estimate`: its mean recall as calibrated (1 for the exact scan); None: not known.

    `micros` and `bytes` are expected means per query; `considered`: the points looked at, most careful first.
    `stale`: why the estimate should not be trusted.
    """

    plan: Plan
    reason: str
    target: float | None = None
    estimate: float | None = None
    micros: float | None = None
    bytes: float | None = None
    basis: Basis | None = None
    considered: tuple[OperatingPoint, ...] = ()
    stale: str | None = None


@dataclass(frozen=True)
class Scope:
    """What is searched: of `rows` live rows the `matching` that pass the filter, with vectors of `row_bytes`."""

    k: int
    matching: int
    rows: int
    row_bytes: int

    @property
    def selectivity(self) -> float:
        """Share of the rows that pass the filter."""
        return self.matching / self.rows if self.rows else 1.0


def choose(calibration: Calibration, goal: Goal, scope: Scope, default_recall: float = DEFAULT_RECALL) -> Choice:
    """The cheapest plan that meets the goal."""
    exact = _exact(calibration, scope, goal)
    corners = _corners(calibration, scope)
    if not corners:
        return exact
    picked = [_pick(each, goal, default_recall) for each in corners]
    target = None if goal.budget_ms or goal.budget_bytes else goal.recall or default_recall
    considered = tuple(point for each in corners for point in each.points)
    found = [point for point in picked if point is not None]
    if len(found) < len(picked):
        return _because(exact, f"no calibrated plan is sure to reach recall {target:g}", target, considered)
    cost = max(point.micros for point in found)
    if target is not None and exact.micros is not None and exact.micros <= cost:
        return _because(exact, "scanning the matching rows is cheaper than any plan", target, considered)
    return Choice(
        _most_careful([point.plan for point in found]),
        _reason(goal, target, found),
        target,
        min(point.recall for point in found),
        cost,
        max(point.bytes for point in found),
        _basis(calibration, corners),
        considered,
        calibration.stale,
    )


def without_calibration(plan: Plan, goal: Goal) -> Choice:
    """What to do where nothing was measured: a recall that is asked for is certain only of the exact scan."""
    if goal.recall is not None and plan.route != "exact":
        return Choice(EXACT, "not calibrated: only the exact scan is sure to reach a recall", goal.recall, 1.0)
    if plan.route == "exact":
        return Choice(plan, "few rows: they are all scanned", goal.recall, 1.0)
    return Choice(plan, "not calibrated: the default plan, which promises nothing")


def _corners(calibration: Calibration, scope: Scope) -> list[Frontier]:
    """The frontiers around a k and a selectivity; none where calibration left that corner to the exact scan."""
    corners = []
    for k in _around(calibration.ks, scope.k):
        frontiers = calibration.at(k)
        shares = sorted(each.selectivity for each in frontiers)
        below = [share for share in shares if share <= scope.selectivity * _NEAR]
        if not below:
            return []
        above = [share for share in shares if share >= scope.selectivity / _NEAR]
        chosen = {below[-1], above[0] if above else below[-1]}
        corners += [each for each in frontiers if each.selectivity in chosen and each.points]
    return corners


def _around(values: list[int], wanted: int) -> list[int]:
    """The closest value not above and the closest not below; fewer at an end, none where `wanted` is beyond both."""
    above = [value for value in values if value >= wanted]
    below = [value for value in values if value <= wanted]
    if not above:
        return []
    return sorted({above[0], below[-1] if below else above[0]})


def _pick(frontier: Frontier, goal: Goal, default_recall: float) -> OperatingPoint | None:
    """The cheapest point that is sure to meet a recall; the most careful within a budget, or else the cheapest."""
    points = frontier.points
    if goal.budget_ms is not None or goal.budget_bytes is not None:
        within = [point for point in points if _within(point, goal)]
        return within[0] if within else points[-1]
    picked = None
    for point in points:
        if point.floor < (goal.recall or default_recall):
            break
        picked = point
    return picked


def _within(point: OperatingPoint, goal: Goal) -> bool:
    if goal.budget_ms is not None:
        return point.micros <= 1000 * goal.budget_ms
    return goal.budget_bytes is not None and point.bytes <= goal.budget_bytes


def _most_careful(plans: list[Plan]) -> Plan:
    """One plan at least as careful as each of several of the same shape, where they have one."""
    first = plans[0]
    if len(plans) == 1 or any(_shape(plan) != _shape(first) for plan in plans):
        return plans[-1]
    stages = tuple(
        Stage(each[0].dims, max(s.keep for s in each), max(s.margin for s in each), each[0].rows)
        for each in zip(*(plan.stages for plan in plans), strict=True)
    )
    cuts = [plan.shortlist for plan in plans if plan.shortlist is not None]
    return Plan(
        first.route,
        max(plan.probes for plan in plans),
        stages,
        first.stage_metric,
        max(plan.probe_margin for plan in plans),
        Cut(max(cut.keep for cut in cuts), max(cut.margin for cut in cuts)) if cuts else None,
    )


def _shape(plan: Plan) -> tuple[object, ...]:
    return plan.route, plan.shortlist is None, *((stage.dims, stage.rows) for stage in plan.stages)


def _exact(calibration: Calibration, scope: Scope, goal: Goal) -> Choice:
    micros = calibration.exact_micros * scope.matching
    reason = f"{scope.matching:,} rows match: they are all scanned"
    return Choice(EXACT, reason, goal.recall, 1.0, micros, float(scope.matching * scope.row_bytes))


def _because(exact: Choice, reason: str, target: float | None, considered: Iterable[OperatingPoint]) -> Choice:
    return Choice(EXACT, reason, target, 1.0, exact.micros, exact.bytes, None, tuple(considered))


def _reason(goal: Goal, target: float | None, found: list[OperatingPoint]) -> str:
    if target is not None:
        return f"the cheapest plan whose recall is at least {target:g} for sure"
    if all(_within(point, goal) for point in found):
        return "the most careful plan within the budget"
    return "no plan keeps within the budget: this is the cheapest"


def _basis(calibration: Calibration, corners: list[Frontier]) -> Basis:
    return Basis(
        tuple(sorted({each.k for each in corners})),
        tuple(sorted({each.selectivity for each in corners}, reverse=True)),
        min(each.queries for each in corners),
        calibration.source,
        calibration.created,
        calibration.delta,
        calibration.generation,
    )
