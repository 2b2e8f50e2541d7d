"""Fronts, speed at a recall, ratios by round, and the choice of builds, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest

from nestvec.benchmarks.fronts import (
    Point,
    Spread,
    best_builds,
    front,
    least,
    near_targets,
    ratio_at,
    speed_at,
    spread,
)

LINE = [Point(0.90, 1000.0), Point(0.94, 250.0), Point(0.98, 125.0)]


def test_the_front_keeps_what_nothing_beats() -> None:
    points = [Point(r, q) for r, q in [(0.5, 100), (0.9, 50), (0.8, 40), (0.9, 45), (1.0, 1)]]
    assert [(one.recall, one.qps) for one in front(points)] == [(0.5, 100), (0.9, 50), (1.0, 1)]
    assert front([]) == []


def test_speed_is_log_linear_in_recall_between_neighbours() -> None:
    assert speed_at(LINE, 0.92) == pytest.approx(math.sqrt(1000 * 250))
    assert speed_at(LINE, 0.95) == pytest.approx(250 * 0.5**0.25)
    assert speed_at(LINE, 0.94) == pytest.approx(250.0)
    assert speed_at([*LINE, Point(0.93, 10.0)], 0.92) == speed_at(LINE, 0.92)


def test_a_recall_under_the_front_has_its_first_speed_and_one_above_has_none() -> None:
    assert speed_at(LINE, 0.5) == 1000.0
    assert speed_at(LINE, 0.99) is None
    assert speed_at([], 0.5) is None


def test_spread_is_the_median_and_the_extremes_of_what_is_known() -> None:
    assert spread([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0, 2)
    assert spread([None]) is None


def test_ratios_pair_within_a_round_so_that_drift_cancels() -> None:
    fast = {0: [Point(0.95, 200.0)], 1: [Point(0.95, 20.0)], 2: [Point(0.95, 5.0)]}
    slow = {0: [Point(0.95, 100.0)], 1: [Point(0.95, 10.0)]}
    assert ratio_at(fast, slow, 0.95) == Spread(2.0, 2.0, 2.0, 2)
    assert ratio_at(fast, slow, 0.99) is None
    assert least([None, Spread(2.0, 1.0, 3.0, 5), Spread(1.5, 1.0, 9.0, 5)]) == Spread(1.5, 1.0, 9.0, 5)
    assert least([None]) is None


def test_points_near_a_target_are_its_neighbours_and_one_more_above() -> None:
    points = [Point(r / 100, 200 - r) for r in range(80, 100)]
    assert [one.recall for one in near_targets(points, (0.9,))] == [0.89, 0.90, 0.91]
    assert [one.recall for one in near_targets(points, (0.995,))] == [0.99]
    assert [one.recall for one in near_targets(points, (0.5,))] == [0.80, 0.81]
    assert near_targets([], (0.9,)) == []


def test_the_best_builds_cover_each_others_weakness() -> None:
    low = [[Point(0.91, 1000.0)]]
    high = [[Point(0.995, 100.0)]]
    middling = [[Point(0.91, 500.0), Point(0.995, 50.0)]]
    targets = (0.9, 0.99)
    assert best_builds({0: low, 1: middling, 2: high}, 2, targets) == (0, 2)
    assert best_builds({0: low, 1: middling, 2: high}, 1, targets) == (1,)
    assert best_builds({0: low, 1: high}, 2, targets) == (0, 1)
    assert best_builds({}, 2, targets) == ()
