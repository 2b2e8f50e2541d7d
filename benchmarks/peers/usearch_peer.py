"""usearch: a graph over bfloat16 vectors. Build settings: m, ef_construction. Search setting: ef."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nestvec.benchmarks.peers.host import Ask, Base, Floats, Reply, Rows, Settings

_METRICS = {"dot": "ip", "l2": "l2sq"}


class Usearch:
    """One HNSW graph."""

    own_cosine = False

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Add all rows, block by block."""
        self._index: Any = importlib.import_module("usearch.index").Index(
            ndim=base.dims,
            metric=_METRICS[metric],
            dtype="bf16",
            connectivity=settings["m"],
            expansion_add=settings["ef_construction"],
            enable_key_lookups=False,
        )
        start = 0
        for block in base.blocks():
            self._index.add(np.arange(start, start + len(block), dtype=np.uint64), block, threads=threads)
            start += len(block)

    def index_bytes(self, folder: Path) -> int:
        """Size of the index as usearch saves it."""
        return int(self._index.serialized_length)

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Set the width of the search."""
        index = self._index
        index.expansion_search = max(k, settings["ef"])

        def ask(queries: Floats) -> Reply:
            return index.search(queries, k, threads=threads)

        return (ask, ask, lambda reply: reply.keys)

    def work(self, queries: Floats) -> Rows | None:
        """Not counted."""
        return None
