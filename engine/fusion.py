"""Fusion: one order from two, by vector and by words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nestvec.errors import InvalidInput

Kind = Literal["weighted", "rrf"]

MAX_DEPTH = 1000
_LEAST_DEPTH, _DEPTH_PER_HIT = 100, 10

# Chosen on squad_dev, cranfield and medquad with the built-in encoder, where BM25 is the stronger side of the two; a
# stronger encoder earns more.
DEFAULT_WEIGHT = 0.3


@dataclass(frozen=True)
class Fusion:
    """How a hybrid search makes one order of two.

    "weighted" adds weight x dense + (1 - weight) x BM25 score, both brought to 0..1 per query: the dense scores of all
    candidates from their least to their best, BM25 from 0 to its best (Bruch et al., arXiv 2210.11934). "rrf" adds
    1 / (rrf_k + rank) of both orders (Cormack et al., SIGIR 2009), times their weights. `weight` is the dense side's
    share, from 0 to 1 (None: .3 if weighted; .5 in "rrf", where both sides then count the same). `depth` candidates
    come from each side (None: 10 for each hit, from 100 to 1000).
    """

    kind: Kind = "weighted"
    weight: float | None = None
    depth: int | None = None
    rrf_k: float = 60.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidInput(f"a fusion's kind is one of {', '.join(get_args(Kind))}; got {self.kind!r:.100}")
        if self.weight is not None and not _within(self.weight, 0, 1):
            raise InvalidInput(f"a fusion's weight, the dense side's share, is from 0 to 1; got {self.weight!r:.100}")
        if self.depth is not None and not (isinstance(self.depth, int) and _within(self.depth, 1, MAX_DEPTH)):
            raise InvalidInput(f"a fusion's depth is an integer from 1 to {MAX_DEPTH}; got {self.depth!r:.100}")
        if not _within(self.rrf_k, 0, 1e6):
            raise InvalidInput(f"a fusion's rrf_k is from 0 to 1000000; got {self.rrf_k!r:.100}")

    @property
    def share(self) -> float:
        """The dense side's share."""
        if self.weight is not None:
            return self.weight
        return DEFAULT_WEIGHT if self.kind == "weighted" else 0.5

    def candidates(self, k: int) -> int:
        """How many rows each side gives for k hits; never fewer than k."""
        return max(k, self.depth or min(max(_LEAST_DEPTH, _DEPTH_PER_HIT * k), MAX_DEPTH))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back."""
        return {"kind": self.kind, "weight": self.weight, "depth": self.depth, "rrf_k": self.rrf_k}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fusion:
        """The fusion that `to_json` wrote, defaults where a key is absent; InvalidInput for anything else."""
        known = ("kind", "weight", "depth", "rrf_k")
        if not isinstance(data, Mapping) or any(key not in known for key in data):
            raise InvalidInput(f"a fusion is an object with some of {', '.join(known)}; got {data!r:.100}")
        return cls(**data)


def _within(value: object, low: float, high: float) -> bool:
    """Whether it is a number, no bool, in these bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type,operator]


def weighted(dense: NDArray[np.float64], words: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Fused scores of m >= 1 candidates from their dense scores and their BM25 scores (0: none of the words)."""
    low, width, best = dense.min(), np.ptp(dense), words.max()
    fused: NDArray[np.float64] = share * ((dense - low) / width if width > 0 else np.ones_like(dense))
    return fused + (1 - share) * (words / best if best > 0 else words)


def reciprocal(
    seqs: NDArray[np.int64], dense: NDArray[np.int64], words: NDArray[np.int64], share: float, rrf_k: float
) -> NDArray[np.float64]:
    """Fused scores of the rows `seqs` i64 [m], ascending, from the two orders, which hold no other rows."""
    fused = np.zeros(len(seqs))
    for order, part in ((dense, share), (words, 1 - share)):
        fused[np.searchsorted(seqs, order)] += part / (rrf_k + np.arange(1, len(order) + 1))
    return fused
