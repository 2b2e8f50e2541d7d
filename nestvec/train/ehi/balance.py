"""How evenly leaves are filled, and what is too uneven to be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.errors import InvalidInput

MAX_OVER_MEAN, MAX_IMBALANCE = 2.05, 1.5
"""What is refused: a leaf so many times the mean (over the cap of 2 only by rounding), an imbalance over this."""
MAX_EMPTY = 0.5
"""The share of leaves without any document from which a tree counts as collapsed."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How even the leaves are. max_over_mean: the largest leaf by the mean one. imbalance: leaves * sum(share^2), 1
    where all are alike and how many times more a random visit costs than then. empty: share of leaves without a row."""

    leaves: int
    max_over_mean: float
    imbalance: float
    empty: float

    @classmethod
    def of(cls, filed: NDArray[np.integer[Any]], leaves: int) -> Balance:
        """Of the leaves of rows, int [n] or [n, d]; -1 stands for none. Raises InvalidInput where no row is filed."""
        sizes = np.bincount(filed[filed >= 0].ravel(), minlength=leaves).astype(np.float64)
        total = sizes.sum()
        if not total:
            raise InvalidInput("no row is filed in any leaf")
        imbalance = leaves * (sizes**2).sum() / total**2
        return cls(leaves, float(sizes.max() * leaves / total), float(imbalance), float((sizes == 0).mean()))

    def problem(self, max_over_mean: float = MAX_OVER_MEAN, max_imbalance: float = MAX_IMBALANCE) -> str | None:
        """Why such a tree is not used; None where nothing speaks against it."""
        if self.empty > MAX_EMPTY:
            return f"collapsed: {self.empty:.0%} of the {self.leaves:,} leaves hold no document"
        if self.max_over_mean > max_over_mean:
            return f"the largest leaf is {self.max_over_mean:.2f} times the mean, over {max_over_mean:g}"
        if self.imbalance > max_imbalance:
            return f"an imbalance of {self.imbalance:.2f}, over {max_imbalance:g}"
        return None
