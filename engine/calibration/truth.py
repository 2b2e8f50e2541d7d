"""The truth that recall is measured by: for each query the rows with the best scores, as many as each filter asks for.

Recall asks for no more than the k-th best score of a query among the rows that pass a filter: a hit that scores at
least that is a true neighbour, ties included. Filters that are nested, each inside the one before, are served by one
pass over the rows: a row has to reach the lowest floor of the filters that let it through, so that the many rows
outside the narrow ones, which ask for the deepest lists, seldom do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.cores import cores
from nestvec.index.metric import Metric
from nestvec.index.scan import rows_reaching

F32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Levels = NDArray[np.uint8]
"""How many of some nested filters, widest first, each row passes."""

_BLOCK_NUMBERS = 1 << 27  # stored numbers between two ticks: a fraction of a second
_SAMPLE = 12_000  # rows from which the depth of each query's list is guessed
_SPREADS, _SLACK = 4, 3  # guesses err: lists are longer than asked for by so many standard deviations, and rows


@dataclass(frozen=True)
class Truth:
    """For each query, rows with their scores, best first (float32; searches add in another order: allow for it).

    `starts` [b + 1] says where a query's rows begin; `floors` [b]: every row with at least this score is listed.
    Rows count through all parts, one after the other.
    """

    starts: Int64
    rows: Int64
    scores: F32
    floors: F32

    def within(self, passes: NDArray[np.bool_], floors: F32) -> Truth:
        """What of it reaches some floors f32 [b], of the listed rows that a filter `passes`, a mask over all parts."""
        kept = np.flatnonzero(passes[self.rows] & (self.scores >= np.repeat(floors, np.diff(self.starts))))
        return Truth(np.searchsorted(kept, self.starts), self.rows[kept], self.scores[kept], floors)

    def kth(self, k: int) -> F32:
        """The k-th best score of each query, float32 [b].

        Where the list ends before, its floor: too high, so that recall is understated there and never overstated.
        """
        at = self.starts[:-1] + (k - 1)
        listed = at < self.starts[1:]
        best = self.floors.copy()
        best[listed] = self.scores[at[listed]]
        return best

    def reaching(self, floors: F32) -> Int64:
        """How many rows of each of the first queries score at least floors f32 [m], int64 [m]."""
        starts = self.starts[: len(floors) + 1]
        reached = self.scores[: starts[-1]] >= np.repeat(floors, np.diff(starts))
        return np.diff(np.append(0, np.cumsum(reached))[starts])


def find_truth(
    parts: Sequence[NDArray[Any]],
    levels: Levels,
    queries: F32,
    depths: Int64,
    metric: Metric,
    tick: Callable[[int], None],
    threads: int | None = None,
) -> list[Truth]:
    """Every query's best rows behind each of m nested filters, among stored vectors [n, dims].

    `levels` uint8 [n] through all parts; a filter is taken for a random one. `depths` int64 [m, b]: about how many rows
    each list is to have at least. One pass over all rows; `tick(rows)` is called after each block. `threads`: all cores
    where None; they change nothing of the result.
    """
    floors = _floors(parts, levels, queries, depths, metric)
    lowest = np.minimum.accumulate(floors, axis=0)
    found: list[tuple[Int64, Int64, F32]] = []
    first = 0
    for vectors in parts:
        step = max(1, _BLOCK_NUMBERS // vectors.shape[1])
        for start in range(0, len(vectors), step):
            block, some = vectors[start : start + step], levels[first + start :][: min(step, len(vectors) - start)]
            counts, rows, scores = rows_reaching(
                block, queries, lowest, metric=metric, levels=some, threads=threads or cores()
            )
            found.append((counts, rows + (first + start), scores))
            tick(len(block))
        first += len(vectors)
    listed = _sorted(found, lowest[-1])
    return [listed.within(levels > number, each) for number, each in enumerate(floors)]


def _sorted(found: list[tuple[Int64, Int64, F32]], floors: F32) -> Truth:
    """What the blocks found, query by query, best first."""
    ends = [np.append(0, np.cumsum(counts)).tolist() for counts, _, _ in found]
    rows, scores = list[Int64](), list[F32]()
    for q in range(len(floors)):
        parts = [slice(end[q], end[q + 1]) for end in ends]
        score = np.concatenate([each[part] for (_, _, each), part in zip(found, parts, strict=True)])
        row = np.concatenate([each[part] for (_, each, _), part in zip(found, parts, strict=True)])
        order = np.argsort(-score)
        rows.append(row[order])
        scores.append(score[order])
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return Truth(starts, np.concatenate(rows), np.concatenate(scores), floors)


def _floors(parts: Sequence[NDArray[Any]], levels: Levels, queries: F32, depths: Int64, metric: Metric) -> F32:
    """For each filter and query a score that somewhat more than `depths` of its rows reach, by a sample of all rows.

    -inf where that is most of them.
    """
    counted = np.flatnonzero(levels)
    chosen = counted[:: max(1, len(counted) // _SAMPLE)]
    passing = np.array([max(1, np.count_nonzero(levels > number)) for number in range(len(depths))])
    expected = depths * (len(chosen) / passing[:, None])  # of the sample, were there no chance in it
    spread = np.sqrt(expected + np.square(expected) / np.maximum(depths, 1))  # of the sample, and of the filter's own
    ranks = np.ceil(expected + _SPREADS * spread).astype(np.int64) + _SLACK
    most = int(ranks[ranks < len(chosen)].max(initial=0))
    best = _best_of(parts, chosen, queries, most, metric)
    floors = np.full(depths.shape, -np.inf, np.float32)
    some = ranks < len(chosen)
    floors[some] = best[np.broadcast_to(np.arange(len(queries)), ranks.shape)[some], ranks[some] - 1]
    return floors


def _best_of(parts: Sequence[NDArray[Any]], chosen: Int64, queries: F32, count: int, metric: Metric) -> F32:
    """The `count` best scores of each query among the chosen rows, best first, float32 [b, count]."""
    sample, first = [], 0
    for vectors in parts:
        inside = chosen[(chosen >= first) & (chosen < first + len(vectors))] - first
        sample.append(_scores(vectors[inside], queries, metric))
        first += len(vectors)
    scores = sample[0] if len(sample) == 1 else np.concatenate(sample, axis=1)
    worse = max(scores.shape[1] - count, 0)
    if 0 < worse < scores.shape[1]:
        scores.partition(worse, axis=1)
    return np.sort(scores[:, worse:], axis=1)[:, ::-1]


def _scores(vectors: NDArray[Any], queries: F32, metric: Metric) -> F32:
    block = np.asarray(vectors, np.float32)
    products: F32 = queries @ block.T
    if metric == "l2":
        products *= 2
        products -= np.einsum("ij,ij->i", block, block)
        products -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return products
