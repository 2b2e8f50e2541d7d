"""hnswlib: a graph over float32 vectors. Build settings: m, ef_construction. Search setting: ef."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nestvec.benchmarks.peers.host import Ask, Base, Floats, Reply, Rows, Settings

_SPACES = {"dot": "ip", "l2": "l2"}


class Hnswlib:
    """One HNSW graph."""

    own_cosine = False

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Add all rows, block by block."""
        self._index: Any = importlib.import_module("hnswlib").Index(_SPACES[metric], base.dims)
        self._index.init_index(base.n, M=settings["m"], ef_construction=settings["ef_construction"])
        start = 0
        for block in base.blocks():
            self._index.add_items(block, np.arange(start, start + len(block)), num_threads=threads)
            start += len(block)

    def index_bytes(self, folder: Path) -> int:
        """Size of the index as hnswlib saves it."""
        return int(self._index.index_file_size())

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Set the width of the search; hnswlib refuses a width under k."""
        index = self._index
        index.set_ef(max(k, settings["ef"]))
        index.set_num_threads(threads)

        def ask(queries: Floats) -> Reply:
            return index.knn_query(queries, k, num_threads=threads)

        return (ask, ask, lambda reply: reply[0])

    def work(self, queries: Floats) -> Rows | None:
        """Not counted."""
        return None
