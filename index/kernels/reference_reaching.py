"""The meaning of reaching, in numpy: a float32 product rules rows out, `band_scores` scores the rest.

The C++ kernel rules out by other means, and so keeps the same rows with the same bits of scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nestvec.index.bounds import score_bounds
from nestvec.index.kernels.checks import check_array, check_count, check_finite
from nestvec.index.kernels.reference import band_scores
from nestvec.index.metric import Metric

MOST_DIMS = 65536  # whose sums of byte products fit 32 bits
_BLOCK_FLOATS = 1 << 21  # of the block, and of its scores: little enough for the cache

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]


def reaching(
    vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    levels: npt.NDArray[np.uint8],
    queries: npt.NDArray[np.float32],
    floors: npt.NDArray[np.float32],
    metric: Metric,
    threads: int,
    score: Callable[..., None] = band_scores,
) -> Found:
    """Every row of vectors [n, d] (a memory map is read in place) that reaches a query's floor for rows of its level.

    queries [b, d], finite, and floors [m, b]; levels u8 [n] from 1 to m, 0 for a row that does not count. The score is
    the one of `band_scores` over all dimensions ("dot" <q, x>, "l2" -||q - x||^2), rounded to float32; a row is found
    where it is >= the floor. Returns counts i64 [b] of the rows found, rows i64 [m] and their scores f32 [m]: query by
    query, rows ascending. threads >= 1 changes nothing of it, and neither does `score`, which is band_scores or its
    native twin.

    Raises ValueError for an unknown metric, no dims or more than 65536, a query that is not finite, a floor that is
    NaN, a level above m and threads < 1; TypeError and ValueError for wrong dtypes, shapes or layout.
    """
    _check(vectors, levels, queries, floors, metric, threads)
    step = max(1, _BLOCK_FLOATS // max(vectors.shape[1], len(queries)))
    found: list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]] = [[] for _ in queries]
    for start in range(0, len(vectors), step):
        rows = start + np.flatnonzero(levels[start : start + step])
        _, upper = score_bounds(np.asarray(vectors[rows], np.float32), queries, metric)
        for query, most, least, kept in zip(queries, upper, floors.T, found, strict=True):
            chosen = rows[most >= least[levels[rows] - 1]]
            wide = np.zeros(len(chosen))
            score(query, vectors, chosen, 0, vectors.shape[1], metric, wide)
            with np.errstate(over="ignore"):  # a distance beyond float32 is infinite
                scores = wide.astype(np.float32)
            reached = scores >= least[levels[chosen] - 1]
            kept.append((chosen[reached], scores[reached]))
    flat = [each for kept in found for each in kept]
    return (
        np.array([sum(len(rows) for rows, _ in kept) for kept in found], np.int64),
        np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in flat)]),
        np.concatenate([np.empty(0, np.float32), *(scores for _, scores in flat)]),
    )


def _check(
    vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    levels: npt.NDArray[np.uint8],
    queries: npt.NDArray[np.float32],
    floors: npt.NDArray[np.float32],
    metric: str,
    threads: int,
) -> None:
    if metric not in ("dot", "l2"):
        raise ValueError(f"metric must be 'dot' or 'l2', got {metric!r}")
    check_array(vectors, "vectors", [np.float32, np.float16], (-1, -1))
    n, dims = vectors.shape
    if not 1 <= dims <= MOST_DIMS:
        raise ValueError(f"vectors must have 1 to {MOST_DIMS} dims, got {dims}")
    check_array(levels, "levels", [np.uint8], (n,))
    check_array(queries, "queries", [np.float32], (-1, dims))
    check_finite(queries, "queries")
    check_array(floors, "floors", [np.float32], (-1, len(queries)))
    if levels.max(initial=0) > len(floors):
        raise ValueError(f"levels must be at most the number of floors, {len(floors)}")
    if np.isnan(floors).any():
        raise ValueError("floors must not be NaN")
    check_count(threads, "threads")
