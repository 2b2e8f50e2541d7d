"""The one order of results: score descending, then row ascending."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def top_positions(scores: Scores, rows: Rows, k: int) -> npt.NDArray[np.intp]:
    """Positions of the best min(k, m) of m scored rows, best first; equal scores go by row."""
    if k < 1:
        raise InvalidInput(f"k must be >= 1, got {k}")
    positions = np.arange(scores.shape[0])
    if scores.shape[0] > k:
        # Everything equal to the k-th score must stay in, or ties at the cut would not go by row.
        kth = np.partition(scores, scores.shape[0] - k)[scores.shape[0] - k]
        positions = np.flatnonzero(scores >= kth)
    order = np.lexsort((rows[positions], -scores[positions]))[:k]
    return positions[order]


def top_k(scores: Scores, rows: Rows, k: int) -> tuple[Rows, Scores]:
    """The best min(k, m) rows and their scores, score descending, then row ascending. k >= 1, no NaN."""
    best = top_positions(scores, rows, k)
    return rows[best], scores[best]
