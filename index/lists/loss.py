"""The spill rule: which second partition a row is filed in.

SOAR (arXiv 2404.00774, theorem 3.1): with r = x - c1 and r_hat = r / ||r||, a second partition helps the queries
for which the first is bad when it minimises  ||x - c||^2 + lambda * <r_hat, x - c>^2  over the centroids c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Lists = npt.NDArray[np.int32]

_ON_CENTROID = 1e-7  # ||r||^2 below which the residual has no direction, as in ScaNN
_TILE_FLOATS = 1 << 21  # 8 MiB of row-by-centroid products: stays in the third-level cache


@dataclass(frozen=True, eq=False, slots=True)
class SpillTable:
    """Centroids less their mean, with their Gram matrix; subtracting a mean leaves every distance as it was
    and keeps float32 from cancelling when the data lie far from the origin.
    """

    mean: Float32
    centred: Float32
    gram: Float32

    @classmethod
    def of(cls, centroids: Float32) -> SpillTable:
        """The table of float32 [lists, d]."""
        mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = centroids - mean
        return cls(mean, centred, centred @ centred.T)


def nearest_and_spill(
    prefix: Float32, centroids: Float32, soar_lambda: float | None, table: SpillTable | None = None
) -> tuple[Lists, Lists, Float32]:
    """(nearest list, second list, gain) of float32 [n, d]: int32, int32, float32 [n]; ties to the lower list.

    The second is -1, and its gain 0, where there is none: soar_lambda None, the best second equal to the first, or the
    row on its centroid. The gain is how far the second's loss lies below the first's, (1 + lambda) ||r||^2.
    One product of rows and centroids serves all: <r, x - c> = <x,x> - <x,c> - <c1,x> + <c1,c>.
    """
    table = table or SpillTable.of(centroids)
    first = np.empty(prefix.shape[0], np.int32)
    second = np.full(prefix.shape[0], -1, np.int32)
    gain = np.zeros(prefix.shape[0], np.float32)
    step = max(1, _TILE_FLOATS // centroids.shape[0])
    for start in range(0, prefix.shape[0], step):
        tile = slice(start, start + step)
        rows: Float32 = prefix[tile] - table.mean
        products: Float32 = rows @ table.centred.T
        distances: Float32 = np.multiply(products, -2.0, dtype=np.float32)
        distances += np.diagonal(table.gram)
        first[tile] = distances.argmin(axis=1)
        if soar_lambda is not None:
            second[tile], gain[tile] = spill(rows, products, distances, first[tile], soar_lambda, table)
    return first, second, gain


def spill(
    rows: Float32, products: Float32, distances: Float32, first: Lists, soar_lambda: float, table: SpillTable
) -> tuple[Lists, Float32]:
    """(second lists, gains) of rows whose first lists are known; rows float32 [m, d] less the table's mean, `products`
    and `distances` (less ||x||^2) [m, lists]; overwrites `products`."""
    residuals = rows - table.centred[first]
    squares = np.einsum("ij,ij->i", residuals, residuals)
    # <r, x - c> = <r, x> - (<x, c> - <c1, c>): one gather of Gram rows instead of a second product.
    np.subtract(table.gram[first], products, out=products)
    products += np.einsum("ij,ij->i", residuals, rows)[:, None]
    np.square(products, out=products)
    products *= (np.float32(soar_lambda) / np.maximum(squares, np.float32(_ON_CENTROID)))[:, None]
    products += distances
    second: Lists = products.argmin(axis=1).astype(np.int32)
    second[squares < _ON_CENTROID] = -1
    every = np.arange(rows.shape[0])
    gain = products[every, first] - products[every, second]
    second[second == first] = -1
    gain[second < 0] = 0.0
    return second, gain
