"""What is trained: tensors by name, and how they turn vectors into log-probabilities of leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestvec.index.ehi.router import Layer, Residual, Router
from nestvec.train.ehi.config import SCALE, TreeSettings
from nestvec.train.ehi.start import starting_heads

if TYPE_CHECKING:
    from torch import Tensor

F32 = NDArray[np.float32]
Arrays = dict[str, F32]
Tensors = Mapping[str, "Tensor"]

_BLOCK = 4096


def new_residual(name: str, dims: int, hidden: int, seed: int) -> Arrays:
    """Weights of x + second(relu(first(x))), such that it changes nothing yet."""
    random = np.random.default_rng(seed)
    bound = 1 / math.sqrt(dims)
    return {
        f"{name}.first.weights": random.uniform(-bound, bound, (hidden, dims)).astype(np.float32),
        f"{name}.first.bias": random.uniform(-bound, bound, hidden).astype(np.float32),
        f"{name}.second.weights": np.zeros((dims, hidden), np.float32),
        f"{name}.second.bias": np.zeros(dims, np.float32),
    }


def new_router(guided: F32, vectors: F32, settings: TreeSettings) -> Arrays:
    """Weights of a router over vectors like f32 [n, dims]: SCALE times the cosine to the means of clusters, found by
    k-means of what a guide made of the same rows."""
    made: Arrays = {}
    for level, centres in enumerate(starting_heads(guided, vectors, settings.branches, settings.seed, settings.warm)):
        made |= new_head(level, centres)
    if settings.features:
        made |= new_residual("features", vectors.shape[1], settings.features, settings.seed)
    return made


def new_head(level: int, centres: F32) -> Arrays:
    """The weights of one level: SCALE times the cosine to the centres f32 [nodes of the level, dims]."""
    return {f"head{level}.weights": centres, f"head{level}.bias": np.zeros(len(centres), np.float32)}


def residual(tensors: Tensors, name: str, rows: Tensor) -> Tensor:
    """x + second(relu(first(x))) of rows [b, d]; the rows themselves where there is no such part."""
    from torch.nn.functional import linear, relu

    if f"{name}.first.weights" not in tensors:
        return rows
    inner = relu(linear(rows, tensors[f"{name}.first.weights"], tensors[f"{name}.first.bias"]))
    return rows + linear(inner, tensors[f"{name}.second.weights"], tensors[f"{name}.second.bias"])


def adapted(tensors: Tensors, rows: Tensor, unit: bool) -> Tensor:
    """Rows [b, dims] through the adapter, if there is one; of length 1 where `unit`."""
    from torch.nn.functional import normalize

    if "adapter.first.weights" not in tensors:
        return rows
    moved = residual(tensors, "adapter", rows)
    return normalize(moved, dim=-1) if unit else moved


def level_logits(tensors: Tensors, rows: Tensor, level: int) -> Tensor:
    """Logits of every node of a level [b, nodes] for rows [b, dims], already adapted."""
    from torch.nn.functional import linear

    inner = residual(tensors, "features", rows)
    return SCALE * linear(inner, tensors[f"head{level}.weights"]) + tensors[f"head{level}.bias"]


def leaf_log_probs(tensors: Tensors, rows: Tensor, branches: Sequence[int]) -> Tensor:
    """Log-probability of every leaf [b, leaves] for rows [b, dims], already adapted."""
    from torch.nn.functional import log_softmax

    found: Tensor | None = None
    for level, width in enumerate(branches):
        own = log_softmax(level_logits(tensors, rows, level).reshape(len(rows), -1, width), dim=-1)
        found = (own if found is None else found[..., None] + own).reshape(len(rows), -1)
    assert found is not None  # a tree has at least one level
    return found


def adapt_all(tensors: Tensors, rows: F32, unit: bool) -> F32:
    """f32 [n, dims] adapted, block by block, without gradients."""
    import torch

    if "adapter.first.weights" not in tensors:
        return rows
    found = np.empty_like(rows)
    device = tensors["adapter.first.weights"].device
    with torch.inference_mode():
        for start in range(0, len(rows), _BLOCK):
            block = torch.from_numpy(np.ascontiguousarray(rows[start : start + _BLOCK])).to(device)
            found[start : start + _BLOCK] = adapted(tensors, block, unit).cpu().numpy()
    return found


def to_router(arrays: Mapping[str, F32], settings: TreeSettings) -> Router:
    """The router that is served: the scale folded into the weights."""
    heads = tuple(
        Layer(np.ascontiguousarray(SCALE * arrays[f"head{level}.weights"], np.float32), arrays[f"head{level}.bias"])
        for level in range(len(settings.branches))
    )
    return Router(settings.branches, heads, to_residual(arrays, "features"), settings.kept)


def to_residual(arrays: Mapping[str, F32], name: str) -> Residual | None:
    """The part of this name as it is served; None where there is none."""
    if f"{name}.first.weights" not in arrays:
        return None
    first, second = (
        Layer(arrays[f"{name}.{each}.weights"], arrays[f"{name}.{each}.bias"]) for each in ("first", "second")
    )
    return Residual(first, second)


def to_arrays(tensors: Tensors) -> Arrays:
    """Copies of the tensors as numpy arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch with so many threads, 0 for its own choice, and as before after that."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
