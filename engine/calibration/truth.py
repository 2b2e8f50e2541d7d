"""The truth that recall is measured by: for each query the rows with the best scores, deep enough for every filter.

The best k of a random share s of all rows are, near enough, the best k/s of all of them. So one pass over the rows
that keeps each query's best few thousand tells the k-th best score under any mask, and recall asks for no more:
a hit that scores at least that is a true neighbour, ties included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.cores import cores
from nestvec.index.metric import Metric
from nestvec.index.scan import rows_reaching

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

_BLOCK_NUMBERS = 1 << 25  # stored numbers between two ticks: a fraction of a second
_SAMPLE = 12_000  # rows from which the depth of each query's list is guessed
_SLACK = 1.5  # lists are this much longer than asked for, on average: guesses err


@dataclass(frozen=True)
class Truth:
    """For each query, rows with their scores, best first (float32; searches add in another order: allow for it).

    `starts` [b + 1] says where a query's rows begin; `floors` [b]: every row with at least this score is listed.
    Rows count through all parts, one after the other.
    """

    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: F32
    floors: F32

    def behind(self, allowed: Mask) -> Truth:
        """What of it a mask over all parts lets through."""
        kept = np.flatnonzero(allowed[self.rows])
        starts = np.searchsorted(kept, self.starts)
        return Truth(starts, self.rows[kept], self.scores[kept], self.floors)

    def kth(self, k: int) -> F32:
        """The k-th best score of each query, float32 [b].

        Where the list ends before, its floor: too high, so that recall is understated there and never overstated.
        """
        at = self.starts[:-1] + (k - 1)
        listed = at < self.starts[1:]
        best = self.floors.copy()
        best[listed] = self.scores[at[listed]]
        return best

    def reaching(self, floors: F32) -> NDArray[np.int64]:
        """How many rows of each of the first queries score at least floors f32 [m], int64 [m]."""
        lists = (self.scores[start:stop][::-1] for start, stop in pairwise(self.starts))
        return np.array([len(a) - np.searchsorted(a, floor) for a, floor in zip(lists, floors, strict=False)], np.int64)


def find_truth(
    parts: Sequence[NDArray[Any]],
    allowed: Mask,
    queries: F32,
    depth: int,
    metric: Metric,
    tick: Callable[[int], None],
    threads: int | None = None,
) -> Truth:
    """Every query's best rows, about `depth` of them or more, among the allowed ones of stored vectors [n, dims].

    One pass over all rows; `tick(rows)` is called after each block. `threads`: all cores where None; they change
    nothing of the result.
    """
    floors = _floors(parts, allowed, queries, depth, metric)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], F32]] = []
    first = 0
    for vectors in parts:
        step = max(1, _BLOCK_NUMBERS // vectors.shape[1])
        for start in range(0, len(vectors), step):
            block, counting = vectors[start : start + step], allowed[first + start :][: min(step, len(vectors) - start)]
            counts, rows, scores = rows_reaching(
                block, queries, floors, metric=metric, allowed=counting, threads=threads or cores()
            )
            found.append((counts, rows + (first + start), scores))
            tick(len(block))
        first += len(vectors)
    return _sorted(found, floors)


def _sorted(found: list[tuple[NDArray[np.int64], NDArray[np.int64], F32]], floors: F32) -> Truth:
    """What the blocks found, query by query, best first."""
    ends = [np.append(0, np.cumsum(counts)).tolist() for counts, _, _ in found]
    rows, scores = list[NDArray[np.int64]](), list[F32]()
    for q in range(len(floors)):
        parts = [slice(end[q], end[q + 1]) for end in ends]
        score = np.concatenate([each[part] for (_, _, each), part in zip(found, parts, strict=True)])
        row = np.concatenate([each[part] for (_, each, _), part in zip(found, parts, strict=True)])
        order = np.argsort(-score)
        rows.append(row[order])
        scores.append(score[order])
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return Truth(starts, np.concatenate(rows), np.concatenate(scores), floors)


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
