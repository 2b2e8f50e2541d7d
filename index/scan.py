"""Exact search: the oracle of every other route, and a route itself.

A few queries are scored row by row in float64. For more of them BLAS scores a block of rows in float32, and rows that
could still be among the best k, given the worst rounding error of that product, are scored again in float64. So results
are exact either way, ties by row; the second way reads and converts a row once for all queries.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.bounds import score_bounds
from nestvec.index.metric import Metric, check_metric
from nestvec.index.selection import Rows, Scores, top_k
from nestvec.index.vectors import Vectors, check_allowed, check_query, check_vectors
from nestvec.index.work import Work

_BLOCK_FLOATS = 1 << 24  # 64 MiB of float32, for the block and for its scores
_FEW_QUERIES = {2: 16, 4: 4}  # by bytes of a stored number: up to here row by row is faster, by measurement

Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Best:
    """The best k rows of the blocks seen so far."""

    rows: Rows
    scores: Scores

    def floor(self, k: int) -> float:
        """The score that a row must reach to matter."""
        return float(self.scores[-1]) if self.rows.shape[0] == k else -np.inf


def exact_search(
    vectors: Vectors,
    query: Float32,
    k: int,
    *,
    metric: Metric,
    allowed: npt.NDArray[np.bool_] | None = None,
    work: Work | None = None,
) -> tuple[Rows, Scores]:
    """The best min(k, allowed rows) rows of float32|float16 [n, d] for float32 [d], best first.

    Scores are accumulated in float64 and rounded to float32 once. Memory is bounded whatever n is; `vectors` may
    be memory-mapped. Raises InvalidInput for wrong shapes, dtypes or k < 1.
    """
    _, dims = check_vectors(vectors)
    batch = check_query(query, dims)[None]
    return exact_search_batch(vectors, batch, k, metric=metric, allowed=allowed, work=work)[0]


def exact_search_batch(
    vectors: Vectors,
    queries: Float32,
    k: int,
    *,
    metric: Metric,
    allowed: npt.NDArray[np.bool_] | None = None,
    work: Work | None = None,
) -> list[tuple[Rows, Scores]]:
    """`exact_search` for float32 [b, d] queries, reading every row once for all of them."""
    count, dims = check_vectors(vectors)
    if queries.ndim != 2 or queries.shape[1] != dims:
        raise InvalidInput(f"queries must have shape [b, {dims}], got {queries.shape}")
    if k < 1:
        raise InvalidInput(f"k must be >= 1, got {k}")
    check_metric(metric)
    allowed = check_allowed(allowed, count)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    started = time.perf_counter()
    best = [_Best(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    step = max(1, _BLOCK_FLOATS // max(dims, len(queries)))
    few = len(queries) <= _FEW_QUERIES[vectors.dtype.itemsize]
    # Under a mask only the rows that it allows are touched, however few they are.
    picked = None if allowed is None else np.flatnonzero(allowed)
    read = count if picked is None else len(picked)
    for start in range(0, read, step):
        stop = min(start + step, read)
        rows = np.arange(start, stop) if picked is None else picked[start:stop]
        (_score_rows if few else _search_block)(vectors, queries, k, metric, rows, best)
    if work is not None:
        work.rows += read
        work.bytes += read * dims * vectors.dtype.itemsize
        work.add_micros("exact", (time.perf_counter() - started) * 1e6)
    return [(found.rows, found.scores) for found in best]


def best_reaching(
    vectors: Vectors, query: Float32, rows: Rows, k: int, floor: float, *, metric: Metric
) -> tuple[Rows, Scores]:
    """`exact_search` of float32|float16 [n, d] for float32 [d], contiguous, over a few rows int64 [m], ascending, and
    only those that score at least `floor`: for rows beside an index, of which most answers hold none."""
    found, scores = _reaching(vectors, query, rows, floor, metric)
    return top_k(scores, found, k) if len(found) else (found, scores)


def rows_reaching(
    vectors: Vectors,
    queries: Float32,
    floors: Float32,
    *,
    metric: Metric,
    levels: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> tuple[npt.NDArray[np.int64], Rows, Scores]:
    """Every row of float32|float16 [n, d] whose score for a float32 query [b, d] is at least its floor.

    floors float32 [m, b] are those of m kinds of rows; levels uint8 [n] says which a row is of, from 1 on, 0 for one
    that does not count. None: all are of the first. (counts int64 [b], rows int64 [r], scores float32 [r]): the rows of
    the first query, ascending, then of the next, with the scores of `exact_search`. All rows are read once for all
    queries, and memory grows with what is found.
    Raises InvalidInput for wrong shapes or dtypes.
    """
    count, dims = check_vectors(vectors)
    if queries.ndim != 2 or queries.shape[1] != dims or floors.ndim != 2 or floors.shape[1] != len(queries):
        raise InvalidInput(
            f"queries must have shape [b, {dims}] and floors [m, b], got {queries.shape} and {floors.shape}"
        )
    check_metric(metric)
    return kernels.reaching(
        vectors,
        np.ones(count, np.uint8) if levels is None else np.ascontiguousarray(levels),
        np.ascontiguousarray(queries, dtype=np.float32),
        np.ascontiguousarray(floors, dtype=np.float32),
        metric,
        threads,
    )


def _score_rows(vectors: Vectors, queries: Float32, k: int, metric: Metric, rows: Rows, best: list[_Best]) -> None:
    """Bring `best` up to date with these rows, one query after another."""
    for query, found in zip(queries, best, strict=True):
        chosen, scores = _reaching(vectors, query, rows, found.floor(k), metric)
        rows_met, scores_met = np.concatenate((found.rows, chosen)), np.concatenate((found.scores, scores))
        found.rows, found.scores = top_k(scores_met, rows_met, k)


def _search_block(
    vectors: Vectors,
    queries: Float32,
    k: int,
    metric: Metric,
    rows: Rows,
    best: list[_Best],
) -> None:
    """Bring `best` up to date with these rows, which ascend."""
    first, last = int(rows[0]), int(rows[-1])
    stored = vectors[first : last + 1] if last - first == len(rows) - 1 else vectors[rows]
    block = np.asarray(stored, dtype=np.float32)
    low, high = score_bounds(block, queries, metric)
    for query, found, lower, upper in zip(queries, best, low, high, strict=True):
        picked = _shortlist(lower, upper, k, found.floor(k))
        chosen = np.concatenate((found.rows, rows[picked]))
        scores = np.concatenate((found.scores, _rescore(vectors, query, rows[picked], metric)))
        found.rows, found.scores = top_k(scores, chosen, k)


def _shortlist(lower: Float32, upper: Float32, k: int, floor: float) -> npt.NDArray[np.intp]:
    """Positions whose upper bound reaches the floor, or the k-th best lower bound if that is higher."""
    picked = np.flatnonzero(upper >= floor)
    if picked.shape[0] > 4 * k:
        sure = lower[picked]
        kth = np.partition(sure, sure.shape[0] - k)[sure.shape[0] - k]
        picked = picked[upper[picked] >= kth]
    return picked


def _reaching(vectors: Vectors, query: Float32, rows: Rows, floor: float, metric: Metric) -> tuple[Rows, Scores]:
    """Those of the rows that score at least `floor`, in their order."""
    scores = _rescore(vectors, query, rows, metric)
    within = np.flatnonzero(scores >= floor)
    return rows[within], scores[within]


def _rescore(vectors: Vectors, query: Float32, rows: Rows, metric: Metric) -> Scores:
    scores = np.zeros(rows.shape[0], np.float64)
    kernels.band_scores(query, vectors, rows, 0, vectors.shape[1], metric, scores, None)
    with np.errstate(over="ignore"):  # a distance beyond float32 is infinite
        return scores.astype(np.float32)
