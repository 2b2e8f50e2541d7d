"""The two coordinate systems of a vector: the user's own, and the stored form that is searched.

Stored form: float32, scaled to unit length under cosine (the norm is kept beside it), multiplied by the generation's
rotation if it has one, in the collection's dtype. A rotation keeps every dot product and distance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestvec.engine.schema import CollectionConfig, Dtype, Metric
from nestvec.errors import InvalidInput

MAX_NORM = 1e18
_FLOAT16_MAX = 65504.0
_PLAIN_SQUARES = (1e-20, 1e9)
"""Squared lengths whose float32 sum leaves no doubt: the vector is finite, not zero, and its length fits any dtype."""
_ONE_THREAD = 400_000  # OpenBLAS uses one thread for a matrix of fewer numbers than 460,800

F32 = NDArray[np.float32]

_F32 = np.dtype(np.float32)


def as_matrix(vectors: ArrayLike, dims: int) -> F32:
    """f32 [n, dims], C-contiguous; InvalidInput where the shape or the type is another one."""
    if isinstance(vectors, np.ndarray) and vectors.dtype == _F32 and vectors.ndim == 2 and vectors.shape[1] == dims:
        return np.ascontiguousarray(vectors)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a vector holds {dims} numbers: {error}") from None
    if np.iscomplexobj(vectors):
        raise InvalidInput("a vector holds real numbers, got complex ones")
    if matrix.ndim != 2 or matrix.shape[1] != dims:
        shape = matrix.shape[1] if matrix.ndim == 2 else f"an array of shape {matrix.shape[1:]}"
        raise InvalidInput(f"the collection has vectors of {dims} dims, got {shape}")
    return matrix


def bad_rows(matrix: F32, metric: Metric, dtype: Dtype = "float32") -> dict[int, str]:
    """Row -> why it cannot be stored, for the rows of f32 [n, dims] that cannot."""
    reasons: dict[int, str] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        if len(matrix) == 1 and _PLAIN_SQUARES[0] < matrix[0].dot(matrix[0]) < _PLAIN_SQUARES[1]:
            return reasons
        squares = np.einsum("ij,ij->i", matrix, matrix)
    if ((squares > _PLAIN_SQUARES[0]) & (squares < _PLAIN_SQUARES[1])).all():
        return reasons
    norms = row_norms(matrix)
    for row in np.flatnonzero(~(norms <= MAX_NORM)):
        finite = bool(np.isfinite(matrix[row]).all())
        reasons[int(row)] = (
            f"the vector's length is over {MAX_NORM:g}"
            if finite
            else "the vector holds NaN, infinity or a number beyond float32"
        )
    if metric == "cosine":
        for row in np.flatnonzero(norms == 0):
            reasons[int(row)] = "a zero vector has no direction, so no cosine"
    elif dtype == "float16":
        # A rotation may gather a whole vector's length in one number, so the length is what must fit.
        for row in np.flatnonzero(norms > _FLOAT16_MAX):
            reason = f"the vector's length is beyond float16 (at most {_FLOAT16_MAX:g}); use dtype float32"
            reasons.setdefault(int(row), reason)
    return reasons


def row_norms(matrix: F32) -> NDArray[np.float64]:
    """Euclidean lengths in float64, computed in blocks of bounded memory."""
    norms = np.empty(len(matrix))
    for start in range(0, len(matrix), 4096):
        block = matrix[start : start + 4096].astype(np.float64)
        norms[start : start + 4096] = np.sqrt(np.einsum("ij,ij->i", block, block))
    return norms


def to_unit(matrix: F32, config: CollectionConfig) -> tuple[F32, F32 | None]:
    """(vectors to score, norms f32 [n]) under cosine; (the same vectors, None) otherwise."""
    if config.metric != "cosine":
        return matrix, None
    norms = row_norms(matrix)
    unit: F32 = (matrix / norms[:, None]).astype(np.float32)
    return unit, norms.astype(np.float32)


def rotate(matrix: F32, rotation: F32 | None) -> F32:
    """Rows times the rotation [dims, dims]."""
    if rotation is None:
        return matrix
    return np.ascontiguousarray(matrix @ rotation, dtype=np.float32)


def to_stored(matrix: F32, config: CollectionConfig, rotation: F32 | None) -> tuple[NDArray[Any], F32 | None]:
    """User's f32 [n, dims] -> (stored form in the collection's dtype, norms or None)."""
    unit, norms = to_unit(matrix, config)
    return np.ascontiguousarray(rotate(unit, rotation), dtype=config.dtype), norms


def to_user(stored: NDArray[Any], norms: F32 | None, rotation: F32 | None) -> F32:
    """Stored form -> the user's coordinates and scale, float32 (accurate to the stored dtype)."""
    vectors = stored.astype(np.float64)
    if rotation is not None:
        vectors = vectors @ rotation.T.astype(np.float64)
    if norms is not None:
        vectors = vectors * norms[:, None]
    return vectors.astype(np.float32)


def prepare_queries(vectors: ArrayLike, config: CollectionConfig) -> F32:
    """Checked queries f32 [b, dims], of unit length under cosine, not yet rotated."""
    matrix = as_matrix(vectors, config.dims)
    for row, reason in bad_rows(matrix, config.metric).items():
        raise InvalidInput(f"query {row}: {reason}")
    if config.metric != "cosine":
        return matrix
    unit = np.empty_like(matrix)
    for row, query in enumerate(matrix):
        unit[row] = unit_query(query)
    return unit


def unit_query(query: F32) -> F32:
    """f32 [dims] at length 1, by way of float64; NaN where it has no direction, or bad_rows would refuse it.

    Alone or in a batch, the same query gives the same bits.
    """
    wide = query.astype(np.float64)
    square = float(wide.dot(wide))
    if not 0.0 < square <= MAX_NORM**2:
        return np.full_like(query, np.nan)
    wide /= math.sqrt(square)
    return wide.astype(np.float32)


def rotate_query(query: F32, rotation: F32) -> F32:
    """f32 [dims] times the rotation, in products so small that BLAS wakes no other thread.

    Waking one costs more than it saves, and on a busy machine milliseconds.
    """
    step = max(1, _ONE_THREAD // len(query))
    rotated: F32 = np.dot(query[:step], rotation[:step])
    for start in range(step, len(query), step):
        rotated += np.dot(query[start : start + step], rotation[start : start + step])
    return rotated


def rotate_queries(queries: F32, rotation: F32 | None) -> F32:
    """Rows f32 [b, dims] times the rotation, one by one: a query in a batch gets the bits that it gets alone."""
    if rotation is None or not len(queries):
        return queries
    return np.stack([rotate_query(query, rotation) for query in queries])
