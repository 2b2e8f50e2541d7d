"""The meaning of the coding kernels, in numpy: encode, encode_aware and pack. The C++ ones give the same results bit
by bit: where the order of additions decides, it is fixed here and followed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels.checks import BLOCK, check_array, check_finite

Codes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

CENTRES = 16
ROUNDS = 8  # of coordinate descent, at most; on real vectors almost every row settles sooner
_ROWS_PER_STEP = 2048  # bounds the memory of the tables


def encode(residuals: Float32, codebook: Float32) -> Codes:
    """Number of the nearest of 16 centres for each block of each row: uint8 [n, M], ties to the lowest number.

    residuals [n, M * s], codebook [M, 16, s], all finite. Squared distances are float32, added dimension by dimension.
    Raises TypeError and ValueError for wrong dtypes, shapes or layout.
    """
    check_array(codebook, "codebook", [np.float32], (-1, CENTRES, -1))
    blocks, _, width = codebook.shape
    check_array(residuals, "residuals", [np.float32], (-1, blocks * width))
    codes = np.empty((len(residuals), blocks), np.uint8)
    for step in _steps(len(residuals) if blocks else 0):
        for block, x in enumerate(np.split(residuals[step], blocks, axis=1)):
            codes[step, block] = _distances(x, codebook[block]).argmin(axis=1)
    return codes


def encode_aware(residuals: Float32, directions: Float32, codebook: Float32, eta: float) -> Codes:
    """Codes uint8 [n, M] of little score-aware cost (Guo et al., arXiv 1908.10396): |r|^2 + (eta - 1) <r, d>^2, where
    r is what the code leaves of a residual and d the row's direction.

    residuals and directions [n, M * s], codebook [M, 16, s], all finite; eta >= 1, and 1 gives `encode`.
    Coordinate descent from the nearest centres: in each of at most ROUNDS rounds, block after block takes the centre
    of least cost while the others stay, the lowest number where several are; a round without a change is the last.
    So after fewer rounds no change of one code lowers the cost.
    All sums are float32: of a block by ascending dimension, of <r, d> by ascending block at the start of a round,
    then kept up to date. Raises TypeError and ValueError for wrong dtypes, shapes, layout or eta.
    """
    check_array(codebook, "codebook", [np.float32], (-1, CENTRES, -1))
    blocks, _, width = codebook.shape
    check_array(residuals, "residuals", [np.float32], (-1, blocks * width))
    check_array(directions, "directions", [np.float32], residuals.shape)
    check_finite(np.float32(eta), "eta")
    if np.float32(eta) < 1:
        raise ValueError(f"eta must be >= 1, got {eta:f}")
    weight = np.float32(eta) - np.float32(1)
    codes = np.empty((len(residuals), blocks), np.uint8)
    for step in _steps(len(residuals) if blocks else 0):
        codes[step] = _descend(_Tables.of(residuals[step], directions[step], codebook), weight)
    return codes


@dataclass(frozen=True, eq=False, slots=True)
class _Tables:
    """Per block: |x - centre|^2 and <x - centre, direction>, float32 [n, 16] each."""

    distances: list[Float32]
    products: list[Float32]

    @classmethod
    def of(cls, residuals: Float32, directions: Float32, codebook: Float32) -> _Tables:
        blocks = len(codebook)
        tables = cls([], [])
        for block in range(blocks):
            band = slice(block * codebook.shape[2], (block + 1) * codebook.shape[2])
            x, direction = residuals[:, band], directions[:, band]
            products = np.zeros((len(x), CENTRES), np.float32)
            for dim in range(codebook.shape[2]):
                products += (x[:, dim, None] - codebook[block, :, dim]) * direction[:, dim, None]
            tables.distances.append(_distances(x, codebook[block]))
            tables.products.append(products)
        return tables


def _distances(x: Float32, centres: Float32) -> Float32:
    distances = np.zeros((len(x), CENTRES), np.float32)
    for dim in range(centres.shape[1]):
        difference = x[:, dim, None] - centres[:, dim]
        distances += difference * difference
    return distances


def _descend(tables: _Tables, weight: np.float32) -> Codes:
    """Codes [n, M] after coordinate descent."""
    rows = np.arange(len(tables.distances[0]))
    codes = np.stack([distances.argmin(axis=1) for distances in tables.distances], axis=1)
    for _ in range(ROUNDS):
        before = codes.copy()
        along = np.zeros(len(rows), np.float32)
        for block, products in enumerate(tables.products):
            along += products[rows, codes[:, block]]
        for block, (distances, products) in enumerate(zip(tables.distances, tables.products, strict=True)):
            rest = along - products[rows, codes[:, block]]
            every = rest[:, None] + products
            codes[:, block] = (distances + weight * (every * every)).argmin(axis=1)
            along = rest + products[rows, codes[:, block]]
        if (codes == before).all():
            break
    return codes.astype(np.uint8)


def pack(codes: Codes) -> Codes:
    """Codes [n, M], n a multiple of 128, as the blocks [n/128, ceil(M/2), 128] that a search reads.

    Byte [b, p, j] holds sub-quantiser 2p of row 128 b + j in its low half and 2p + 1 in its high half (0 if M is odd).
    Raises ValueError for a code above 15 or another n.
    """
    check_array(codes, "codes", [np.uint8], (-1, -1))
    n, subquantisers = codes.shape
    if n % BLOCK:
        raise ValueError(f"codes must have a multiple of {BLOCK} rows, got {n}")
    if codes.size and codes.max() > 15:
        raise ValueError("codes must be 0 to 15, got a larger one")
    even = np.pad(codes, ((0, 0), (0, subquantisers % 2)))
    blocks = (even[:, 0::2] | (even[:, 1::2] << 4)).reshape(n // BLOCK, BLOCK, -1)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1))


def _steps(n: int) -> Iterator[slice]:
    return (slice(start, min(n, start + _ROWS_PER_STEP)) for start in range(0, n, _ROWS_PER_STEP))
