"""Posting lists: per partition, the rows filed there and their 4-bit codes, in blocks of 32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged
from nestvec.index import kernels

BLOCK = 32
"""Postings in a block; every list is padded to whole blocks."""

PADDING = 0xFFFFFFFF
"""The row number of a padding slot."""

_PACK_BLOCKS = 1024  # blocks packed at a time: bounds the unpacked copy to a few MiB


@dataclass(frozen=True, eq=False, slots=True)
class Postings:
    """All lists of one segment, end to end.

    offsets: int64 [lists + 1], in postings, multiples of 32. counts: int32 [lists], without padding.
    rows: uint32 [total], ascending in each list, then PADDING. codes: uint8 [total/32, M/2, 32], byte [b, p, j]
    holding sub-quantiser 2p of posting 32*b+j in the low nibble and 2p+1 in the high one (M padded to even).
    bias: float32 [total], added to a posting's estimate ("l2": -||x||^2), or None.
    """

    n_rows: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]
    rows: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]
    bias: npt.NDArray[np.float32] | None

    @property
    def lists(self) -> int:
        """Number of posting lists."""
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.offsets, self.counts, self.rows, self.codes, self.bias)
        return sum(array.nbytes for array in arrays if array is not None)


def build_postings(
    n_rows: int,
    n_lists: int,
    lists: npt.NDArray[np.int32],
    rows: npt.NDArray[np.uint32],
    codes: npt.NDArray[np.uint8],
    row_bias: npt.NDArray[np.float32] | None,
) -> Postings:
    """File N postings by (list, row). lists, rows: [N]; codes: uint8 [N, M], values 0..15; row_bias: [n_rows]."""
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
    bias = None
    if row_bias is not None:
        bias = np.zeros(total, np.float32)
        bias[slots] = row_bias[rows[order]]
    return Postings(n_rows, offsets, counts, filed, _pack(codes, source), bias)


def _pack(codes: npt.NDArray[np.uint8], source: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Blocks of the codes at positions `source` [total] (-1: padding, code 0)."""
    width = codes.shape[1] + codes.shape[1] % 2
    blocks = source.shape[0] // BLOCK
    packed = np.empty((blocks, width // 2, BLOCK), np.uint8)
    for start in range(0, blocks, _PACK_BLOCKS):
        stop = min(start + _PACK_BLOCKS, blocks)
        part = source[start * BLOCK : stop * BLOCK]
        plain = np.zeros((part.shape[0], width), np.uint8)
        plain[part >= 0, : codes.shape[1]] = codes[part[part >= 0]]
        packed[start:stop] = kernels.pack(plain)
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
    if postings.bias is not None and postings.bias.shape != (total,):
        raise Damaged("postings", f"bias must have shape ({total},), got {postings.bias.shape}")
    used = np.arange(total) - np.repeat(offsets[:-1], np.diff(offsets)) < np.repeat(counts, np.diff(offsets))
    if (postings.rows[used] >= postings.n_rows).any() or (postings.rows[~used] != PADDING).any():
        raise Damaged("postings", f"a row number lies outside 0..{postings.n_rows - 1}")
    return postings
