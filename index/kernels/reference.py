"""The meaning of band_scores, in numpy. The C++ kernel gives the same results bit by bit.

The order of additions decides the last bit, so it is fixed here and followed there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels.checks import check_array, check_rows

LANES = 16  # partial sums of band_scores
_ROWS_PER_STEP = 4096  # bounds the memory of band_scores and of int8 stages


def band_scores(
    query: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    rows: npt.NDArray[np.int64],
    lo: int,
    hi: int,
    metric: str,
    scores: npt.NDArray[np.float64],
    norms: npt.NDArray[np.float64] | None = None,
) -> None:
    """Add the part of each row's score that dimensions lo to hi-1 give; nothing outside them is read.

    query [d], vectors [n, d] (a memory map is read in place), rows [m] in any order, scores [m] changed in place:
    "dot" adds <q, x> and "l2" subtracts ||q - x||^2 over the band, in float64. norms [m], if given, gains ||x||^2 of
    the band. Dimension lo + 16 i + j is added to lane j, and the 16 lanes pairwise at the end.

    Raises IndexError for a row outside 0..n-1 (before anything is changed), ValueError for a band outside 0..d or an
    unknown metric, TypeError and ValueError for wrong dtypes, shapes or layout.
    """
    if metric not in ("dot", "l2"):
        raise ValueError(f"metric must be 'dot' or 'l2', got {metric!r}")
    check_array(vectors, "vectors", [np.float32, np.float16], (-1, -1))
    n, dims = vectors.shape
    check_array(query, "query", [np.float32], (dims,))
    check_array(rows, "rows", [np.int64], (-1,))
    check_array(scores, "scores", [np.float64], rows.shape, writeable=True)
    if norms is not None:
        check_array(norms, "norms", [np.float64], rows.shape, writeable=True)
    if not 0 <= lo <= hi <= dims:
        raise ValueError(f"the band must satisfy 0 <= lo <= hi <= {dims}, got {lo} to {hi}")
    check_rows(rows, n)
    band = query[lo:hi].astype(np.float64)
    for step in steps(len(rows)):
        values = np.asarray(vectors[rows[step], lo:hi]).astype(np.float64)
        if metric == "l2":
            difference = band - values
            scores[step] -= sum_by_lanes(difference * difference)
        else:
            scores[step] += sum_by_lanes(values * band)
        if norms is not None:
            norms[step] += sum_by_lanes(values * values)


def steps(n: int) -> Iterator[slice]:
    """0 to n in parts that bound the memory of what is done to each."""
    return (slice(start, min(n, start + _ROWS_PER_STEP)) for start in range(0, n, _ROWS_PER_STEP))


def sum_by_lanes(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums [m] of terms [m, width], in the one order that every instruction set follows."""
    m, width = terms.shape
    lanes = np.zeros((m, LANES))
    for start in range(0, width, LANES):
        part = terms[:, start : start + LANES]
        lanes[:, : part.shape[1]] += part
    half = LANES // 2
    while half:
        lanes[:, :half] += lanes[:, half : 2 * half]
        half //= 2
    return lanes[:, 0]
