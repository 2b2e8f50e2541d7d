"""The planner: from what a user asks for to the cheapest plan that calibration says will give it.

The promise is Learn-then-Test's (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: points are tried
from the most careful on, and the first whose floor misses the target ends the walk. Then, with probability at least
1 - delta over the calibration queries, the chosen plan's mean recall reaches the target on queries that are
exchangeable with them. Nothing is promised about any single query, nor about queries of another kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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

    `micros` and `bytes` are expected means per query. `considered`: the operating points that decided, most careful
    first, of which `at` is the one chosen (None: none of them). `stale`: why the estimate should not be trusted. `k`:
    of how many hits target and estimate speak; more than were asked for where the vectors' side finds candidates.
    """

    plan: Plan
    reason: str
    target: float | None = None
    estimate: float | None = None
    micros: float | None = None
    bytes: float | None = None
    basis: Basis | None = None
    considered: tuple[OperatingPoint, ...] = ()
    at: int | None = None
    stale: str | None = None
    k: int | None = None


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


def choose(calibration: Calibration, goal: Goal, scope: Scope) -> Choice:
    """The cheapest plan that meets the goal."""
    budget = goal.budget_ms is not None or goal.budget_bytes is not None
    target = None if budget else goal.recall or DEFAULT_RECALL
    exact = _exact(calibration, scope, target)
    corners = _corners(calibration, scope)
    if not corners:
        return exact
    found = []
    for corner in corners:
        at = _pick(corner, goal, target)
        if at is None:
            reason = f"no calibrated plan is sure to reach recall {target:g}: all that match is scanned"
            return replace(exact, reason=reason, considered=corner.points)
        found.append((corner, at))
    points = [corner.points[at] for corner, at in found]
    # Several corners: the costliest of their points stands for them.
    decides, at = max(found, key=lambda each: each[0].points[each[1]].micros)
    cost = decides.points[at].micros
    if exact.micros is not None and exact.micros <= cost:
        reason = "scanning the matching rows is cheaper than any plan"
        return replace(exact, reason=reason, considered=decides.points, at=at)
    if budget and _within(exact, goal):
        return replace(exact, reason="scanning the matching rows keeps within the budget", considered=decides.points)
    return Choice(
        _most_careful([point.plan for point in points]),
        _reason(goal, target, points),
        target,
        min(point.recall for point in points),
        cost,
        max(point.bytes for point in points),
        _basis(calibration, corners),
        decides.points,
        at,
        calibration.stale_at(scope.rows),
        scope.k,
    )


def without_calibration(plan: Plan, goal: Goal, k: int) -> Choice:
    """What to do where nothing was measured: a recall that is asked for is certain only of the exact scan."""
    if plan.route == "exact":
        return Choice(plan, "few rows: they are all scanned", goal.recall, 1.0, k=k)
    if goal.recall is not None:
        reason = "not calibrated: only the exact scan is sure to reach a recall"
        return Choice(EXACT, reason, goal.recall, 1.0, k=k)
    return Choice(plan, "not calibrated: the default plan, which promises nothing", k=k)


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


def _pick(frontier: Frontier, goal: Goal, target: float | None) -> int | None:
    """The cheapest point that is sure to meet a target; for a budget the most careful within it, or else the cheapest.

    Its position; None where no point is sure.
    """
    points = frontier.points
    if target is None:
        return next((i for i, point in enumerate(points) if _within(point, goal)), len(points) - 1)
    # The walk ends at the first point that is not sure: a later one may be so by luck.
    sure = next((i for i, point in enumerate(points) if point.floor < target), len(points))
    return min(range(sure), key=lambda i: points[i].micros, default=None)


def _within(cost: OperatingPoint | Choice, goal: Goal) -> bool:
    if goal.budget_ms is not None:
        return cost.micros is not None and cost.micros <= 1000 * goal.budget_ms
    return goal.budget_bytes is not None and cost.bytes is not None and cost.bytes <= goal.budget_bytes


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


def _exact(calibration: Calibration, scope: Scope, target: float | None) -> Choice:
    micros = calibration.exact_micros * scope.matching
    reason = f"{scope.matching:,} rows match: they are all scanned"
    return Choice(EXACT, reason, target, 1.0, micros, float(scope.matching * scope.row_bytes), k=scope.k)


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
