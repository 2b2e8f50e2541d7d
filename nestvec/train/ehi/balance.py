"""How evenly leaves are filled, and what is too uneven to be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.errors import InvalidInput
from nestvec.index.ehi.assign import LEAST_ROOM

MAX_OVER_MEAN, MAX_IMBALANCE = 2.05, 1.5
"""What is refused, by what visits cost: a leaf so many times the mean (over the cap of 2 only by rounding), an
imbalance over this."""
MAX_EMPTY = 0.5
"""The share of leaves without any document from which a tree counts as collapsed."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How even the leaves are. max_over_mean: the largest leaf by the mean one. imbalance: leaves * sum(share^2), 1
    where all are alike and how many times more a random visit costs than then. empty: share of leaves without a row.

    cost_over_mean, cost_imbalance: the first two where a leaf of fewer than LEAST_ROOM rows counts as one of so many,
    for that is what a visit to it costs. Where leaves hold a handful of rows, the others say little.
    """

    leaves: int
    max_over_mean: float
    imbalance: float
    empty: float
    cost_over_mean: float
    cost_imbalance: float

    @classmethod
    def of(cls, filed: NDArray[np.integer[Any]], leaves: int) -> Balance:
        """Of the leaves of rows, int [n] or [n, d]; -1 stands for none. Raises InvalidInput where no row is filed."""
        sizes = np.bincount(filed[filed >= 0].ravel(), minlength=leaves)
        if not sizes.any():
            raise InvalidInput("no row is filed in any leaf")
        empty = float((sizes == 0).mean())
        return cls(leaves, *_evenness(sizes), empty, *_evenness(np.maximum(sizes, LEAST_ROOM)))

    def problem(self, max_over_mean: float = MAX_OVER_MEAN, max_imbalance: float = MAX_IMBALANCE) -> str | None:
        """Why such a tree is not used; None where nothing speaks against it."""
        if self.empty > MAX_EMPTY:
            return f"collapsed: {self.empty:.0%} of the {self.leaves:,} leaves hold no document"
        if self.cost_over_mean > max_over_mean:
            return f"the largest leaf is {self.cost_over_mean:.2f} times the mean, over {max_over_mean:g}"
        if self.cost_imbalance > max_imbalance:
            return f"an imbalance of {self.cost_imbalance:.2f}, over {max_imbalance:g}"
        return None


def _evenness(sizes: NDArray[np.integer[Any]]) -> tuple[float, float]:
    """(the largest by the mean, leaves * sum(share^2))."""
    total = float(sizes.sum())
    return float(sizes.max() * len(sizes) / total), float(len(sizes) * (sizes.astype(np.float64) ** 2).sum() / total**2)
