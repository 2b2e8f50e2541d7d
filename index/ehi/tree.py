"""What training hands over: a router, how rows are filed, and the coordinates that it was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.errors import Damaged, InvalidInput
from nestvec.index.ehi.assign import Filing
from nestvec.index.ehi.router import Residual, Router, residual_arrays, residual_from, router_arrays, router_from
from nestvec.index.lists.store import Arrays, Meta, array_of, check_version
from nestvec.index.quantize import Float32

FORMAT = "ehi tree"
VERSION = 1
_BLOCK_FLOATS = 1 << 22


@dataclass(frozen=True, eq=False, slots=True)
class Tree:
    """router and filing: as they were trained. adapter: what vectors go through before they are stored and searched;
    None: they stay as they are. rotation: float32 [dims, dims], what the vectors had gone through before, or None.
    """

    router: Router
    adapter: Residual | None = None
    filing: Filing = field(default_factory=Filing)
    rotation: Float32 | None = None

    def check(self, dims: int) -> None:
        """Raise InvalidInput where the tree is for vectors of other dims."""
        if self.router.dims > dims:
            raise InvalidInput(f"the tree sees {self.router.dims} dims, the vectors have {dims}")
        if self.adapter is not None and self.adapter.dims != dims:
            raise InvalidInput(f"the adapter is for vectors of {self.adapter.dims} dims, these have {dims}")
        if self.rotation is not None and self.rotation.shape != (dims, dims):
            raise InvalidInput(f"the rotation must have shape {(dims, dims)}, got {self.rotation.shape}")


def adapt(adapter: Residual | None, vectors: Float32, *, unit: bool) -> Float32:
    """float32 [n, dims] -> [n, dims], of length 1 if `unit`; a vector that would get no direction stays as it is."""
    if adapter is None:
        return vectors
    result = np.empty_like(vectors)
    step = max(1, _BLOCK_FLOATS // max(adapter.first.weights.shape))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step]
        adapted = adapter.out(block)
        if unit:
            lengths = np.sqrt(np.einsum("ij,ij->i", adapted, adapted))[:, None]
            adapted = np.divide(adapted, lengths, out=block.copy(), where=lengths > 0)
        result[start : start + step] = adapted
    return result


def tree_arrays(tree: Tree) -> tuple[Meta, Arrays]:
    """(settings, arrays); `tree_from` makes the same of them."""
    meta, arrays = router_arrays(tree.router)
    if tree.adapter is not None:
        arrays |= residual_arrays(tree.adapter, "adapter")
    if tree.rotation is not None:
        arrays["rotation"] = tree.rotation
    return {"format": FORMAT, "version": VERSION, "filing": asdict(tree.filing)} | meta, arrays


def tree_from(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Tree:
    """The tree of `tree_arrays`. Raises Damaged where settings and arrays do not fit each other."""
    check_version(meta, FORMAT, VERSION, "tree")
    router = router_from(meta, arrays)
    adapter = residual_from(arrays, "adapter")
    rotation = array_of(arrays, "rotation", np.float32, None) if "rotation" in arrays else None
    try:
        return Tree(router, adapter, Filing(**meta["filing"]), rotation)
    except (KeyError, TypeError, InvalidInput) as error:
        raise Damaged("tree", f"its filing cannot be read: {error}") from error
