"""nestvec, through its public names. Ids are row numbers as text.

Build settings: dtype (float32, float16), and under "options" whatever `Collection.build` takes. Search settings: the
JSON of a `nestvec.Plan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

import nestvec

if TYPE_CHECKING:
    from nestvec.benchmarks.peers.host import Ask, Base, Floats, Reply, Rows, Settings


class _Nestvec:
    """One collection, bulk-built."""

    own_cosine = True
    soar = True

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Create and build the collection under `folder`."""
        faiss.omp_set_num_threads(threads)
        database: Any = nestvec.open(folder / "db")
        self._collection = database.create_collection(
            "bench", dims=base.dims, metric=metric, dtype=settings.get("dtype", "float32")
        )
        # plans are given here: what calibration costs, and is worth, promises.py says
        self._collection.build(_batches(base), soar=self.soar, calibrate=False, **settings.get("options", {}))

    def index_bytes(self, folder: Path) -> int:
        """Bytes of the database directory: vectors, index, ids."""
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Fix the plan."""
        faiss.omp_set_num_threads(threads)
        self._k, self._plan = k, nestvec.Plan.from_json(settings)
        collection, plan = self._collection, self._plan

        def one(query: Floats) -> Reply:
            return collection.search(query, k=k, plan=plan, with_payload=False)

        def many(queries: Floats) -> Reply:
            return collection.search_batch(queries, k=k, plan=plan, with_payload=False)

        return (one, many, _hit_rows)

    def work(self, queries: Floats) -> Rows | None:
        """Rows and bytes, as the hits of `Collection.search` count them."""
        counted = np.empty((len(queries), 2), np.int64)
        for place, query in enumerate(queries):
            work = self._collection.search(query, k=self._k, plan=self._plan, with_payload=False).work
            counted[place] = work.rows, work.bytes
        return counted


class Exact(_Nestvec):
    """The exact scan."""

    soar = False


class Soar(_Nestvec):
    """The SOAR index through `Collection.search`: ids, one instant per call."""


class SoarReader(_Nestvec):
    """The SOAR index through a pinned reader: row numbers, no ids."""

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Fix the plan and pin the reader."""
        super().ready(settings, k, threads)
        if not hasattr(self, "_reader"):
            self._reader = self._collection.reader()
        reader, plan = self._reader, self._plan

        def one(query: Floats) -> Reply:
            return reader.search(query, k=k, plan=plan)

        def many(queries: Floats) -> Reply:
            return reader.search_batch(queries, k=k, plan=plan, threads=threads)

        return (one, many, lambda reply: reply[0])


def _batches(base: Base) -> Iterator[nestvec.Batch]:
    start = 0
    for block in base.blocks():
        yield nestvec.Batch(start=start, ids=None, vectors=block, texts=None, payloads=None)
        start += len(block)


def _hit_rows(reply: Reply) -> list[list[int]]:
    """The ids of one search's hits, or of a batch's, padded with -1 to one length."""
    found = [[int(hit.id) for hit in hits.hits] for hits in (reply if isinstance(reply, list) else [reply])]
    width = max(map(len, found))
    return [rows + [-1] * (width - len(rows)) for rows in found]
