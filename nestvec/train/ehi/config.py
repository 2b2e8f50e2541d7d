"""How a tree is trained: settings, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from nestvec.errors import InvalidInput

Mode = Literal["frozen", "adapter", "joint"]
"""frozen: the router alone, over stored vectors. adapter: an adapter of the vectors first, then the router over what it
gives. joint: both at once."""

_LEAST_BEAM = 8
_SHARE = 0.24  # at most, of the cost of one level with all leaves, for the beam of several

SCALE = 20.0
"""Logits of a router that starts from k-means: SCALE times the cosine to the leaf's centre."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the losses; 0 leaves one out.

    path: symmetric in-batch InfoNCE over log sum_b p_b(q) p_b(d). semantic: the same over cosines of adapted vectors.
    balance: KL(mean p || uniform). hinge: the paper's L_indexing, a margin between the path similarities of a pair and
    of its hard negative. intra: the paper's L_intra, cosines of the documents of a batch that share a leaf.
    """

    path: float = 1.0
    semantic: float = 1.0
    balance: float = 1.0
    hinge: float = 0.0
    intra: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"the weight of the loss {name!r} must be a number >= 0, got {value!r}")
        if not self.path and not self.hinge:
            raise InvalidInput("a router learns from the losses path and hinge: give one of them a weight over 0")


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """How a tree is trained. `branches` of each level; leaves are their product. `leaves_per_row`: 1 or more.

    cap: the largest leaf, times the mean. epochs: over the pairs, for the router; the adapter takes `adapter_epochs`.
    refile: epochs between two assignments of all documents, when the held-out pairs are measured. patience: measures
    without a gain after which training stops. negatives: hard negatives of a query, from the leaves its beam reaches.
    guide: batches that teach a second adapter, used for the start alone: leaves are k-means of what it makes of the
    documents; 0: of the documents themselves. hidden: width of the adapter. features: width of the router's own hidden
    layer; 0: it is linear. warm: start from spherical k-means. held_out: share of the queries that training never sees.
    beam: nodes kept after each level but the last; 0: such that routing costs just under a quarter of what all leaves
    in one level would, and 8 at least; a search by margin reads half of that. rows: most documents that are looked at.
    """

    branches: tuple[int, ...] = (256,)
    mode: Mode = "adapter"
    leaves_per_row: int = 1
    cap: float = 2.0
    weights: Weights = field(default_factory=Weights)
    epochs: int = 12
    adapter_epochs: int = 15
    batch: int = 512
    rate: float = 1e-3
    temperature: float = 0.05
    guide: int = 160
    refile: int = 3
    patience: int = 3
    negatives: int = 0
    hidden: int = 768
    features: int = 0
    beam: int = 0
    warm: bool = True
    held_out: float = 0.1
    rows: int = 200_000
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InvalidInput(f"mode must be one of {', '.join(get_args(Mode))}; got {self.mode!r}")
        if not 1 <= len(self.branches) <= 4 or any(each < 2 for each in self.branches):
            raise InvalidInput(
                f"branches are one to four numbers of 2 or more, such as 256 or 16,16; got {self.branches}"
            )
        if self.leaves > 65536:
            raise InvalidInput(f"a tree has at most 65,536 leaves, got {self.leaves:,}")
        for name, least in (
            ("leaves_per_row", 1),
            ("epochs", 1),
            ("batch", 2),
            ("refile", 1),
            ("patience", 1),
            ("guide", 0),
            ("beam", 0),
        ):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, low, high in (
            ("held_out", 0.0, 0.5),
            ("cap", 1.0, 100.0),
            ("rate", 0.0, 1.0),
            ("temperature", 0.0, 10.0),
        ):
            if not low < getattr(self, name) <= high:
                raise InvalidInput(f"{name} must be over {low:g} and at most {high:g}, got {getattr(self, name)}")

    @property
    def leaves(self) -> int:
        """Leaves of the tree."""
        return math.prod(self.branches)

    @property
    def kept(self) -> int:
        """Nodes kept after each level but the last."""
        below = sum(self.branches[1:])
        return self.beam or max(_LEAST_BEAM, int((_SHARE * self.leaves - self.branches[0]) / below) if below else 0)


def default_branches(rows: int) -> tuple[int, ...]:
    """One level of about sqrt(rows) leaves, a power of two from 16 to 1024; two, the first wider, over 500,000 rows."""
    if rows > 500_000:
        side = 2 ** round(math.log2(rows**0.3))
        return (4 * side, side // 4)  # small families: more of them are read for the same cost
    return (2 ** min(10, max(4, round(math.log2(max(1, rows)) / 2 + 0.5))),)


def default_epochs(pairs: int, batch: int = 512) -> tuple[int, int]:
    """(of the adapter, of the router): some 400 and 300 batches, 5 to 20 passes over the pairs."""
    batches = max(1, pairs // batch)
    adapter, router = (min(20, max(5, round(wanted / batches))) for wanted in (400, 300))
    return adapter, router
