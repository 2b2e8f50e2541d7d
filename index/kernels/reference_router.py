"""The meaning of a learned tree over the lists, in numpy: its layers, and which scores they give the lists of a query.

End-to-end hierarchical indexing (EHI, arXiv 2310.08891, section 3): at each level a node's classifier says how probable
each child is, given the query and the path so far, and a beam search keeps the most probable paths. Here every node
has a classifier of its own, which is what "given the path" comes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels.checks import check_array, check_count, check_finite, check_scale
from nestvec.index.kernels.reference import sum_by_lanes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_LED = 16  # probes up to which count is kept of which lists are the best
_SMALLEST = np.finfo(np.float32).smallest_normal


def fill(query: Float32, width: int) -> Float32:
    """The first `width` numbers, with zeros beyond the end."""
    filled = np.zeros(width, np.float32)
    filled[: len(query)] = query[:width]
    return filled


def or_one(step: np.float32) -> np.float32:
    """The step, or 1 where it is 0, infinite, or too small (below the normal numbers) to divide by."""
    return step if _SMALLEST <= step < np.inf else np.float32(1)


def rounded(values: Float32, most: int) -> Int64:
    """Nearest integers, ties to even, within -most to most; NaN gives 0."""
    whole = np.nan_to_num(np.clip(np.rint(values), -most, most))
    return np.asarray(whole, np.int64)


def exp_below(x: Float32) -> Float32:
    """e^x of x <= 0, below -87 that of -87: Cephes' expf (netlib.org/cephes), each step rounded as kernels round it.

    To 2 units in the last place: numpy's own exp is not the same bits everywhere.
    """
    x = np.maximum(x, np.float32(-87))
    whole = np.float32(12582912)  # 1.5 * 2^23: adding it rounds to an integer
    n = (x * np.float32(1.44269504) + whole) - whole
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    total = np.full_like(x, 1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        total = total * r + np.float32(term)
    powers: Float32 = np.ldexp((total * (r * r) + r) + np.float32(1), n.astype(np.int32))
    return powers


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """codes u8 [nodes, inputs rounded up to 4]: weight / scale + 128, padding 128. bias f32 [nodes].

    Nodes come in families of `siblings`, one after another: the children of one parent.
    """

    codes: npt.NDArray[np.uint8]
    scale: float
    bias: Float32
    siblings: int

    def __post_init__(self) -> None:
        check_array(self.bias, "bias", [np.float32], (-1,))
        check_finite(self.bias, "bias")
        check_array(self.codes, "codes", [np.uint8], (len(self.bias), -1))
        if self.codes.size == 0 or self.codes.shape[1] % 4:
            raise ValueError(
                f"codes must have nodes, and a multiple of 4 numbers for each; got shape {self.codes.shape}"
            )
        if self.siblings < 1 or len(self.bias) % self.siblings:
            raise ValueError(f"siblings must divide the {len(self.bias)} nodes, got {self.siblings}")
        check_scale(self.scale, "scale")

    def out(self, x: Float32, parent: int = 0) -> Float32:
        """Weights times x [<= inputs], read as bytes, plus the bias: f32 [siblings], of the family of one parent."""
        wide = fill(x, self.codes.shape[1])
        step = or_one(np.abs(wide).max() / np.float32(127))
        family = slice(parent * self.siblings, (parent + 1) * self.siblings)
        dots = (self.codes[family].astype(np.int64) - 128) @ rounded(wide / step, 127)
        scores: Float32 = dots.astype(np.float32) * (np.float32(self.scale) * step) + self.bias[family]
        return scores


@dataclass(frozen=True, eq=False, slots=True)
class Visit:
    """Which lists a search visits: the best `probes` within `margin` of the best one, and beyond it as many more as
    hold `wanted` postings. postings int64 [lists]."""

    probes: int
    margin: np.float32
    postings: Int64
    wanted: int

    def has_all(self, scores: Float32, rest: np.float32) -> bool:
        """Whether those are among lists scored so far (f32 [lists], the others -inf); no other scores over `rest`."""
        led = np.sort(scores)[-self.probes] if self.probes <= min(_LED, len(scores)) else np.float32(-np.inf)
        beyond = rest < scores.max() - self.margin
        return bool(rest < led or (beyond and self.postings[scores > rest].sum() >= self.wanted))


@dataclass(frozen=True, eq=False, slots=True)
class Router:
    """A tree whose leaves are the lists: head h has a family for each node of the level above (the first has one).

    dims: how many numbers of a query it sees. features: no layer, or two: the heads see x + second(max(0, first(x))).
    beam: nodes that stay after each level but the last. centroids f32 [lists, cd]: what codes are residuals of.
    """

    dims: int
    heads: Sequence[Layer]
    features: Sequence[Layer]
    beam: int
    centroids: Float32

    def __post_init__(self) -> None:
        check_count(self.dims, "dims")
        check_count(self.beam, "beam")
        if not self.heads:
            raise ValueError("a router needs at least one head")
        check_array(self.centroids, "centroids", [np.float32], (-1, -1))
        check_finite(self.centroids, "centroids")
        families = 1
        for head in self.heads:
            _check_inputs("head", head, self.dims)
            if len(head.bias) != families * head.siblings:
                raise ValueError(
                    f"a head must have {families} families of nodes, got {len(head.bias)} nodes in families of "
                    f"{head.siblings}"
                )
            families = len(head.bias)
        if self.features:
            self._check_features()
        if len(self.centroids) != families or self.centroids.shape[1] < 1:
            raise ValueError(f"centroids must cover {families} lists, got shape {self.centroids.shape}")

    def _check_features(self) -> None:
        if len(self.features) != 2:
            raise ValueError("features are two layers, or none")
        first, second = self.features
        _check_inputs("first layer", first, self.dims)
        _check_inputs("second layer", second, len(first.bias))
        if len(second.bias) != self.dims:
            raise ValueError(f"the second layer must give {self.dims} numbers, got {len(second.bias)}")
        if any(one.siblings != len(one.bias) for one in self.features):
            raise ValueError("the nodes of a feature layer are one family")

    @property
    def leaves(self) -> int:
        """How many lists there are."""
        return len(self.heads[-1].bias)

    def scores(self, query: Float32, visit: Visit) -> Float32:
        """The log-probability of every list, less what is the same for all; -inf beyond the beam: f32 [lists].

        A beam too narrow to reach the probes is widened. Nodes above the lists are read the most probable first, as
        long as lists below them can still be visited: no list is more probable than the node above it.
        """
        x = query[: self.dims]
        if self.features:
            hidden = self.features[0].out(x)
            x = x + self.features[1].out(np.where(hidden > 0, hidden, np.float32(0)))
        level = self.heads[0].out(x)
        for head in self.heads[1:]:
            below = self.leaves // len(level)
            width = max(self.beam, -(-min(visit.probes, self.leaves) // below))
            deeper = np.full(len(head.bias), -np.inf, np.float32)
            for parent in np.argsort(-level, kind="stable")[:width]:
                if head is self.heads[-1] and visit.has_all(deeper, level[parent]):
                    break
                logits = head.out(x, int(parent))
                most = logits.max()
                exps = exp_below(logits - most).astype(np.float64)
                total = most + np.float32(np.log(sum_by_lanes(exps[None])[0]))
                deeper[parent * head.siblings :][: head.siblings] = (level[parent] + logits) - total
            level = deeper
        return level


def _check_inputs(what: str, layer: Layer, inputs: int) -> None:
    wanted = -(-inputs // 4) * 4
    if layer.codes.shape[1] != wanted:
        raise ValueError(f"a {what} must take {wanted} numbers, got {layer.codes.shape[1]}")
