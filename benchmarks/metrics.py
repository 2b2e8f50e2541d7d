"""Truth and figures: from vectors and raw answers to recall, queries per second and percentiles.

Scores are float64 here, higher is better: dot <q,x>, l2 -||q-x||^2, cosine <q,x>/(|q||x|).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["cosine", "dot", "l2"]
Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

RELATIVE_TOLERANCE = 1e-6
_BLOCK_ROWS = 65_536
_BLOCK_QUERIES = 256
_MARGIN = 16
"""Extra rows kept per block before float64 decides: float32 products may misplace near ties, not sixteen of them."""


def score_rows(base: Vectors, query: Vectors, rows: Rows, metric: Metric) -> Scores:
    """Scores f64[m] of rows i64[m] of `base` [n, d] against `query` [d]; -inf where a row is negative (no answer)."""
    picked = np.asarray(base[np.maximum(rows, 0)], dtype=np.float64)
    wanted = np.asarray(query, dtype=np.float64)
    if metric == "l2":
        scores = -np.square(picked - wanted).sum(axis=1)
    else:
        scores = picked @ wanted
        if metric == "cosine":
            scores /= np.maximum(np.linalg.norm(picked, axis=1) * np.linalg.norm(wanted), np.finfo(np.float64).tiny)
    return np.where(rows >= 0, scores, -np.inf)


def exact_neighbours(base: Vectors, queries: Vectors, k: int, metric: Metric) -> Rows:
    """The true neighbours i64[q, k] by blocks of numpy products, rescored in float64; best first, ties by row."""
    k = min(k, len(base))
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = queries[start : start + _BLOCK_QUERIES]
        short = _shortlists(base, block, k, metric)
        for offset, rows in enumerate(short):
            scores = score_rows(base, block[offset], rows, metric)
            found[start + offset] = rows[np.lexsort((rows, -scores))[:k]]
    return found


def _shortlists(base: Vectors, queries: Vectors, k: int, metric: Metric) -> Rows:
    """At least the best k rows of every block of `base`, for each query: i64[q, m]."""
    wanted = np.asarray(queries, dtype=np.float32)
    parts = []
    for start in range(0, len(base), _BLOCK_ROWS):
        block = np.asarray(base[start : start + _BLOCK_ROWS], dtype=np.float32)
        scores = wanted @ block.T
        if metric == "l2":
            scores = 2 * scores - np.square(block).sum(axis=1)
        elif metric == "cosine":
            scores /= np.maximum(np.linalg.norm(block, axis=1), np.finfo(np.float32).tiny)
        keep = min(k + _MARGIN, len(block))
        parts.append(start + np.argpartition(-scores, keep - 1, axis=1)[:, :keep])
    return np.concatenate(parts, axis=1).astype(np.int64)


class Judge:
    """Says what share of given answers is right, for any k up to the width of `truth` i64[q, m] (best first)."""

    def __init__(self, base: Vectors, queries: Vectors, truth: Rows, metric: Metric) -> None:
        self._base, self._queries, self._truth, self._metric = base, queries, truth, metric
        pairs = zip(queries, truth, strict=True)
        self._scores = np.stack([score_rows(base, query, rows, metric) for query, rows in pairs])

    def kth_scores(self, k: int) -> Scores:
        """The worst score f64[q] among each query's k true neighbours: what an answer must reach to count."""
        worst: Scores = self._scores[:, :k].min(axis=1)
        return worst

    def recall(self, found: Rows) -> float:
        """Share of `found` i64[q, k] (-1: no answer) that scores at least the k-th neighbour; repeats count once.

        A score counts from 1e-6 (relative) below the k-th, so that ties count: the distance-based recall of
        ann-benchmarks. True neighbours need no scoring.
        """
        k = found.shape[1]
        right = (found[:, :, None] == self._truth[:, None, :k]).any(axis=2)
        bars = self.kth_scores(k)
        bars = bars - RELATIVE_TOLERANCE * np.abs(bars)
        for query in np.flatnonzero(~right.all(axis=1)):
            others = np.flatnonzero(~right[query])
            scores = score_rows(self._base, self._queries[query], found[query, others], self._metric)
            right[query, others] = scores >= bars[query]
        ordered = np.argsort(found, axis=1, kind="stable")
        rows, counted = np.take_along_axis(found, ordered, axis=1), np.take_along_axis(right, ordered, axis=1)
        counted[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        return int(counted.sum()) / found.size


def ndcg(ids: Sequence[str], grades: Mapping[str, float], depth: int = 10) -> float:
    """nDCG of a ranking at a depth, with the grades as gains (Järvelin and Kekäläinen 2002)."""
    ideal = sorted(grades.values(), reverse=True)[:depth]
    return _gain([grades.get(id, 0.0) for id in ids[:depth]]) / _gain(ideal)


def _gain(grades: Sequence[float]) -> float:
    return float(sum(grade / np.log2(place + 2) for place, grade in enumerate(grades)))
