"""What the numpy reference accepts: the same arrays, and the same errors, as the C++ kernels (binding.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 32  # postings per block
MAX_SUBQUANTISERS = 256  # 256 * 255 still fits 16-bit sums


def check_array(
    array: Array, name: str, dtypes: Sequence[type[np.generic]], shape: Sequence[int], *, writeable: bool = False
) -> None:
    """Raise TypeError for another dtype, ValueError for another shape (-1 = any length) or layout."""
    if not isinstance(array, np.ndarray) or array.dtype not in [np.dtype(one) for one in dtypes]:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be {' or '.join(np.dtype(one).name for one in dtypes)}, got {got}")
    if array.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, array.shape, strict=True)):
        want = ", ".join("any" if length < 0 else str(length) for length in shape)
        raise ValueError(f"{name} must have shape ({want}), got {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous")
    if not array.flags.aligned:
        raise ValueError(f"{name} must be aligned")
    if writeable and not array.flags.writeable:
        raise ValueError(f"{name} must be writeable")


def check_finite(value: np.float32, name: str) -> None:
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_scan(
    codes: Array, offsets: Array, counts: Array, rows: Array, lists: Array, list_bias: Array, lut: Array, keep: int
) -> None:
    check_array(codes, "codes", [np.uint8], (-1, -1, BLOCK))
    pairs, total = codes.shape[1], codes.shape[0] * BLOCK
    if 2 * pairs > MAX_SUBQUANTISERS:
        raise ValueError(
            f"codes must have at most {MAX_SUBQUANTISERS} sub-quantisers, got {2 * pairs}: use more dims_per_block"
        )
    check_array(counts, "counts", [np.int32], (-1,))
    check_array(offsets, "offsets", [np.int64], (counts.shape[0] + 1,))
    check_array(rows, "rows", [np.uint32], (total,))
    check_array(lists, "lists", [np.int32], (-1,))
    check_array(list_bias, "list_bias", [np.float32], (lists.shape[0],))
    check_array(lut, "lut", [np.uint8], (2 * pairs, 16))
    if keep < 0:
        raise ValueError(f"keep must be >= 0, got {keep}")
    for i, number in enumerate(lists.tolist()):
        check_list(offsets, counts, total, i, number)


def check_list(offsets: Array, counts: Array, total: int, i: int, number: int) -> None:
    if not 0 <= number < len(counts):
        raise IndexError(f"lists[{i}] = {number} is not one of the {len(counts)} lists")
    start, end, count = int(offsets[number]), int(offsets[number + 1]), int(counts[number])
    if start % BLOCK or not 0 <= start <= end <= total or not 0 <= count <= end - start:
        raise ValueError(
            f"list {number} is damaged: postings {start} to {end}, count {count}, of {total} stored "
            "(a list must start at a multiple of 32)"
        )


def check_rows(rows: Array, n: int) -> None:
    bad = np.flatnonzero((rows < 0) | (rows >= n))
    if len(bad):
        raise IndexError(f"rows[{bad[0]}] = {rows[bad[0]]} is not one of the {n} rows")
