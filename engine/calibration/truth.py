"""The truth that recall is measured by: for each query the rows with the best scores, deep enough for every filter.

The best k of a random share s of all rows are, near enough, the best k/s of all of them. So one pass over the rows
that keeps each query's best few thousand tells the k-th best score under any mask, and recall asks for no more:
a hit that scores at least that is a true neighbour, ties included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.index.metric import Metric

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

_BLOCK_FLOATS = 1 << 24  # 64 MiB of float32
_SAMPLE = 20_000  # rows from which the depth of each query's list is guessed
_SLACK = 1.5  # lists are this much longer than asked for, on average: guesses err


@dataclass(frozen=True)
class Truth:
    """For each query, rows with their scores (float32, of BLAS products: compare with a tolerance).

    `starts` [b + 1] says where a query's rows begin; `floors` [b]: every row with at least this score is listed.
    Rows count through all parts, one after the other.
    """

    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: F32
    floors: F32

    def kth(self, k: int, allowed: Mask | None) -> F32:
        """The k-th best score among the allowed rows (mask over all parts), float32 [b].

        Where the list ends before, its floor: too high, so that recall is understated there and never overstated.
        """
        best = self.floors.copy()
        for query, (start, stop) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            scores = self.scores[start:stop]
            if allowed is not None:
                scores = scores[allowed[self.rows[start:stop]]]
            if len(scores) >= k:
                best[query] = np.partition(scores, len(scores) - k)[len(scores) - k]
        return best


def find_truth(
    parts: Sequence[NDArray[Any]], allowed: Mask, queries: F32, depth: int, metric: Metric, tick: Callable[[int], None]
) -> Truth:
    """Every query's best rows, about `depth` of them or more, among the allowed ones of stored vectors [n, dims].

    One pass over all rows; `tick(rows)` is called after each block.
    """
    floors = _floors(parts, allowed, queries, depth, metric)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], F32]] = []
    first = 0
    for vectors in parts:
        step = max(1, _BLOCK_FLOATS // vectors.shape[1])
        for start in range(0, len(vectors), step):
            stop = min(start + step, len(vectors))
            counting = allowed[first + start : first + stop]
            rows, block = np.flatnonzero(counting), vectors[start:stop]
            scores = _scores(block if len(rows) == len(block) else block[rows], queries, metric)
            query, column = np.divmod(np.flatnonzero(scores >= floors[:, None]), len(rows))
            found.append((query, rows[column] + first + start, scores[query, column]))
            tick(stop - start)
        first += len(vectors)
    query = np.concatenate([each[0] for each in found])
    order = np.argsort(query, kind="stable")
    counts = np.bincount(query, minlength=len(queries))
    rows, every = (np.concatenate([each[i] for each in found])[order] for i in (1, 2))
    return Truth(np.concatenate([[0], np.cumsum(counts)]), rows, every, floors)


def _floors(parts: Sequence[NDArray[Any]], allowed: Mask, queries: F32, depth: int, metric: Metric) -> F32:
    """For each query a score that about `depth` times the slack rows reach; -inf where that is most of them."""
    total = int(np.count_nonzero(allowed))
    chosen = np.flatnonzero(allowed)[:: max(1, total // _SAMPLE)]
    rank = int(np.ceil(_SLACK * depth * len(chosen) / total)) + 3  # 3: a guess from few rows errs more
    if rank >= len(chosen):
        return np.full(len(queries), -np.inf, np.float32)
    sample, first = [], 0
    for vectors in parts:
        inside = chosen[(chosen >= first) & (chosen < first + len(vectors))] - first
        sample.append(_scores(vectors[inside], queries, metric))
        first += len(vectors)
    scores = np.concatenate(sample, axis=1)
    return np.ascontiguousarray(np.partition(scores, scores.shape[1] - rank, axis=1)[:, scores.shape[1] - rank])


def _scores(vectors: NDArray[Any], queries: F32, metric: Metric) -> F32:
    block = np.asarray(vectors, np.float32)
    products: F32 = queries @ block.T
    if metric == "l2":
        products *= 2
        products -= np.einsum("ij,ij->i", block, block)
        products -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return products
