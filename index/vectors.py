"""Checks shared by everything that reads stored vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput

Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]


def check_vectors(vectors: npt.NDArray[Any]) -> tuple[int, int]:
    """Return (rows, dims) of float32 or float16 [n, d], row-major, in memory or memory-mapped."""
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise InvalidInput(f"vectors must have shape [n, d], got {vectors.shape}")
    if vectors.dtype not in (np.float32, np.float16):
        raise InvalidInput(f"vectors must be float32 or float16, got {vectors.dtype}")
    if not vectors.flags.c_contiguous:
        raise InvalidInput("vectors must be row-major (C-contiguous): pass np.ascontiguousarray(vectors)")
    return vectors.shape[0], vectors.shape[1]


def check_query(query: npt.NDArray[Any], dims: int) -> npt.NDArray[np.float32]:
    """Return `query` as contiguous float32 [dims]; raise InvalidInput where it has another shape."""
    if query.shape != (dims,):
        raise InvalidInput(f"query must have shape ({dims},), got {query.shape}")
    return np.ascontiguousarray(query, dtype=np.float32)


def check_allowed(allowed: npt.NDArray[Any] | None, rows: int) -> npt.NDArray[np.bool_] | None:
    """Return the mask, or None; it must be bool [rows]."""
    if allowed is not None and (allowed.shape != (rows,) or allowed.dtype != np.bool_):
        raise InvalidInput(f"allowed must be bool of shape ({rows},), got {allowed.dtype} of {allowed.shape}")
    return allowed
