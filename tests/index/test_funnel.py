"""The funnel: bands are added, never read twice, and the last score is the exact one."""

from __future__ import annotations

import numpy as np
import pytest

from nestvec.errors import InvalidInput
from nestvec.index.funnel import Stage, run_funnel, search
from nestvec.index.metric import Metric
from nestvec.index.scan import exact_search
from nestvec.index.work import Work

DIMS = 48


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((900, DIMS)) / (1.0 + np.arange(DIMS))).astype(np.float32)


@pytest.fixture(scope="module")
def query(vectors: np.ndarray) -> np.ndarray:
    return (vectors[17] + vectors[400]).astype(np.float32)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_each_stage_keeps_the_best_prefix_scores(vectors: np.ndarray, query: np.ndarray, metric: Metric) -> None:
    rows = np.arange(900)[::-1]
    found, scores = run_funnel(vectors, rows, query, (Stage(8, 60), Stage(20, 15)), 5, metric=metric, work=Work())
    alive = np.sort(rows)
    for dims, keep in ((8, 60), (20, 15), (DIMS, 5)):
        prefix = np.ascontiguousarray(vectors[alive, :dims])
        alive = alive[exact_search(prefix, query[:dims], keep, metric=metric)[0]]
        alive = np.sort(alive) if dims < DIMS else alive
    np.testing.assert_array_equal(found, alive)
    full = exact_search(vectors, query, 900, metric=metric)
    exact = dict(zip(full[0].tolist(), full[1].tolist(), strict=True))
    assert [exact[row] for row in found.tolist()] == scores.tolist()


def test_cosine_stages_divide_by_the_prefix_norm(vectors: np.ndarray, query: np.ndarray) -> None:
    stages = (Stage(4, 40), Stage(12, 9))
    rows, _ = run_funnel(vectors, np.arange(900), query, stages, 9, metric="dot", stage_metric="cosine", work=Work())
    alive = np.arange(900)
    for dims, keep in ((4, 40), (12, 9)):
        prefix = vectors[alive, :dims].astype(np.float64)
        cosine = (prefix @ query[:dims]) / np.linalg.norm(prefix, axis=1)
        alive = alive[np.lexsort((alive, -cosine))[:keep]]
    assert set(rows.tolist()) == set(alive.tolist())


def test_an_empty_prefix_has_cosine_zero(vectors: np.ndarray, query: np.ndarray) -> None:
    held = vectors.copy()
    held[3, :8] = 0.0
    rows, _ = run_funnel(
        held, np.arange(900), query, (Stage(8, 900),), 900, metric="dot", stage_metric="cosine", work=Work()
    )
    assert 3 in rows


def test_no_stages_score_every_row_in_full(vectors: np.ndarray, query: np.ndarray) -> None:
    rows, scores = run_funnel(vectors, np.arange(900), query, (), 12, metric="dot", work=Work())
    wanted = exact_search(vectors, query, 12, metric="dot")
    np.testing.assert_array_equal(rows, wanted[0])
    np.testing.assert_array_equal(scores, wanted[1])


def test_work_counts_every_band_once(vectors: np.ndarray, query: np.ndarray) -> None:
    work = Work()
    run_funnel(
        vectors.astype(np.float16), np.arange(500), query, (Stage(8, 60), Stage(20, 15)), 5, metric="dot", work=work
    )
    assert work.rows == 500
    assert work.bytes == 2 * (500 * 8 + 60 * 12 + 15 * 28)
    assert [(stage["dims"], stage["in"], stage["out"]) for stage in work.stages] == [
        (8, 500, 60),
        (20, 60, 15),
        (DIMS, 15, 5),
    ]


def test_work_of_two_queries_adds_up(vectors: np.ndarray, query: np.ndarray) -> None:
    one, total = Work(), Work()
    search(vectors, None, None, query, 3, metric="dot", work=one)
    total.add(one)
    total.add(one)
    assert (total.rows, total.bytes) == (2 * one.rows, 2 * one.bytes)
    assert total.micros["exact"] == pytest.approx(2 * one.micros["exact"])


@pytest.mark.parametrize("stages", [(Stage(8, 5), Stage(8, 5)), (Stage(9, 5), Stage(8, 5)), (Stage(DIMS + 1, 5),)])
def test_stages_must_ascend_within_the_vector(
    vectors: np.ndarray, query: np.ndarray, stages: tuple[Stage, ...]
) -> None:
    with pytest.raises(InvalidInput, match=rf"strictly ascending and within 1\.\.{DIMS}, got \[{stages[0].dims}"):
        run_funnel(vectors, np.arange(9), query, stages, 3, metric="dot", work=Work())


def test_bad_stages_and_metrics_name_the_bound(vectors: np.ndarray, query: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="keep must be >= 1, got 0"):
        Stage(8, 0)
    with pytest.raises(InvalidInput, match="dims must be >= 1, got 0"):
        Stage(0, 8)
    with pytest.raises(InvalidInput, match="needs metric 'dot', got 'l2'"):
        run_funnel(vectors, np.arange(9), query, (), 3, metric="l2", stage_metric="cosine", work=Work())
    with pytest.raises(InvalidInput, match="k must be >= 1, got 0"):
        run_funnel(vectors, np.arange(9), query, (), 0, metric="dot", work=Work())
