"""The learned tree that files rows and routes queries, as arrays.

End-to-end hierarchical indexing (EHI, arXiv 2310.08891): a classifier at each node says how probable each child is,
given the vector and the path so far. Here every node has a linear head of its own, over features that all share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged, InvalidInput
from nestvec.index import kernels
from nestvec.index.lists.model import MAX_PARTITIONS
from nestvec.index.lists.store import Arrays, Meta, array_of
from nestvec.index.quantize import Float32

_LEVELS = 127  # of a weight as a byte
_GROUP = 4
_TILE = 128  # nodes that kernels score together


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """weights @ x + bias: float32 [outputs, inputs] and [outputs]."""

    weights: Float32
    bias: Float32

    def __post_init__(self) -> None:
        wanted = f"float32 [n, d] and [n], n and d >= 1; got {self.weights.dtype} {self.weights.shape}"
        if self.weights.ndim != 2 or not self.weights.size or self.bias.shape != self.weights.shape[:1]:
            raise InvalidInput(f"a layer's weights and bias are {wanted} and {self.bias.shape}")
        if self.weights.dtype != np.float32 or self.bias.dtype != np.float32:
            raise InvalidInput(f"a layer's weights and bias are {wanted} and {self.bias.dtype}")
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            raise InvalidInput("a layer's weights and bias must be finite")

    def out(self, x: Float32) -> Float32:
        """float32 [n, inputs] -> [n, outputs]."""
        result: Float32 = x @ self.weights.T
        result += self.bias
        return result


@dataclass(frozen=True, eq=False, slots=True)
class Residual:
    """x + second(max(0, first(x))): layers [hidden, d] and [d, hidden]."""

    first: Layer
    second: Layer

    def __post_init__(self) -> None:
        if self.second.weights.shape != self.first.weights.shape[::-1]:
            raise InvalidInput(
                "a residual's layers have shapes [hidden, d] and [d, hidden], "
                f"got {self.first.weights.shape} and {self.second.weights.shape}"
            )

    @property
    def dims(self) -> int:
        """Numbers that go in and come out."""
        return int(self.first.weights.shape[1])

    def out(self, x: Float32) -> Float32:
        """float32 [n, d] -> [n, d]."""
        result: Float32 = x + self.second.out(np.maximum(self.first.out(x), np.float32(0)))
        return result


@dataclass(frozen=True, eq=False, slots=True)
class Router:
    """A tree over the first `dims` numbers of stored vectors.

    branches: children of each node, level by level; the leaves, their product, are numbered along the paths. heads:
    one layer per level, [nodes of the level, dims]: node p's children are rows p * b to p * b + b - 1. features: what
    all heads see instead of the vector; None: the vector itself. beam: nodes kept after each level but the last.
    The log-probability of a leaf is the sum over its path of the log-softmax of the logits among siblings.
    """

    branches: tuple[int, ...]
    heads: tuple[Layer, ...]
    features: Residual | None = None
    beam: int = 8

    def __post_init__(self) -> None:
        if not self.branches or len(self.branches) != len(self.heads) or min(self.branches) < 1:
            raise InvalidInput(
                f"a router has one head for each of its levels, got branches {self.branches} and {len(self.heads)}"
            )
        if self.leaves > MAX_PARTITIONS:
            raise InvalidInput(f"a router has at most {MAX_PARTITIONS} leaves, got {self.leaves}")
        for level, head in enumerate(self.heads):
            wanted = (math.prod(self.branches[: level + 1]), self.dims)
            if head.weights.shape != wanted:
                raise InvalidInput(f"the head of level {level + 1} has shape {wanted}, got {head.weights.shape}")
        if self.features is not None and self.features.dims != self.dims:
            raise InvalidInput(f"the features have {self.dims} numbers as the heads do, got {self.features.dims}")
        if isinstance(self.beam, bool) or not isinstance(self.beam, int) or self.beam < 1:
            raise InvalidInput(f"beam must be an integer >= 1, got {self.beam!r}")

    @property
    def dims(self) -> int:
        """Numbers of a vector that the router sees."""
        return int(self.heads[0].weights.shape[1])

    @property
    def leaves(self) -> int:
        """How many there are."""
        return math.prod(self.branches)

    def width(self, level: int, wanted: int) -> int:
        """How many nodes stay after that level (from 0), where so many leaves are wanted."""
        below = math.prod(self.branches[level + 1 :])
        return min(max(self.beam, -(-wanted // below)), math.prod(self.branches[: level + 1]))

    def cost(self, probes: int) -> int:
        """Multiply-adds of routing a query to so many leaves, at most: families of the last level are read only as
        long as a leaf in them can still be visited."""
        hidden = 0 if self.features is None else 2 * self.features.first.weights.shape[0]
        nodes = self.branches[0]
        for level, branches in enumerate(self.branches[1:]):
            nodes += self.width(level, min(probes, self.leaves)) * branches
        return self.dims * (hidden + nodes)

    def native(self, centroids: Float32) -> kernels.Router:
        """The router in the form that searches read, its weights as bytes; centroids float32 [leaves, d]."""
        heads = [_bytes(head, siblings) for head, siblings in zip(self.heads, self.branches, strict=True)]
        held = [] if self.features is None else [self.features.first, self.features.second]
        features = [_bytes(layer, len(layer.bias)) for layer in held]
        return kernels.Router(self.dims, heads, features, self.beam, np.ascontiguousarray(centroids))


def _bytes(layer: Layer, siblings: int) -> kernels.Layer:
    """The weights as steps of 1/127 of the greatest."""
    count, inputs = layer.weights.shape
    scale = np.float32(np.abs(layer.weights).max() / np.float32(_LEVELS))
    scale = scale if scale > 0 else np.float32(1)
    codes = np.full((count, -(-inputs // _GROUP) * _GROUP), _LEVELS + 1, np.uint8)
    codes[:, :inputs] = np.clip(np.rint(layer.weights / scale), -_LEVELS, _LEVELS) + (_LEVELS + 1)
    return kernels.Layer(codes, float(scale), np.ascontiguousarray(layer.bias), siblings)


def residual_arrays(residual: Residual, name: str) -> Arrays:
    """Four arrays, named after `name`."""
    held = {"first": residual.first, "second": residual.second}
    return {
        f"{name}_{which}_{part}": getattr(layer, part) for which, layer in held.items() for part in ("weights", "bias")
    }


def residual_from(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Residual | None:
    """What `residual_arrays` told; None where it is not there. Raises Damaged."""
    if f"{name}_first_weights" not in arrays:
        return None
    try:
        return Residual(*(_layer_from(arrays, f"{name}_{which}") for which in ("first", "second")))
    except InvalidInput as error:
        raise Damaged(f"array {name}", str(error)) from error


def router_arrays(router: Router) -> tuple[Meta, Arrays]:
    """(settings, arrays); `router_from` makes the same of them."""
    arrays: Arrays = {} if router.features is None else residual_arrays(router.features, "features")
    for level, head in enumerate(router.heads):
        arrays |= {f"head{level}_weights": head.weights, f"head{level}_bias": head.bias}
    return {"branches": list(router.branches), "beam": router.beam}, arrays


def router_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Router:
    """The router of `router_arrays`. Raises Damaged where settings and arrays do not fit each other."""
    try:
        branches = tuple(int(branch) for branch in meta["branches"])
        heads = tuple(_layer_from(arrays, f"head{level}") for level in range(len(branches)))
        return Router(branches, heads, residual_from(arrays, "features"), meta["beam"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("router", f"its settings cannot be read: {error!r}") from error
    except InvalidInput as error:
        raise Damaged("router", str(error)) from error


def _layer_from(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Layer:
    weights, bias = (array_of(arrays, f"{name}_{part}", np.float32, None) for part in ("weights", "bias"))
    return Layer(weights, bias)
