"""Paths of plans, and what a sample says about the mean."""

from __future__ import annotations

import numpy as np
import pytest

from nestvec.engine.calibration.bounds import binomial_lower_bound, lower_bound
from nestvec.engine.calibration.path import Step, descend, shrunk_together, spread_out


@pytest.mark.parametrize("mean", [0.6, 0.9, 0.98])
@pytest.mark.parametrize("kind", ["hits of one", "hits of ten"])
def test_a_bound_holds_as_often_as_it_says_and_is_not_far_off(mean: float, kind: str) -> None:
    rng = np.random.default_rng(5)
    draws = [
        rng.binomial(10, mean, 300) / 10 if kind == "hits of ten" else rng.binomial(1, mean, 300).astype(float)
        for _ in range(400)
    ]
    bounds = np.array([lower_bound(values, 0.05) for values in draws])
    assert (bounds <= mean).mean() >= 0.95 - 0.022  # two standard errors of 400 trials
    spread = np.sqrt(mean * (1 - mean) / (300 * (10 if kind == "hits of ten" else 1)))
    assert np.median(mean - bounds) < 3 * spread + 0.012


def test_a_bound_of_nothing_or_of_perfection_stays_below_one() -> None:
    assert lower_bound(np.empty(0), 0.05) == 0
    assert 0.98 < lower_bound(np.ones(300), 0.05) < 1
    assert lower_bound(np.zeros(50), 0.05) == 0


def test_a_path_gives_up_what_costs_least() -> None:
    """Recall and cost as of two margins, one of which buys much more recall per microsecond."""

    def run(margins: tuple[float, ...]) -> Step:
        good, poor = margins
        return Step(margins, 1 - 0.5 * np.exp(-30 * good) - 0.01 * np.exp(-30 * poor), 10 + 100 * good + 900 * poor)

    path = descend(run, shrunk_together(lambda margins: run(margins).recall, (0.4, 0.4), filtered=False), 0.6)
    assert path[0].margins[0] == path[0].margins[1]
    assert path[-1].recall <= 0.62
    costs = [step.micros for step in path]
    assert costs == sorted(costs, reverse=True)
    at = next(step for step in path if step.recall < 0.99)
    assert at.margins[1] < 0.1 < at.margins[0]
    chosen = spread_out(path, 0.02)
    assert chosen[0] == path[0].margins
    assert len(chosen) == len(set(chosen)) > 8


def test_cuts_shrink_alone_where_lists_from_far_off_are_needed() -> None:
    opened = shrunk_together(lambda margins: min(1.0, margins[0] / 0.3), (0.4, 0.2, 0.1), filtered=True)
    (_, last) = opened
    assert 0.3 <= last[0] < 0.36
    assert max(last[1:]) < 0.01


def test_a_path_ends_where_nothing_is_saved_any_more() -> None:
    costs = (100.0, 60.0, 40.0, 39.5, 39.0, 80.0)
    path = [Step((0.5 - i / 20, 0.1), 1 - i / 20, micros) for i, micros in enumerate(costs)]
    assert spread_out(path, 0.02)[-1] == path[2].margins

    def run(margins: tuple[float, ...]) -> Step:
        """Below a margin of .1 too few rows are found, and asking again is dear."""
        return Step(margins, min(1.0, 0.9 + margins[0] / 5), 100 * margins[0] if margins[0] > 0.1 else 500.0)

    assert sum(step.micros == 500 for step in descend(run, [(0.4,)], 0.5)) == 1


@pytest.mark.parametrize("mean", [0.6, 0.95, 0.98])
def test_the_bound_of_zeros_and_ones_holds_and_is_the_higher_one(mean: float) -> None:
    """By every sum's probability, not by draws; beside the bound that supposes nothing, in a random order."""
    rng, n = np.random.default_rng(6), 300
    sums = np.arange(n + 1)
    logs = np.cumsum(np.log(np.maximum(sums, 1)))
    chances = np.exp(logs[n] - logs[sums] - logs[n - sums] + sums * np.log(mean) + (n - sums) * np.log1p(-mean))
    bounds = np.array([binomial_lower_bound((sums[:n] < ones).astype(float), 0.05) for ones in sums])
    assert (np.diff(bounds) > 0).all()
    assert 0.95 <= chances[bounds <= mean].sum() < 0.99
    likely = [(ones, rng.permutation(sums[:n] < ones).astype(float)) for ones in sums[chances > 0.01]]
    assert all(bounds[ones] == binomial_lower_bound(values, 0.05) for ones, values in likely)
    assert np.mean([bounds[ones] - lower_bound(values, 0.05) for ones, values in likely]) > 0
    assert binomial_lower_bound(np.empty(0), 0.05) == 0


def test_a_lucky_beginning_does_not_lift_a_floor() -> None:
    values = np.ones(872)
    values[-8:] = 0
    assert lower_bound(values, 0.05) <= values.mean() - values.std() / np.sqrt(872)
    assert lower_bound(values, 0.05) == pytest.approx(lower_bound(values[::-1], 0.05), abs=0.012)
