"""From measured points to comparisons: Pareto fronts, speed at a recall, ratios paired by round.

A shared machine's speed drifts by more than two systems differ, so that a ratio is taken within one round, in which
the systems were asked in turn; its median and spread over the rounds are what is reported.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

TARGETS = (0.90, 0.95, 0.97, 0.99)


@dataclass(frozen=True, order=True)
class Point:
    """A setting's recall and queries per second; `key` says which setting."""

    recall: float
    qps: float
    key: int = -1


@dataclass(frozen=True)
class Spread:
    """The median of several values, and their extremes."""

    median: float
    low: float
    high: float
    count: int


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both recall and speed, by rising recall."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.qps, -each.recall)):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best


def speed_at(points: Iterable[Point], recall: float) -> float | None:
    """Queries per second at `recall`, log-linear in recall between neighbours of the front.

    None where no point reaches it. Under the front's lowest recall the lowest point's speed: it reaches the target.
    """
    below: Point | None = None
    for point in front(points):
        if point.recall >= recall:
            if below is None:
                return point.qps
            share = (recall - below.recall) / (point.recall - below.recall)
            return math.exp((1 - share) * math.log(below.qps) + share * math.log(point.qps))
        below = point
    return None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and extremes of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


Rounds = Mapping[int, Sequence[Point]]
"""Points of one system by round."""


def ratio_at(subject: Rounds, other: Rounds, recall: float) -> Spread | None:
    """Speed of `subject` over that of `other` at `recall`, within each round that has both."""
    pairs = [(speed_at(points, recall), speed_at(other.get(number, ()), recall)) for number, points in subject.items()]
    return spread(mine / theirs if mine is not None and theirs is not None else None for mine, theirs in pairs)


def least(spreads: Iterable[Spread | None]) -> Spread | None:
    """The one with the lowest median: the ratio to the best peer."""
    return min((one for one in spreads if one is not None), key=lambda one: one.median, default=None)


def near_targets(points: Iterable[Point], targets: Sequence[float] = TARGETS) -> list[Point]:
    """The points of the front that decide the speed at the targets, and one more above each, by rising recall.

    Recall moves a little from build to build: the point above keeps a target within reach.
    """
    best = front(points)
    chosen: set[int] = set()
    for target in targets:
        above = next((place for place, point in enumerate(best) if point.recall >= target), len(best))
        chosen.update(range(max(0, above - 1), min(len(best), above + 2)))
    return [best[place] for place in sorted(chosen)]


def best_builds(
    fronts: Mapping[int, Sequence[Sequence[Point]]], most: int, targets: Sequence[float] = TARGETS
) -> tuple[int, ...]:
    """The at most `most` builds that together lose least speed at the targets, over all contexts.

    `fronts` holds, per build, its points in each context (contexts in one order for all builds). A target out of
    reach counts as a thousandth of the best speed there.
    """
    builds = sorted(fronts)
    if len(builds) <= most:
        return tuple(builds)
    contexts = range(len(next(iter(fronts.values()))))
    speeds = {b: [speed_at(fronts[b][context], t) for context in contexts for t in targets] for b in builds}
    best = [max((speeds[b][place] or 0 for b in builds), default=0) for place in range(len(speeds[builds[0]]))]

    def loss(chosen: tuple[int, ...]) -> float:
        kept = [max(speeds[b][place] or 0 for b in chosen) for place in range(len(best))]
        return sum(math.log(top / max(one, top / 1000)) for top, one in zip(best, kept, strict=True) if top)

    return min(combinations(builds, most), key=loss)
