"""faiss: inverted lists with 4-bit codes and SQ8 rescoring, and HNSW over SQ8.

Build settings of the lists: lists; prefix (the dims that lists and codes see, or null: all); of `PrefixPq` also
dims_per_block and residual. Search settings: probes, factor (the shortlist is factor x k rows). `HnswSq8`: m,
ef_construction; ef.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestvec.benchmarks.peers.host import Ask, Base, Floats, Reply, Rows, Settings

faiss: Any = importlib.import_module("faiss")
Index = Any
"""faiss describes its classes only in part."""

_METRICS = {"dot": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
_SAMPLE_PER_LIST = 128


class _Faiss:
    """What every faiss index here shares."""

    own_cosine = False
    _index: Index

    def index_bytes(self, folder: Path) -> int:
        """Size of the index as faiss writes it."""
        sizes: list[int] = []

        def count(block: bytes) -> int:
            sizes.append(len(block))
            return len(block)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return sum(sizes)

    def work(self, queries: Floats) -> Rows | None:
        """Not counted."""
        return None

    def _fill(self, base: Base, sample: int) -> None:
        self._index.train(base.sample(sample))
        for block in base.blocks():
            self._index.add(block)

    def _ask(self, k: int, threads: int) -> Ask:
        faiss.omp_set_num_threads(threads)
        search = self._index.search

        def one(query: Floats) -> Reply:
            return search(query[None], k)

        def many(queries: Floats) -> Reply:
            return search(queries, k)

        return one, many, lambda reply: reply[1]


class _Lists(_Faiss):
    """Inverted lists over a prefix, and SQ8 rescoring over all dims."""

    _lists: Index

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Train on a sample, add all rows."""
        faiss.omp_set_num_threads(threads)
        dims, space = settings["prefix"] or base.dims, _METRICS[metric]
        first = self._first(faiss.IndexFlat(dims, space), dims, settings)
        self._lists.cp.spherical = metric == "dot"
        if dims < base.dims:
            first = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(base.dims, dims, False), first)
        rescore = faiss.IndexScalarQuantizer(base.dims, faiss.ScalarQuantizer.QT_8bit, space)
        self._index = faiss.IndexRefine(first, rescore)
        self._fill(base, _SAMPLE_PER_LIST * settings["lists"])

    def _first(self, coarse: Index, dims: int, settings: Settings) -> Index:
        """Set `_lists`; return it with whatever goes before it."""
        raise NotImplementedError

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Set the probes and the length of the shortlist."""
        self._lists.nprobe = settings["probes"]
        self._index.k_factor = settings["factor"]
        return self._ask(k, threads)


class PrefixPq(_Lists):
    """Product codes of 4 bits, summed in registers (fast scan)."""

    def _first(self, coarse: Index, dims: int, settings: Settings) -> Index:
        blocks = dims // settings["dims_per_block"]
        self._lists = faiss.IndexIVFPQFastScan(coarse, dims, settings["lists"], blocks, 4, coarse.metric_type)
        self._lists.by_residual = settings["residual"]
        return self._lists


class RaBitQ(_Lists):
    """RaBitQ codes of one bit over randomly rotated vectors, by fast scan."""

    def _first(self, coarse: Index, dims: int, settings: Settings) -> Index:
        self._lists = faiss.IndexIVFRaBitQFastScan(coarse, dims, settings["lists"], coarse.metric_type)
        return faiss.IndexPreTransform(faiss.RandomRotationMatrix(dims, dims), self._lists)


class HnswSq8(_Faiss):
    """A graph over 8-bit scalar codes of all dims."""

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Train the ranges on a sample, add all rows."""
        faiss.omp_set_num_threads(threads)
        self._index = faiss.IndexHNSWSQ(base.dims, faiss.ScalarQuantizer.QT_8bit, settings["m"], _METRICS[metric])
        self._index.hnsw.efConstruction = settings["ef_construction"]
        self._fill(base, 100_000)

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Set the width of the search."""
        self._index.hnsw.efSearch = settings["ef"]
        return self._ask(k, threads)
