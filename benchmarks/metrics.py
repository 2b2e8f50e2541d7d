"""Truth and figures: from vectors and raw answers to recall, queries per second and percentiles.

Scores are float64 here, higher is better: dot <q,x>, l2 -||q-x||^2, cosine <q,x>/(|q||x|).
"""

from __future__ import annotations

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


def kth_scores(base: Vectors, queries: Vectors, truth: Rows, metric: Metric) -> Scores:
    """The worst score f64[q] among each query's true neighbours: what an answer must reach to count."""
    return np.array([score_rows(base, query, rows, metric).min() for query, rows in zip(queries, truth, strict=True)])


def recall(base: Vectors, queries: Vectors, found: Rows, kth: Scores, metric: Metric) -> float:
    """Share of `found` i64[q, k] (-1: no answer) that scores at least `kth` f64[q]; ties count, repeats do not.

    A score counts from 1e-6 (relative) below the k-th: the distance-based recall of ann-benchmarks.
    """
    hits = 0
    for query, rows, bar in zip(queries, found, kth, strict=True):
        distinct = np.unique(rows[rows >= 0])
        scores = score_rows(base, query, distinct, metric)
        hits += int((scores >= bar - RELATIVE_TOLERANCE * abs(bar)).sum())
    return hits / found.size


def percentile_us(seconds: Scores, percent: float) -> float:
    """A percentile of per-query times, in microseconds."""
    return float(np.percentile(seconds, percent)) * 1e6
