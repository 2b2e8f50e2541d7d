"""Posting lists: per partition, the rows filed there and their 4-bit codes, in blocks of 128."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged
from nestvec.index import kernels

BLOCK = 128
"""Postings in a block; every list is padded to whole blocks."""

PADDING = 0xFFFFFFFF
"""The row number of a padding slot."""

_BIAS_STEPS = 255
_PACK_BLOCKS = 256  # blocks packed at a time: bounds the unpacked copy to a few MiB


@dataclass(frozen=True, eq=False, slots=True)
class Postings:
    """All lists of one segment, end to end.

    offsets: int64 [lists + 1], in postings, multiples of 128. counts: int32 [lists], without padding.
    rows: uint32 [total], ascending in each list, then PADDING. codes: uint8 [total/128, pairs, 128], byte [b, p, j]
    holding sub-quantiser 2p of posting 128*b+j in the low nibble and 2p+1 in the high one (M padded to even).
    For "l2" one more pair holds a byte v of each posting, its share of the score that no query changes:
    ||c||^2 - ||x||^2 ~= bias_top - bias_step * v. For "dot" both are 0.
    """

    n_rows: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]
    rows: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]
    bias_top: float
    bias_step: float

    @property
    def lists(self) -> int:
        """Number of posting lists."""
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.offsets, self.counts, self.rows, self.codes))


def build_postings(
    n_rows: int,
    n_lists: int,
    lists: npt.NDArray[np.int32],
    rows: npt.NDArray[np.uint32],
    codes: npt.NDArray[np.uint8],
    bias: npt.NDArray[np.float32] | None,
) -> Postings:
    """File N postings by (list, row). lists, rows, bias: [N], bias None for "dot"; codes: uint8 [N, M], 0..15 each."""
    counts = np.bincount(lists, minlength=n_lists).astype(np.int32)
    padded = (counts.astype(np.int64) + BLOCK - 1) // BLOCK * BLOCK
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(padded)))
    order = np.argsort(lists.astype(np.int64) * max(1, n_rows) + rows)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    slots = np.arange(order.shape[0]) + np.repeat(offsets[:-1] - starts, counts)
    total = int(offsets[-1])
    filed = np.full(total, PADDING, np.uint32)
    filed[slots] = rows[order]
    source = np.full(total, -1, np.int64)
    source[slots] = order
    top, step, steps = _quantise_bias(bias)
    return Postings(n_rows, offsets, counts, filed, _pack(codes, steps, source), top, step)


def _quantise_bias(bias: npt.NDArray[np.float32] | None) -> tuple[float, float, npt.NDArray[np.uint8] | None]:
    """(top, step, bytes [N]): the biases in 256 steps down from the greatest; top and step are float32 numbers."""
    if bias is None:
        return 0.0, 0.0, None
    top = float(bias.max(initial=-np.inf)) if bias.size else 0.0
    step = float(np.float32((top - float(bias.min())) / _BIAS_STEPS)) if bias.size else 0.0
    if not step > 0.0:
        return top, 0.0, np.zeros(bias.shape[0], np.uint8)
    return top, step, np.clip(np.rint((top - bias.astype(np.float64)) / step), 0, _BIAS_STEPS).astype(np.uint8)


def _pack(
    codes: npt.NDArray[np.uint8], steps: npt.NDArray[np.uint8] | None, source: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Blocks of the codes, and of the bias bytes if there are any, at positions `source` [total] (-1: padding)."""
    width = codes.shape[1] + codes.shape[1] % 2
    blocks = source.shape[0] // BLOCK
    packed = np.zeros((blocks, width // 2 + (steps is not None), BLOCK), np.uint8)
    for start in range(0, blocks, _PACK_BLOCKS):
        stop = min(start + _PACK_BLOCKS, blocks)
        part = source[start * BLOCK : stop * BLOCK]
        real = part >= 0
        plain = np.zeros((part.shape[0], width), np.uint8)
        plain[real, : codes.shape[1]] = codes[part[real]]
        packed[start:stop, : width // 2] = kernels.pack(plain)
        if steps is not None:
            packed[start:stop, -1][real.reshape(-1, BLOCK)] = steps[part[real]]
    return packed


def check_postings(postings: Postings) -> Postings:
    """Return postings that a kernel may read without bounds checks; raise Damaged where they are inconsistent."""
    offsets, counts = postings.offsets, postings.counts
    if offsets.shape != (postings.lists + 1,) or offsets[0] != 0:
        raise Damaged("postings", f"offsets must have shape ({postings.lists + 1},) and start at 0")
    total = postings.rows.shape[0]
    if offsets[-1] != total or (offsets % BLOCK).any() or (np.diff(offsets) < counts).any() or (counts < 0).any():
        raise Damaged("postings", f"offsets and counts do not divide the {total} postings into whole blocks")
    if postings.codes.ndim != 3 or postings.codes.shape[::2] != (total // BLOCK, BLOCK):
        raise Damaged("postings", f"codes must have shape [{total // BLOCK}, M/2, {BLOCK}], got {postings.codes.shape}")
    top, step = postings.bias_top, postings.bias_step
    if not (math.isfinite(top) and math.isfinite(step) and step >= 0.0):
        raise Damaged("postings", f"bias_top must be finite and bias_step >= 0, got {top} and {step}")
    used = np.arange(total) - np.repeat(offsets[:-1], np.diff(offsets)) < np.repeat(counts, np.diff(offsets))
    if (postings.rows[used] >= postings.n_rows).any() or (postings.rows[~used] != PADDING).any():
        raise Damaged("postings", f"a row number lies outside 0..{postings.n_rows - 1}")
    return postings
