"""Rescoring rows: nested prefixes as bytes, a fraction of the stored vectors, for the first stages of a funnel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index.quantize import Float32, nested_prefix, squared_lengths
from nestvec.index.vectors import Vectors, check_vectors

if TYPE_CHECKING:
    from nestvec.index.lists.model import ListModel

STEP = 64
"""Dims of rescoring rows come in multiples of so many: a cache line."""

MAX_DIMS = 2048
"""More could overflow the 32-bit sums of a stage."""

_ROOM = 1.05  # rows that the sample did not show may be a little larger
_LEVELS = 127
_BLOCK_FLOATS = 1 << 20  # 4 MiB of a block's prefix in float32


@dataclass(frozen=True, eq=False, slots=True)
class RescoreRows:
    """codes: uint8 [n, rd], prefix number / its dimension's step + 128. bias: float32 [n], -|x|^2 for "l2", or None."""

    codes: npt.NDArray[np.uint8]
    bias: Float32 | None

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.codes.nbytes + (0 if self.bias is None else self.bias.nbytes)


def rescore_scale(prefix: Float32, dims: int) -> Float32:
    """The step of each of `dims` dimensions: the largest number that a sample of prefixes [n, <= dims] holds there,
    and a little more, over 127; 1 where there is none. float32 [dims].
    """
    scale = np.ones(dims, np.float32)
    largest = np.abs(prefix).max(axis=0, initial=0.0) * np.float32(_ROOM / _LEVELS)
    held = scale[: prefix.shape[1]]
    np.copyto(held, largest, where=largest > 0.0)
    return scale


def rescore_rows(model: ListModel, vectors: Vectors) -> RescoreRows:
    """The rescoring rows of float32|float16 [n, dims]: z of rescore_dims / rescore_scale, rounded, +-127 at most.

    Each row depends on itself alone, so a long array may be coded in pieces. Raises InvalidInput where the model was
    trained without rescoring rows or on other dims.
    """
    count, dims = check_vectors(vectors)
    size = model.config.rescore_dims
    if dims != model.dims or size == 0:
        raise InvalidInput(
            f"the model was trained on {model.dims} dims with rescore_dims={size}, got vectors of {dims}: "
            "use vectors of that length, and a model with rescoring rows"
        )
    codes = np.full((count, size), _LEVELS + 1, np.uint8)
    bias = np.empty(count, np.float32) if model.metric == "l2" else None
    step = max(1, _BLOCK_FLOATS // max(dims, size))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        squares = squared_lengths(vectors[block])
        numbers = nested_prefix(vectors[block], size, squares)
        covered = numbers.shape[1]
        numbers /= model.rescore_scale[:covered]
        np.clip(np.rint(numbers, out=numbers), -_LEVELS, _LEVELS, out=numbers)
        numbers += np.float32(_LEVELS + 1)
        codes[block, :covered] = numbers
        if bias is not None:
            bias[block] = -squares
    return RescoreRows(codes, bias)
