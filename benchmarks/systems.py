"""The systems under test, behind one protocol, and their registry.

A system is built once per run and then searched at each of its settings, one query at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import nestvec
from nestvec.benchmarks.metrics import Metric, Rows, Scores, Vectors
from nestvec.errors import InvalidInput

Setting = dict[str, Any]
_BATCH_ROWS = 8_192
_MAX_PROBES = 512


@dataclass(frozen=True)
class BuildInfo:
    """What a build cost: seconds, and the bytes that the system keeps (its vectors included)."""

    build_s: float
    index_bytes: int


@dataclass(frozen=True)
class Answers:
    """Raw answers: neighbours i64[q, k] best first (-1: none), seconds f64[q], and work per query i64[q] each."""

    rows: Rows
    seconds: Scores
    rows_scored: Rows
    bytes_read: Rows


class System(Protocol):
    """One way to search vectors."""

    name: str

    def build(self, base: Vectors, metric: Metric, workdir: Path, threads: int) -> BuildInfo:
        """Index `base` [n, d] under the empty directory `workdir`."""

    def settings(self, k: int) -> list[Setting]:
        """The settings to sweep, cheapest first; known once built."""

    def search(self, queries: Vectors, k: int, setting: Setting) -> Answers:
        """Answer `queries` [q, d] one at a time, each timed by itself."""

    def close(self) -> None:
        """Let go of files and memory."""


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass
class Nestvec:
    """nestvec through its public names; ids are row numbers as text."""

    name: str
    soar: bool
    _database: nestvec.Database | None = field(default=None, init=False)
    _collection: Any = field(default=None, init=False)

    def build(self, base: Vectors, metric: Metric, workdir: Path, threads: int) -> BuildInfo:
        """Bulk-build one collection of `base`."""
        self._database = nestvec.open(workdir / "db")
        dims = int(base.shape[1])
        self._collection = self._database.create_collection("bench", dims=dims, metric=metric)
        started = time.perf_counter()
        self._collection.build(_batches(base), soar=self.soar)
        return BuildInfo(time.perf_counter() - started, _disk_bytes(workdir))

    def settings(self, k: int) -> list[Setting]:
        """Exact: one. SOAR: probes doubling, each with short and long funnels."""
        if not self.soar:
            return [{"route": "exact"}]
        dims: tuple[int, ...] = self._collection.config.granularities
        return [{"route": "soar", "probes": p, "stages": s} for p in self._probes() for s in _funnels(dims, k)]

    def _probes(self) -> list[int]:
        """Powers of two, up to about the number of partitions; the engine takes more probes as all of them."""
        bound = min(_MAX_PROBES, max(1.0, float(self._collection.count()) ** 0.6))
        return [2**power for power in range(_MAX_PROBES.bit_length()) if 2**power <= bound]

    def search(self, queries: Vectors, k: int, setting: Setting) -> Answers:
        """Answer through Collection.search, with one fixed plan."""
        plan = _plan(setting)
        found = np.full((len(queries), k), -1, dtype=np.int64)
        seconds = np.empty(len(queries))
        rows_scored, bytes_read = np.empty((2, len(queries)), dtype=np.int64)
        for place, query in enumerate(np.ascontiguousarray(queries, dtype=np.float32)):
            started = time.perf_counter()
            hits = self._collection.search(query, k=k, plan=plan, exact=plan is None, with_payload=False)
            seconds[place] = time.perf_counter() - started
            found[place, : len(hits.hits)] = [int(hit.id) for hit in hits.hits]
            rows_scored[place], bytes_read[place] = hits.work.rows, hits.work.bytes
        return Answers(found, seconds, rows_scored, bytes_read)

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()


def _batches(base: Vectors) -> Iterator[nestvec.Batch]:
    for start in range(0, len(base), _BATCH_ROWS):
        vectors = np.ascontiguousarray(base[start : start + _BATCH_ROWS], dtype=np.float32)
        yield nestvec.Batch(start=start, ids=None, vectors=vectors, texts=None, payloads=None)


def _funnels(granularities: tuple[int, ...], k: int) -> list[list[list[int]]]:
    """Funnels as [dims, keep] stages, cheapest first: short and long ones over the middle prefix, and one of two."""
    middle = granularities[len(granularities) // 2]
    funnels = [[[middle, 5 * k]], [[middle, 20 * k]]]
    if granularities[0] < middle:
        funnels.insert(1, [[granularities[0], 20 * k], [middle, 5 * k]])
    return funnels


def _plan(setting: Setting) -> nestvec.Plan | None:
    if setting["route"] == "exact":
        return None
    stages = tuple(nestvec.Stage(dims=dims, keep=keep) for dims, keep in setting["stages"])
    return nestvec.Plan(route="soar", probes=setting["probes"], stages=stages)


SYSTEMS: dict[str, Callable[[], System]] = {
    "exact": lambda: Nestvec("exact", soar=False),
    "soar": lambda: Nestvec("soar", soar=True),
}


def make_system(name: str) -> System:
    """The system called `name`.

    Raises InvalidInput, with the known names, where there is none.
    """
    if name not in SYSTEMS:
        raise InvalidInput(f"unknown system {name!r}; known: {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]()
