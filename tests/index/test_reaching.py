"""Rows that reach a floor: every instruction set finds the rows and the bits of numpy, and misses none."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nestvec import InvalidInput
from nestvec.index.kernels import reference, reference_reaching
from nestvec.index.scan import exact_search, rows_reaching

Array = NDArray[Any]
_scored: dict[tuple[object, ...], Array] = {}


def exact(vectors: Array, query: Array, metric: str) -> Array:
    """By the reference, once for all the kernels that are compared with it."""
    key = (blake2b(vectors.tobytes()).digest(), vectors.dtype, vectors.shape, query.tobytes(), metric)
    if key not in _scored:
        _scored[key] = _exact(vectors, query, metric)
    return _scored[key]


def _exact(vectors: Array, query: Array, metric: str) -> Array:
    scores = np.zeros(len(vectors))
    reference.band_scores(query, vectors, np.arange(len(vectors)), 0, vectors.shape[1], metric, scores)
    with np.errstate(over="ignore"):
        return scores.astype(np.float32)


def every_pair(vectors: Array, levels: Array, queries: Array, floors: Array, metric: str) -> tuple[Array, ...]:
    """By definition: all scores, compared."""
    found = [
        (rows, scores[rows])
        for query, least in zip(queries, floors.T, strict=True)
        for scores in [exact(vectors, query, metric)]
        for rows in [np.flatnonzero((levels > 0) & (scores >= least[levels.astype(int) - 1]))]
    ]
    counts = np.array([len(rows) for rows, _ in found], np.int64)
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
    return counts, rows, np.concatenate([np.empty(0, np.float32), *(scores for _, scores in found)])


def check(kernel: Any, *task: Any, threads: int = 1) -> tuple[Array, ...]:  # noqa: ANN401
    got: tuple[Array, ...] = kernel.reaching(*task, threads)
    for mine, wanted in zip(got, every_pair(*task), strict=True):
        assert mine.dtype == wanted.dtype
        np.testing.assert_array_equal(mine, wanted)
    return got


def floors_of(vectors: Array, queries: Array, metric: str, share: float) -> Array:
    """One level's floors [1, b], scores themselves, so that ties decide."""
    return np.array(
        [[np.sort(exact(vectors, q, metric))[int(share * (len(vectors) - 1))] for q in queries]], np.float32
    )


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dims", [1, 2, 7, 15, 16, 17, 33, 48, 64, 70, 768])
def test_what_reaches_a_floor_is_found_to_the_bit(
    kernel: ModuleType, dims: int, dtype: type[np.generic], metric: str
) -> None:
    rng = np.random.default_rng(dims)
    centre = 3 * rng.standard_normal(dims)
    for n, b, share in ((0, 3, 0.5), (1, 1, 0.0), (7, 2, 0.3), (301, 131, 0.97), (530, 5, 0.5)):
        vectors = (centre + rng.standard_normal((n, dims))).astype(dtype)
        queries = (centre + rng.standard_normal((b, dims))).astype(np.float32)
        floors = floors_of(vectors, queries, metric, share) if n else np.zeros((1, b), np.float32)
        lower = floors_of(vectors, queries, metric, share / 2) if n else np.zeros((1, b), np.float32)
        check(kernel, vectors, rng.integers(0, 3, n, np.uint8), queries, np.concatenate([floors, lower]), metric)
        counts = check(kernel, vectors, np.ones(n, np.uint8), queries, floors, metric)[0]
        assert (counts >= min(n, 1)).all()  # the floor's own row


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_vectors_at_every_scale_and_of_zeros_are_not_missed(
    kernel: ModuleType, dtype: type[np.generic], metric: str
) -> None:
    """Also those whose squares overflow or vanish in float32, and coordinates that dwarf the others."""
    rng = np.random.default_rng(1)
    scales = (1e-7, 1e-3, 1.0, 3e4) if dtype == np.float16 else (1e-42, 1e-30, 1e-18, 1.0, 1e17, 1e19, 1e30)
    vectors = np.clip(rng.standard_normal((400, 40)), -2, 2) * rng.choice(scales, (400, 1))
    vectors[::9] = 0
    vectors[::7, 3] *= 1000
    vectors = np.clip(vectors, -6e4, 6e4).astype(dtype) if dtype == np.float16 else vectors.astype(dtype)
    queries = (np.clip(rng.standard_normal((60, 40)), -2, 2) * rng.choice(scales, (60, 1))).astype(np.float32)
    queries[::5] = 0
    for share in (0.05, 0.5, 0.95):
        floors = floors_of(vectors, queries, metric, share)
        check(kernel, vectors, np.ones(400, np.uint8), queries, floors, metric)
    for group in (vectors[:50], np.repeat(vectors[5:6], 50, axis=0)):
        floors = floors_of(group, queries, metric, 0.5)
        check(kernel, np.ascontiguousarray(group), np.ones(50, np.uint8), queries, floors, metric)


