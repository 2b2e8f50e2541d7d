"""Quality against the share of documents that is scored: what a tree is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Leaves = NDArray[np.integer[Any]]

TOP = 10
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)
_BLOCK = 256
_BOUNDS = 250


@dataclass(frozen=True, eq=False)
class Curve:
    """Means over queries as leaves are visited, best first, step by step. share: documents scored by documents, one in
    two leaves counts twice. ndcg: nDCG@10 of the judged documents. recall: share of the exact 10 best found. All f64
    [steps]; `exact` is the nDCG@10 of scoring everything."""

    share: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    recall: NDArray[np.float64]
    exact: float

    def at(self, share: float) -> tuple[float, float]:
        """(nDCG@10, recall) where this share is scored, between the two nearest visits; below the first step, its
        values in proportion."""
        shares = np.concatenate(([0.0], self.share))
        ndcg, recall = (float(np.interp(share, shares, np.append(0.0, each))) for each in (self.ndcg, self.recall))
        return ndcg, recall


def curve(
    documents: F32,
    queries: F32,
    relevant: list[dict[int, float]],
    filed: Leaves,
    leaf_scores: F32,
    *,
    by_margin: bool = False,
) -> Curve:
    """The curve of one way to file and to visit: as many leaves for every query or, by margin, all those whose score
    is within a bound of the query's best, so that sure queries visit few and others many.

    documents f32 [n, d] and queries f32 [q, d]: scored by inner product. relevant: row → grade over 0, of each query.
    filed int [n] or [n, e]: leaves of each row, -1 none. leaf_scores f32 [q, leaves]: the higher the sooner visited,
    -inf never.
    """
    filed = filed[:, None] if filed.ndim == 1 else filed
    count, leaves = len(queries), leaf_scores.shape[1]
    sizes = np.bincount(filed[filed >= 0].ravel(), minlength=leaves)
    visits, steps = _margin_visits(leaf_scores) if by_margin else _ranked_visits(leaf_scores)
    totals = np.zeros((3, steps))
    exact = 0.0
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        for scores, when, judged in zip(queries[block] @ documents.T, visits[block], relevant[block], strict=True):
            totals[0] += np.cumsum(np.bincount(when, sizes, steps + 1)[:steps])
            when_found = np.append(when, steps)[filed].min(axis=1)  # steps: where a row is not filed
            gained, whole = _gains(scores, when_found, judged, steps)
            totals[1] += gained
            exact += whole
            best = np.argpartition(-scores, min(TOP, len(scores)) - 1)[:TOP]
            totals[2] += np.cumsum(np.bincount(when_found[best], minlength=steps + 1)[:steps]) / len(best)
    share = totals[0] / (count * len(documents))
    return Curve(share, totals[1] / count, totals[2] / count, float(exact / count))


def _ranked_visits(leaf_scores: F32) -> tuple[NDArray[np.int32], int]:
    """(step at which each leaf is visited int32 [q, leaves], steps): one leaf at a time, the best first."""
    order = np.argsort(-leaf_scores, axis=1, kind="stable")
    visits = np.empty(order.shape, np.int32)
    np.put_along_axis(visits, order, np.arange(order.shape[1], dtype=np.int32)[None], axis=1)
    return visits, order.shape[1]


def _margin_visits(leaf_scores: F32) -> tuple[NDArray[np.int32], int]:
    """The same, with all leaves at once that are within a bound of the best; more at each bound."""
    margins = leaf_scores.max(axis=1, keepdims=True) - leaf_scores
    shares = np.linspace(0, 1, _BOUNDS) ** 2  # finer where few leaves are visited
    bounds = np.unique(np.quantile(margins[np.isfinite(margins)], shares))
    return np.searchsorted(bounds, margins).astype(np.int32), len(bounds)


def _gains(
    scores: F32, when_found: NDArray[np.int32], judged: dict[int, float], steps: int
) -> tuple[NDArray[np.float64], float]:
    """(nDCG@10 of one query after each step [steps], that of scoring everything)."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    ideal = float(np.sort(list(judged.values()))[::-1][:TOP] @ discounts[: min(TOP, len(judged))])
    gained, whole = np.zeros(steps), 0.0
    for row, grade in judged.items():
        ahead_of = scores > scores[row]
        ahead_of[:row] |= scores[:row] == scores[row]  # ties in the order of the rows, as searches break them
        above = np.flatnonzero(ahead_of)
        if len(above) < TOP:
            whole += grade * discounts[len(above)]
        ahead = np.cumsum(np.bincount(when_found[above], minlength=steps + 1)[:steps])
        shown = (ahead < TOP) & (np.arange(steps) >= when_found[row])
        gained[shown] += grade * discounts[ahead[shown]]
    return gained / ideal, whole / ideal
