"""A recorded search answers for every stricter plan as that plan's own search does, count for count."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.index.test_searcher import Case, Plan, make_case

CASES = 100
WIDE = {"probes": 10**6, "keep": 10**9}


def stricter(rng: np.random.Generator, plan: Plan) -> Plan:
    """A plan at most as generous: what is infinite may stay so."""

    def less(margin: float, typical: float) -> float:
        return float(rng.choice([margin, min(margin, typical), min(margin, typical * rng.random())]))

    stages = tuple((dims, int(rng.integers(1, 400)), less(margin, 0.3), int8) for dims, _, margin, int8 in plan.stages)
    return replace(
        plan,
        probes=int(rng.integers(1, 30)) if rng.random() < 0.5 else plan.probes,
        probe_margin=less(plan.probe_margin, 0.5),
        keep=int(rng.integers(1, 300)) if rng.random() < 0.5 else plan.keep,
        margin=less(plan.margin, 0.3),
        stages=stages[: int(rng.integers(0, len(stages) + 1))] if rng.random() < 0.3 else stages,
    )


def generous(case: Case, margin: float) -> Plan:
    """The case's stages, with wide cuts or none before them."""
    return replace(case.plan, **WIDE, probe_margin=margin, margin=margin)


def recorded(case: Case, module: ModuleType, plan: Plan, k: int, truth: list[Any]) -> tuple[Any, Any]:
    searcher = case.searcher(module)
    starts = np.cumsum([0, *(len(rows) for rows in truth)]).astype(np.int64)
    rows = np.concatenate([np.empty(0, np.int64), *truth])
    return searcher, searcher.record(case.queries, k, plan.on(module), starts, rows, 2)


def truth_of(case: Case, rng: np.random.Generator) -> list[Any]:
    return [rng.permutation(case.n)[: int(rng.integers(0, case.n + 1))].astype(np.int64) for _ in case.queries]


@pytest.mark.parametrize("part", range(4))
def test_replays_count_what_a_search_counts(compiled: ModuleType, twin: ModuleType, part: int) -> None:
    cuts = 0
    for seed in range(part, CASES, 4):
        case, rng = make_case(seed), np.random.default_rng(seed)
        if case.tree is not None or not case.segments:
            continue
        truth, widest = truth_of(case, rng), generous(case, float(rng.choice([np.inf, 1.0, 0.4])))
        searcher, recording = recorded(case, compiled, widest, case.k, truth)
        reference = recorded(case, twin, widest, case.k, truth)[1]
        for _ in range(3):
            plan, k = stricter(rng, widest), int(rng.integers(1, case.k + 1))
            wanted = np.array([rng.integers(0, len(rows) + 1) for rows in truth], np.int64)
            plans = [plan, replace(plan, margin=plan.margin / 2), replace(plan, probes=1)]
            counts, found = recording.replay(np.arange(len(truth)), k, [one.on(compiled) for one in plans], wanted, 2)
            for each, one in zip(counts, plans, strict=True):
                assert np.array_equal(each, searcher.search_batch(case.queries, k, one.on(compiled), 1)[2]), (seed, one)
            expected = reference.replay(np.arange(len(truth)), k, [one.on(twin) for one in plans], wanted, 1)
            assert np.array_equal(counts, expected[0]), (seed, plan)
            assert np.array_equal(found, expected[1]), (seed, plan)
            cuts += int((counts[0, :, 2] < case.n).sum())
    assert cuts > 30


def test_a_narrowed_searcher_answers_and_records_as_the_whole_one(kernel: ModuleType) -> None:
    masked = 0
    for seed in range(2 * CASES):
        case, rng = make_case(seed), np.random.default_rng(seed)
        if all(one["allowed"] is None for one in case.segments):
            continue
        masked += 1
        whole, plan = case.searcher(kernel), case.plan.on(kernel)
        narrowed = whole.narrowed(2)
        answers = [each.search_batch(case.queries, case.k, plan, 1) for each in (narrowed, whole)]
        assert all(np.array_equal(*pair) for pair in zip(*answers, strict=True)), seed
        if case.tree is not None:
            continue
        truth = truth_of(case, rng)
        starts = np.cumsum([0, *(len(rows) for rows in truth)]).astype(np.int64)
        widest = generous(case, 1.0)
        given = case.queries, case.k, widest.on(kernel), starts, np.concatenate(truth), 2
        plans = [stricter(rng, replace(widest, stages=case.plan.stages)) for _ in range(3)]
        plans = [replace(one, stages=(*one.stages, *case.plan.stages[len(one.stages) :])).on(kernel) for one in plans]
        asked = np.arange(len(truth)), case.k, plans, np.full(len(truth), 9), 1
        answers = [each.record(*given).replay(*asked) for each in (narrowed, whole)]
        assert all(np.array_equal(*pair) for pair in zip(*answers, strict=True)), seed
    assert masked > 20
    with pytest.raises(ValueError, match="threads"):
        whole.narrowed(0)