def test_floors_without_end_let_all_or_nothing_pass(kernel: ModuleType) -> None:
    rng = np.random.default_rng(2)
    vectors, queries = (
        rng.standard_normal((290, 20)).astype(np.float32),
        rng.standard_normal((3, 20)).astype(np.float32),
    )
    levels = rng.integers(0, 2, 290, np.uint8)
    floors = np.array([[-np.inf, np.inf, -3e38]], np.float32)
    counts, rows, _ = check(kernel, vectors, levels, queries, floors, "dot")
    assert counts.tolist() == [levels.sum(), 0, levels.sum()]
    assert rows[: counts[0]].tolist() == np.flatnonzero(levels).tolist()
    check(kernel, vectors, np.zeros(290, np.uint8), queries, floors, "l2")
    check(kernel, vectors, levels, queries[:0], floors[:, :0], "l2")


def test_threads_change_nothing(kernel: ModuleType) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3000, 24)).astype(np.float16)
    queries = rng.standard_normal((140, 24)).astype(np.float32)
    floors = np.concatenate([floors_of(vectors, queries, "dot", share) for share in (0.9, 0.6, 0.99)])
    for threads in (2, 5, 100):
        check(kernel, vectors, rng.integers(0, 4, 3000, np.uint8), queries, floors, "dot", threads=threads)


def test_the_reference_scores_few_rows_in_float64() -> None:
    rng = np.random.default_rng(4)
    vectors, queries = rng.standard_normal((3000, 64)).astype(np.float16), rng.standard_normal((20, 64), np.float32)
    floors, scored = floors_of(vectors, queries, "dot", 0.99), 0

    def counting(query: Array, block: Array, rows: Array, *rest: Any) -> None:  # noqa: ANN401
        nonlocal scored
        scored += len(rows)
        reference.band_scores(query, block, rows, *rest)

    reference_reaching.reaching(vectors, np.ones(3000, np.uint8), queries, floors, "dot", 1, counting)
    assert 600 <= scored < 700


def test_the_entry_takes_a_memory_map_and_scores_as_the_exact_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((500, 33)).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False)
    queries = rng.standard_normal((4, 33)).astype(np.float32)
    best = [exact_search(vectors, query, 20, metric="l2") for query in queries]
    floors = np.array([[scores[-1] for _, scores in best]], np.float32)
    counts, rows, scores = rows_reaching(mapped, queries, floors, metric="l2", threads=2)
    assert counts.tolist() == [20] * 4
    for number, (wanted, wanted_scores) in enumerate(best):
        order = np.argsort(wanted)
        np.testing.assert_array_equal(rows[20 * number :][:20], wanted[order])
        np.testing.assert_array_equal(scores[20 * number :][:20], wanted_scores[order])


def test_arguments_that_do_not_fit_are_named(kernel: ModuleType) -> None:
    good: dict[str, Any] = {
        "vectors": np.ones((4, 8), np.float32), "levels": np.ones(4, np.uint8), "queries": np.ones((2, 8), np.float32),
        "floors": np.zeros((1, 2), np.float32), "metric": "dot", "threads": 1,
    }  # fmt: skip
    bad_query = np.ones((2, 8), np.float32)
    bad_query[1, 3] = np.nan
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"metric": "cosine"}, ValueError, "metric must be"),
        ({"vectors": np.ones((4, 8))}, TypeError, "vectors must be float32 or float16"),
        ({"vectors": np.ones((8, 4), np.float32).T}, ValueError, "vectors must be C-contiguous"),
        ({"vectors": np.ones((4, 0), np.float32)}, ValueError, "1 to 65536 dims, got 0"),
        ({"levels": np.ones(3, np.uint8)}, ValueError, "levels must have shape"),
        ({"levels": np.ones(4, np.bool_)}, TypeError, "levels must be uint8"),
        ({"levels": np.full(4, 2, np.uint8)}, ValueError, "levels must be at most the number of floors, 1"),
        ({"queries": np.ones((2, 7), np.float32)}, ValueError, "queries must have shape"),
        ({"queries": bad_query}, ValueError, "queries must be finite"),
        ({"floors": np.zeros((1, 3), np.float32)}, ValueError, "floors must have shape"),
        ({"floors": np.full((1, 2), np.nan, np.float32)}, ValueError, "floors must not be NaN"),
        ({"threads": 0}, ValueError, "threads must be >= 1"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=message):
            kernel.reaching(*{**good, **changes}.values())
    with pytest.raises(InvalidInput, match=r"floors \[m, b\]"):
        rows_reaching(good["vectors"], good["queries"], np.zeros(3, np.float32), metric="dot")
