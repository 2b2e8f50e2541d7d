"""ScaNN: `scann` (Google's wheel) and `scann-core` (a derivative) share one module name and one interface.

Build settings: leaves; truncate (a prefix for partitions and codes, or null; rescoring is by full vectors all the
same); dims_per_block; threshold (of score-aware codes); soar (lambda, or null); reorder (float32, bfloat16, int8);
global_topn (default: wherever the codes allow it). Search settings: leaves, reorder.
"""

from __future__ import annotations

import importlib
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestvec.benchmarks.peers.host import Ask, Base, Floats, Reply, Rows, Settings

_DISTANCES = {"dot": "dot_product", "l2": "squared_l2"}
_OVERRETRIEVE = 1.5
_MAX_BLOCKS_OF_GLOBAL_TOPN = 256
_MAX_SAMPLE = 250_000


class Scann:
    """A tree-AH searcher with exact reordering."""

    own_cosine = False

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Train and index, with `threads` training threads."""
        pybind: Any = importlib.import_module("scann").scann_ops_pybind
        vectors = base.whole()
        builder = pybind.builder(vectors, 10, _DISTANCES[metric])
        if settings["truncate"]:
            builder.truncate(settings["truncate"])
        soar = (
            {} if settings["soar"] is None else {"soar_lambda": settings["soar"], "overretrieve_factor": _OVERRETRIEVE}
        )
        sample = min(base.n, _MAX_SAMPLE)
        builder.tree(
            settings["leaves"],
            max(1, settings["leaves"] // 10),
            training_sample_size=sample,
            spherical=metric == "dot",
            quantize_centroids=True,
            **soar,
        )
        builder.score_ah(
            settings["dims_per_block"],
            anisotropic_quantization_threshold=settings["threshold"] if metric == "dot" else math.nan,
            training_sample_size=sample,
        )
        builder.reorder(100, quantize=pybind.scann_builder.ReorderType[settings["reorder"].upper()])
        config = _with_global_topn(builder.create_config(), base.dims, metric, settings)
        self._searcher = pybind.create_searcher(vectors, config, threads)

    def index_bytes(self, folder: Path) -> int:
        """Size of the serialised searcher."""
        self._searcher.serialize(str(folder))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)
        return size

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """One query on the calling thread; batches through the thread pool where there is more than one thread."""
        searcher, leaves, reorder = self._searcher, settings["leaves"], max(k, settings["reorder"])
        if threads > 1:
            searcher.set_num_threads(threads)

        def one(query: Floats) -> Reply:
            return searcher.search(query, k, reorder, leaves)

        def many(queries: Floats) -> Reply:
            ask = searcher.search_batched if threads == 1 else searcher.search_batched_parallel
            return ask(queries, k, reorder, leaves)

        return one, many, lambda reply: reply[0]

    def work(self, queries: Floats) -> Rows | None:
        """Not counted."""
        return None


def _with_global_topn(config: str, dims: int, metric: str, settings: Settings) -> str:
    """The config with the global top-N switched by the blocks there really are: the builder looks at the full
    dimension even where codes cover a prefix only, and so leaves its fast path unused."""
    blocks = math.ceil((settings["truncate"] or dims) / settings["dims_per_block"])
    possible = metric == "dot" and blocks <= _MAX_BLOCKS_OF_GLOBAL_TOPN
    return re.sub(r"use_global_topn: \w+", f"use_global_topn: {possible and settings.get('global_topn', True)}", config)
