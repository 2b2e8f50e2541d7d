"""The exact scan against a float64 sort of everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nestvec.errors import InvalidInput
from nestvec.index import scan
from nestvec.index.metric import Metric
from nestvec.index.scan import best_reaching, exact_search, exact_search_batch
from nestvec.index.work import Work


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    wide, asked = vectors.astype(np.float64), query.astype(np.float64)
    scores = (wide * asked).sum(axis=1) if metric == "dot" else -np.square(wide - asked).sum(axis=1)
    with np.errstate(over="ignore"):
        rounded = scores.astype(np.float32)
    order = np.lexsort((np.arange(len(scores)), -rounded))[:k]
    return order, rounded[order]


def clustered(n: int, dims: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    decay = 0.9 ** np.arange(dims)
    return ((rng.integers(-2, 3, (n, dims)) + 0.1 * rng.standard_normal((n, dims))) * decay).astype(np.float32)


@pytest.fixture(params=["dot", "l2"])
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("block", [64, 1 << 24])
def test_scan_equals_sorting_everything(
    metric: Metric, dtype: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_BLOCK_FLOATS", block * 24)
    vectors = clustered(700, 24, 0).astype(dtype)
    for query in clustered(5, 24, 1):
        for k in (1, 7, 700, 900):
            rows, scores = exact_search(vectors, query, k, metric=metric)
            wanted = brute_force(vectors, query, k, metric)
            np.testing.assert_array_equal(rows, wanted[0])
            np.testing.assert_array_equal(scores, wanted[1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_that_reach_a_floor_are_those_of_the_scan(metric: Metric, dtype: str) -> None:
    vectors = clustered(300, 24, 0).astype(dtype)
    vectors[200:] = vectors[:100]  # ties
    allowed = np.random.default_rng(3).random(300) < 0.7
    for query in clustered(5, 24, 1):
        for k in (1, 7, 400):
            wanted = exact_search(vectors, query, k, metric=metric, allowed=allowed)
            for floor in (-np.inf, float(wanted[1][0]), float(wanted[1][-1]), float(wanted[1][0]) + 1):
                rows, scores = best_reaching(vectors, query, np.flatnonzero(allowed), k, floor, metric=metric)
                np.testing.assert_array_equal(rows, wanted[0][wanted[1] >= floor])
                np.testing.assert_array_equal(scores, wanted[1][wanted[1] >= floor])


def test_near_ties_below_float32_products_are_still_ordered_exactly(metric: Metric) -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal(256).astype(np.float32) * 10
    vectors = np.tile(base, (400, 1))
    steps = rng.permutation(400)
    for row, step in enumerate(steps):
        vectors[row, 3] = base[3] + np.float32(step * 2e-6)
    query = base.copy()
    rows, scores = exact_search(vectors, query, 20, metric=metric)
    wanted = brute_force(vectors, query, 20, metric)
    np.testing.assert_array_equal(rows, wanted[0])
    np.testing.assert_array_equal(scores, wanted[1])


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e17, 3e18])
def test_extreme_magnitudes_lose_no_row(metric: Metric, scale: float) -> None:
    vectors = clustered(300, 16, 2) * np.float32(scale)
    vectors[::3] /= np.float32(1e4)
    for query in (vectors[5], clustered(1, 16, 3)[0]):
        rows, _ = exact_search(vectors, query, 9, metric=metric)
        np.testing.assert_array_equal(rows, brute_force(vectors, query, 9, metric)[0])


def test_equal_scores_go_by_row(metric: Metric) -> None:
    vectors = np.ones((50, 4), np.float32)
    rows, scores = exact_search(vectors, np.ones(4, np.float32), 7, metric=metric)
    np.testing.assert_array_equal(rows, np.arange(7))
    assert len(set(scores.tolist())) == 1


def test_masked_rows_are_not_read_and_never_return(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_BLOCK_FLOATS", 24 * 50)
    vectors, allowed, work = clustered(400, 24, 3), np.zeros(400, np.bool_), Work()
    allowed[[3, 120, 121, 399]] = True
    rows, _ = exact_search(vectors, vectors[0], 10, metric=metric, allowed=allowed, work=work)
    assert sorted(rows.tolist()) == [3, 120, 121, 399]
    assert work.rows == 4
    assert work.bytes == 4 * 24 * 4
    assert list(work.micros) == ["exact"]


def test_batch_equals_one_by_one_and_reads_rows_once(metric: Metric) -> None:
    vectors, queries, work = clustered(500, 24, 4), clustered(9, 24, 5), Work()
    batch = exact_search_batch(vectors, queries, 10, metric=metric, work=work)
    for query, (rows, scores) in zip(queries, batch, strict=True):
        one = exact_search(vectors, query, 10, metric=metric)
        np.testing.assert_array_equal(rows, one[0])
        np.testing.assert_array_equal(scores, one[1])
    assert work.rows == 500
    assert exact_search_batch(vectors, queries[:0], 10, metric=metric) == []


def test_memory_mapped_vectors_give_the_same_answer(metric: Metric, tmp_path: Path) -> None:
    vectors = clustered(300, 24, 6).astype(np.float16)
    vectors.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float16, "r", shape=vectors.shape)
    query = clustered(1, 24, 7)[0]
    np.testing.assert_array_equal(
        exact_search(mapped, query, 9, metric=metric)[0], exact_search(vectors, query, 9, metric=metric)[0]
    )


def test_no_rows_give_no_hits(metric: Metric) -> None:
    rows, scores = exact_search(np.empty((0, 8), np.float32), np.zeros(8, np.float32), 3, metric=metric)
    assert rows.shape == scores.shape == (0,)


@pytest.mark.parametrize(
    ("vectors", "query", "k", "message"),
    [
        (np.zeros((3, 4), np.float32), np.zeros(5, np.float32), 1, r"query must have shape \(4,\), got \(5,\)"),
        (np.zeros((3, 4), np.float32), np.zeros(4, np.float32), 0, "k must be >= 1, got 0"),
        (np.zeros((3, 4), np.float64), np.zeros(4, np.float32), 1, "float32 or float16, got float64"),
        (np.zeros((4, 3), np.float32).T, np.zeros(4, np.float32), 1, "row-major"),
        (np.zeros(4, np.float32), np.zeros(4, np.float32), 1, r"shape \[n, d\], got \(4,\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(
    vectors: np.ndarray, query: np.ndarray, k: int, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        exact_search(vectors, query, k, metric="dot")
    with pytest.raises(InvalidInput, match="metric must be one of dot, l2, got 'cosine'"):
        exact_search(np.zeros((1, 2), np.float32), np.zeros(2, np.float32), 1, metric="cosine")  # type: ignore[arg-type]
