"""What the numpy kernels accept: the same arrays, and the same errors, as the C++ ones (binding*.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 128  # postings per block
TILE = 16  # the lists' centroid codes are padded to a multiple of it
INT8_STEP = 64  # int8 rows and stages come in multiples of so many dims
MAX_RESCORE_DIMS = 2048  # 2048 * 128 * 8000 still fits the 32-bit sums of an int8 stage


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


def check_finite(array: Array | np.float32, name: str) -> None:
    """Raise ValueError where a number is NaN or infinite."""
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")


def check_scale(value: float, name: str, *, zero: bool = False) -> None:
    """Raise ValueError unless value is a float32 above 0 (or at least 0) and finite."""
    with np.errstate(over="ignore"):
        number = np.float32(value)
    if not np.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be finite and {'>=' if zero else '>'} 0, got {value}")


def check_count(value: int, name: str) -> None:
    """Raise TypeError for another type, ValueError below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")


def check_margin(value: float, name: str) -> None:
    """Raise ValueError for NaN and below 0; infinity is no cut."""
    if not value >= 0:
        raise ValueError(f"{name} must be >= 0, got {value}")


def check_rows(rows: Array, n: int) -> None:
    """Raise IndexError where a row is not one of n."""
    bad = np.flatnonzero((rows < 0) | (rows >= n))
    if len(bad):
        raise IndexError(f"rows[{bad[0]}] = {rows[bad[0]]} is not one of the {n} rows")


def check_lists(offsets: Array, counts: Array, rows: Array, n: int) -> None:
    """Raise ValueError where a list's postings are not whole blocks of those stored, IndexError for a row beyond n."""
    total = len(rows)
    for number, count in enumerate(counts.tolist()):
        start, end = int(offsets[number]), int(offsets[number + 1])
        if start % BLOCK or not 0 <= start <= end <= total or not 0 <= count <= end - start:
            raise ValueError(
                f"list {number} is damaged: postings {start} to {end}, count {count}, of {total} stored "
                f"(a list must start at a multiple of {BLOCK})"
            )
        bad = np.flatnonzero(rows[start : start + count] >= n)
        if len(bad):
            raise IndexError(f"row {rows[start + bad[0]]} of list {number} is not one of the {n} rows")
