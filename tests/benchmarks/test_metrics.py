"""Truth and recall against plain definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nestvec.benchmarks import metrics
from nestvec.benchmarks.data import DataSet, load
from nestvec.errors import InvalidInput


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
def test_exact_neighbours_equal_a_full_sort(metric: metrics.Metric) -> None:
    rng = np.random.default_rng(1)
    base, queries = rng.standard_normal((500, 8), dtype=np.float32), rng.standard_normal((9, 8), dtype=np.float32)
    base[100:110] = base[0]  # ties go to the lower row
    everything = np.arange(500)
    for query, rows in zip(queries, metrics.exact_neighbours(base, queries, 12, metric), strict=True):
        scores = metrics.score_rows(base, query, everything, metric)
        np.testing.assert_array_equal(rows, np.lexsort((everything, -scores))[:12])


def test_recall_counts_ties_and_ignores_repeats_and_gaps() -> None:
    base = np.array([[1.0], [1.0], [0.5], [0.1]], dtype=np.float32)
    query = np.array([[1.0]], dtype=np.float32)
    judge = metrics.Judge(base, query, np.array([[0, 1, 2]]), "dot")
    assert judge.recall(np.array([[1]])) == 1.0
    assert judge.recall(np.array([[0, 0]])) == 0.5
    assert judge.recall(np.array([[1, -1]])) == 0.5
    assert judge.recall(np.array([[3, 2]])) == 0.0
    assert judge.recall(np.array([[2, 3, 0]])) == pytest.approx(2 / 3)
    np.testing.assert_array_equal(judge.kth_scores(3), [0.5])


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
def test_recall_equals_scoring_every_answer(metric: metrics.Metric) -> None:
    rng = np.random.default_rng(2)
    base, queries = rng.standard_normal((60, 4), dtype=np.float32), rng.standard_normal((20, 4), dtype=np.float32)
    judge = metrics.Judge(base, queries, metrics.exact_neighbours(base, queries, 9, metric), metric)
    found = rng.integers(-1, 60, (20, 5))
    hits = 0
    for query, rows, bar in zip(queries, found, judge.kth_scores(5), strict=True):
        scores = metrics.score_rows(base, query, np.unique(rows[rows >= 0]), metric)
        hits += int((scores >= bar - 1e-6 * abs(bar)).sum())
    assert hits > 0
    assert judge.recall(found) == hits / 100


def test_limits_and_given_truth_are_used(data: DataSet, tmp_path: Path) -> None:
    base, queries = np.load(data.base), np.load(data.queries)
    truth = tmp_path / "truth.npy"
    np.save(truth, metrics.exact_neighbours(base, queries, 20, "l2"))
    loaded = load(DataSet(data.base, data.queries, truth), 10, None, 7)
    assert loaded.truth is not None
    assert loaded.truth.shape == (7, 10)
    assert load(DataSet(data.base, data.queries, truth), 10, 500, None).truth is None
    with pytest.raises(InvalidInput, match=r"≥30"):
        load(DataSet(data.base, data.queries, truth), 30, None, None)