def test_a_part_of_the_queries_is_replayed_alone(kernel: ModuleType) -> None:
    case = make_case(3)
    truth = truth_of(case, np.random.default_rng(0))
    plan, n = generous(case, 1.0), len(truth)
    _, recording = recorded(case, kernel, plan, case.k, truth)
    wanted = np.full(n, 5, np.int64)
    counts, found = recording.replay(np.arange(n), case.k, [plan.on(kernel)], wanted, 1)
    chosen = np.arange(n)[::-2].copy()
    some = recording.replay(chosen, case.k, [plan.on(kernel)], wanted[chosen], 1)
    assert np.array_equal(some[0], counts[:, chosen])
    assert np.array_equal(some[1], found[:, chosen])
    more = recorded(case, kernel, plan, case.k, truth)[1]
    recording.extend(more)
    both = recording.replay(np.arange(2 * n), case.k, [plan.on(kernel)], np.r_[wanted, wanted], 1)
    assert np.array_equal(both[0], np.concatenate([counts, counts], axis=1))
    assert np.array_equal(both[1], np.concatenate([found, found], axis=1))
    with pytest.raises(ValueError, match="queries must be from 0"):
        more.replay(chosen, case.k, [plan.on(kernel)], wanted[chosen], 1)
    with pytest.raises(ValueError, match="wider plan"):
        recording.extend(recorded(case, kernel, generous(case, 0.5), case.k, truth)[1])
    assert len(recording.replay(chosen[:0], case.k, [plan.on(kernel)], wanted[:0], 1)[0][0]) == 0


@pytest.mark.parametrize(
    "change",
    [{"probes": 9}, {"probe_margin": 0.6}, {"keep": 41}, {"margin": 0.6}, {"stages": ((64, 9, 0.1, True),)}],
)
def test_a_wider_plan_than_the_recorded_one_is_refused(kernel: ModuleType, change: dict[str, Any]) -> None:
    case = make_case(3)
    truth = truth_of(case, np.random.default_rng(0))
    plan = Plan(8, 0.5, 40, 0.5)
    _, recording = recorded(case, kernel, plan, 10, truth)
    wanted = np.zeros(len(truth), np.int64)
    recording.replay(np.arange(len(truth)), 10, [plan.on(kernel)], wanted, 1)
    with pytest.raises(ValueError, match="record with a wider plan"):
        recording.replay(np.arange(len(truth)), 10, [plan.on(kernel), replace(plan, **change).on(kernel)], wanted, 1)
    with pytest.raises(ValueError, match="record with a wider plan"):
        recording.replay(np.arange(len(truth)), 11, [plan.on(kernel)], wanted, 1)


def test_what_cannot_be_recorded_or_replayed_is_refused(kernel: ModuleType) -> None:
    case = make_case(3)
    searcher, plan = case.searcher(kernel), Plan().on(kernel)
    n, none = len(case.queries), np.empty(0, np.int64)
    zeros = np.zeros(n + 1, np.int64)
    with pytest.raises(ValueError, match="starts"):
        searcher.record(case.queries, 10, plan, zeros, np.array([1]), 1)
    with pytest.raises(ValueError, match="rows must be from 0"):
        searcher.record(case.queries, 10, plan, np.r_[np.zeros(n, np.int64), 1], np.array([case.n]), 1)
    with pytest.raises(ValueError, match="finite"):
        searcher.record(np.full_like(case.queries, np.nan), 10, plan, zeros, none, 1)
    recording = searcher.record(case.queries, 10, plan, zeros, none, 1)
    with pytest.raises(ValueError, match="queries must be from 0"):
        recording.replay(np.array([n]), 10, [plan], np.zeros(1, np.int64), 1)
    tree = next(made for made in map(make_case, range(400)) if made.tree is not None)
    starts = np.zeros(len(tree.queries) + 1, np.int64)
    with pytest.raises(ValueError, match="router"):
        tree.searcher(kernel).record(tree.queries, 1, Plan().on(kernel), starts, none, 1)
