"""The meaning of every kernel, in numpy. The C++ kernels give the same results bit by bit.

Where the order of additions decides the last bit, it is fixed here and followed there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels.checks import BLOCK, Array, check_array, check_finite, check_rows, check_scan

PADDING = np.uint32(0xFFFFFFFF)  # the row of a padding posting
LANES = 16  # partial sums of band_scores
_ROWS_PER_STEP = 4096  # bounds the memory of band_scores and encode


def scan_lists(
    codes: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int32],
    rows: npt.NDArray[np.uint32],
    lists: npt.NDArray[np.int32],
    list_bias: npt.NDArray[np.float32],
    lut: npt.NDArray[np.uint8],
    scale: float,
    base: float,
    posting_bias: npt.NDArray[np.float32] | None,
    allowed: npt.NDArray[np.uint8] | npt.NDArray[np.bool_] | None,
    keep: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], int]:
    """The `keep` best rows of some posting lists, by the sum of their 4-bit codes' table entries.

    A posting's estimate is, in float32 and in this order, `(list_bias + base) + scale * sum_m lut[m, code_m]`
    (`+ posting_bias`), plus 0 so that -0 becomes 0; a NaN estimate never comes back. A row found several times counts
    once, with its best estimate. Order: estimate descending, then row ascending; that order also decides at the cut.

    codes [blocks, M/2, 32], offsets [nlist+1], counts [nlist], rows [32*blocks], posting_bias [32*blocks] are as in
    Postings; lists [p] are the lists to visit and list_bias [p] their score; lut [M, 16], M even and at most 256;
    allowed [n_rows]: rows where it is 0 are skipped.

    Returns (rows int64 [m <= keep], estimates float32 [m], number of postings scanned: 0 for keep 0).
    Raises IndexError for an unknown list, and for a row beyond `allowed` that is good enough for the shortlist;
    TypeError and ValueError for wrong dtypes, shapes, a scale or base or list_bias that is not finite.
    """
    check_scan(codes, offsets, counts, rows, lists, list_bias, lut, keep)
    if posting_bias is not None:
        check_array(posting_bias, "posting_bias", [np.float32], rows.shape)
    if allowed is not None:
        check_array(allowed, "allowed", [np.uint8, np.bool_], (-1,))
    scale32, base32 = np.float32(scale), np.float32(base)
    check_finite(scale32, "scale")
    check_finite(base32, "base")
    for bias in list_bias:
        check_finite(bias + base32, "list_bias + base")
    if keep == 0:
        return np.empty(0, np.int64), np.empty(0, np.float32), 0
    found_rows, found_estimates, scanned = [np.empty(0, np.uint32)], [np.empty(0, np.float32)], 0
    for number, bias in zip(lists.tolist(), list_bias, strict=True):
        start, count = int(offsets[number]), int(counts[number])
        span = slice(start, start + count)
        estimates = (bias + base32) + scale32 * _sums(codes, lut, start, count).astype(np.float32)
        if posting_bias is not None:
            estimates = estimates + posting_bias[span]
        found_rows.append(rows[span])
        found_estimates.append(estimates + np.float32(0))
        scanned += count
    best_rows, best = _shortlist(np.concatenate(found_rows), np.concatenate(found_estimates), allowed, keep)
    return best_rows, best, scanned


def _sums(codes: Array, lut: Array, start: int, count: int) -> npt.NDArray[np.int64]:
    blocks = codes[start // BLOCK : (start + count + BLOCK - 1) // BLOCK]
    pairs = np.arange(codes.shape[1])[:, None]
    table = lut.astype(np.int64)
    per_pair = table[2 * pairs, blocks & 15] + table[2 * pairs + 1, blocks >> 4]
    sums: npt.NDArray[np.int64] = per_pair.sum(axis=1).reshape(-1)[:count]
    return sums


def _shortlist(
    rows: Array, estimates: Array, allowed: Array | None, keep: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    real = (rows != PADDING) & ~np.isnan(estimates)
    rows, estimates = rows[real].astype(np.int64), estimates[real]
    if allowed is not None:
        if len(rows) and rows.max() >= len(allowed):
            raise IndexError(f"row {rows.max()} of the postings is beyond allowed, which has {len(allowed)} rows")
        passed = allowed[rows] != 0
        rows, estimates = rows[passed], estimates[passed]
    order = np.lexsort((rows, -estimates))
    rows, estimates = rows[order], estimates[order]
    _, first = np.unique(rows, return_index=True)  # twins go before the cut
    first = np.sort(first)[:keep]
    return rows[first], estimates[first]


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
    for step in _steps(len(rows)):
        values = np.asarray(vectors[rows[step], lo:hi]).astype(np.float64)
        if metric == "l2":
            difference = band - values
            scores[step] -= _sum_by_lanes(difference * difference)
        else:
            scores[step] += _sum_by_lanes(values * band)
        if norms is not None:
            norms[step] += _sum_by_lanes(values * values)


def _steps(n: int) -> Iterator[slice]:
    return (slice(start, min(n, start + _ROWS_PER_STEP)) for start in range(0, n, _ROWS_PER_STEP))


def _sum_by_lanes(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
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


def encode(residuals: npt.NDArray[np.float32], codebook: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Number of the nearest of 16 centres for each block of each row: uint8 [n, M], ties to the lowest number.

    residuals [n, M * s], codebook [M, 16, s]. Squared distances are float32, added dimension by dimension.
    Raises TypeError and ValueError for wrong dtypes, shapes or layout.
    """
    check_array(codebook, "codebook", [np.float32], (-1, 16, -1))
    blocks, centres, width = codebook.shape
    check_array(residuals, "residuals", [np.float32], (-1, blocks * width))
    codes = np.empty((len(residuals), blocks), np.uint8)
    for step in _steps(len(residuals)):
        x = residuals[step].reshape(-1, blocks, 1, width)
        distance = np.zeros((len(x), blocks, centres), np.float32)
        for dim in range(width):
            difference = x[..., dim] - codebook[None, :, :, dim]
            distance += difference * difference
        codes[step] = distance.argmin(axis=2)
    return codes


def pack(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Codes [n, M], n a multiple of 32, as the blocks [n/32, ceil(M/2), 32] that scan_lists reads.

    Byte [b, p, j] holds sub-quantiser 2p of row 32 b + j in its low half and 2p + 1 in its high half (0 if M is odd).
    Raises ValueError for a code above 15 or another n.
    """
    check_array(codes, "codes", [np.uint8], (-1, -1))
    n, subquantisers = codes.shape
    if n % BLOCK:
        raise ValueError(f"codes must have a multiple of 32 rows, got {n}")
    if codes.size and codes.max() > 15:
        raise ValueError("codes must be 0 to 15, got a larger one")
    even = np.pad(codes, ((0, 0), (0, subquantisers % 2)))
    blocks = (even[:, 0::2] | (even[:, 1::2] << 4)).reshape(n // BLOCK, BLOCK, -1)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1))
