"""The two coordinate systems of a vector: the user's own, and the stored form that is searched.

Stored form: float32, scaled to unit length under cosine (the norm is kept beside it), put through the generation's
`Turn` if it has one, in the collection's dtype: a rotation, which keeps every dot product and distance, and a learned
adapter, which does not: it is there to make better ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestvec.engine.schema import CollectionConfig, Dtype, Metric
from nestvec.errors import InvalidInput
from nestvec.index.ehi.router import Layer, Residual
from nestvec.index.ehi.tree import adapt

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


@dataclass(frozen=True, eq=False)
class Turn:
    """What a generation does to every vector before it is stored or searched: a rotation f32 [dims, dims], then an
    adapter, after which the vector gets length 1 again if `unit`. None: nothing."""

    rotation: F32 | None = None
    adapter: Residual | None = None
    unit: bool = False

    @property
    def plain(self) -> bool:
        """Whether it leaves vectors as they are."""
        return self.rotation is None and self.adapter is None

    def rows(self, matrix: F32) -> F32:
        """Rows f32 [n, dims], all at once."""
        if self.rotation is not None:
            matrix = np.ascontiguousarray(matrix @ self.rotation, dtype=np.float32)
        return adapt(self.adapter, matrix, unit=self.unit)

    def query(self, query: F32) -> F32:
        """One query f32 [dims], in products so small that BLAS wakes no other thread.

        Waking one costs more than it saves, and on a busy machine milliseconds.
        """
        if self.rotation is not None:
            query = _small_products(self.rotation, query)
        if self.adapter is None:
            return query
        hidden = np.maximum(_layer(self.adapter.first, query), np.float32(0))
        adapted = query + _layer(self.adapter.second, hidden)
        if not self.unit:
            return adapted
        unit = unit_query(adapted)
        return unit if np.isfinite(unit).all() else query

    def queries(self, queries: F32) -> F32:
        """Rows f32 [b, dims] one by one: a query in a batch gets the bits that it gets alone."""
        if self.plain or not len(queries):
            return queries
        return np.stack([self.query(query) for query in queries])


PLAIN = Turn()


def _small_products(matrix: F32, query: F32) -> F32:
    """query @ matrix."""
    step = max(1, _ONE_THREAD // matrix.shape[1])
    result: F32 = np.dot(query[:step], matrix[:step])
    for start in range(step, len(query), step):
        result += np.dot(query[start : start + step], matrix[start : start + step])
    return result


def _layer(layer: Layer, x: F32) -> F32:
    step = max(1, _ONE_THREAD // len(x))
    weights = layer.weights
    parts = [np.dot(weights[start : start + step], x) for start in range(0, len(weights), step)]
    result: F32 = np.concatenate(parts) + layer.bias
    return result


def to_stored(matrix: F32, config: CollectionConfig, turn: Turn) -> tuple[NDArray[Any], F32 | None]:
    """User's f32 [n, dims] -> (stored form in the collection's dtype, norms or None)."""
    unit, norms = to_unit(matrix, config)
    return np.ascontiguousarray(turn.rows(unit), dtype=config.dtype), norms


def to_user(stored: NDArray[Any], norms: F32 | None, turn: Turn) -> F32:
    """Stored form -> the user's coordinates and scale, float32 (accurate to the stored dtype).

    What an adapter did stays: it has no inverse, and the vector before it is not kept.
    """
    vectors = stored.astype(np.float64)
    if turn.rotation is not None:
        vectors = vectors @ turn.rotation.T.astype(np.float64)
    if norms is not None:
        vectors = vectors * norms[:, None]
    return vectors.astype(np.float32)


def prepare_queries(vectors: ArrayLike, config: CollectionConfig) -> F32:
    """Checked queries f32 [b, dims], of unit length under cosine, not yet rotated."""
    matrix = as_matrix(vectors, config.dims)
    if config.metric != "cosine":
        _check_queries(matrix, config.metric)
        return matrix
    wide = matrix.astype(np.float64)
    squares = [float(row.dot(row)) for row in wide]  # each row's own product, as `unit_query` has it
    if not all(_PLAIN_SQUARES[0] < square < _PLAIN_SQUARES[1] for square in squares):
        _check_queries(matrix, config.metric)
    wide /= np.array([math.sqrt(square) for square in squares])[:, None]
    return wide.astype(np.float32)


def _check_queries(matrix: F32, metric: Metric) -> None:
    for row, reason in bad_rows(matrix, metric).items():
        raise InvalidInput(f"query {row}: {reason}")


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
