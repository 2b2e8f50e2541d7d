"""The process that one system lives in: it takes orders, builds one index, answers and times queries.

`python -P host.py PEER.py CLASS`. It needs numpy and whatever PEER.py imports; nestvec is not there. Orders come as
JSON objects, one a line, on standard input, and each is answered by one line on standard output (what libraries print
goes to standard error). Arrays travel as .npy files, without pickle.

| order | keys | answer |
|---|---|---|
| build | base, rows, metric, settings, threads, folder, packages | seconds, peak_rss, resident, index_bytes, versions |
| search | queries, limit, settings, k, mode, threads, batch, min_seconds, answers (a path or null) | passes |
| work | queries, limit, settings, k, answers | counted: whether the system counts its work |

A class in PEER.py has the methods of `Peer`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Settings = dict[str, Any]
Reply = Any
"""What a library answers with; only its own peer can read it."""
Ask = tuple[Callable[[Floats], Reply], Callable[[Floats], Reply], Callable[[Reply], Any]]
"""How to ask: one query f32[d]; many f32[b, d]; and the row numbers [k] or [b, k] in a reply to either."""

WARM_UP_QUERIES = 20
MAX_PASSES = 500
_BLOCK_ROWS = 16_384
_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class Base:
    """The vectors to index, float32, read from their .npy file: a memory map would count as the system's memory."""

    def __init__(self, path: str, limit: int | None, unit: bool) -> None:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self._path, self._dtype, self._offset, self._unit = path, mapped.dtype, int(mapped.offset), unit
        self.n, self.dims = min(len(mapped), limit or len(mapped)), int(mapped.shape[1])

    def blocks(self) -> Iterator[Floats]:
        """All rows in order, in blocks f32[m, d]."""
        size = self._dtype.itemsize * self.dims
        for start in range(0, self.n, _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, self.n - start) * self.dims
            block = np.fromfile(self._path, self._dtype, count, offset=self._offset + start * size)
            yield as_floats(block.reshape(-1, self.dims), self._unit)

    def whole(self) -> Floats:
        """All rows f32[n, d] in memory."""
        everything = np.empty((self.n, self.dims), np.float32)
        start = 0
        for block in self.blocks():
            everything[start : start + len(block)] = block
            start += len(block)
        return everything

    def sample(self, size: int) -> Floats:
        """At most `size` rows f32[m, d], spread evenly over the base."""
        step = max(1, self.n // size)
        kept, start = [], 0
        for block in self.blocks():
            kept.append(block[-start % step :: step].copy())
            start += len(block)
        return np.concatenate(kept)[:size]


class Peer(Protocol):
    """One library. `own_cosine`: it takes metric "cosine" itself; others get unit vectors and "dot"."""

    own_cosine: bool

    def build(self, base: Base, metric: str, settings: Settings, threads: int, folder: Path) -> None:
        """Index all rows of `base`; row numbers are the ids. `folder` is empty and the peer's own."""

    def index_bytes(self, folder: Path) -> int:
        """Bytes of the index as the library saves it."""

    def ready(self, settings: Settings, k: int, threads: int) -> Ask:
        """Apply search settings."""

    def work(self, queries: Floats) -> Rows | None:
        """Rows scored and bytes read i64[q, 2] under the settings last applied; None: it does not count."""


def as_floats(vectors: npt.NDArray[Any], unit: bool) -> Floats:
    """The vectors as C-contiguous float32 [m, d]; `unit`: divided by their length."""
    floats = np.ascontiguousarray(vectors, np.float32)
    if unit:
        lengths = np.linalg.norm(floats, axis=1, keepdims=True)
        floats = floats / np.maximum(lengths, np.finfo(np.float32).tiny)
    return floats


def use_threads(threads: int) -> None:
    """Pin every thread of this process to the last `threads` cores it may use, and give BLAS as many threads."""
    if _CPUS:
        chosen = set(_CPUS[-threads:])
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), chosen)
    for library in _mapped_libraries("openblas"):
        for name in ("openblas_set_num_threads", "scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
            if hasattr(library, name):
                getattr(library, name)(threads)


def _mapped_libraries(word: str) -> list[ctypes.CDLL]:
    """The shared libraries of this process with `word` in their file name."""
    maps = Path("/proc/self/maps")
    text = maps.read_text() if maps.exists() else ""
    return [ctypes.CDLL(path) for path in sorted(set(re.findall(rf"(/\S*{word}\S*\.so\S*)", text)))]


def memory(key: str) -> int:
    """VmHWM (highest resident size) or VmRSS (now), bytes; where Linux is absent the highest serves for both."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{key}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def one_pass(ask: Ask, queries: Floats, mode: str, batch: int) -> tuple[npt.NDArray[np.float64], list[Any]]:
    """Ask every query once: seconds of each call, and the replies as they came."""
    one, many, _ = ask
    clock, replies = time.perf_counter, []
    calls: list[Floats] = list(queries)
    if mode == "batch":
        calls = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    function = many if mode == "batch" else one
    seconds = np.empty(len(calls))
    for place, call in enumerate(calls):
        began = clock()
        reply = function(call)
        seconds[place] = clock() - began
        replies.append(reply)
    return seconds, replies


def rows_of(ask: Ask, replies: list[Any], n_queries: int, k: int) -> Rows:
    """Row numbers i64[q, k] of the replies; -1 where a query got fewer than k."""
    _, _, rows_in = ask
    found = np.full((n_queries, k), -1, np.int64)
    start = 0
    for reply in replies:
        ids = np.asarray(rows_in(reply)).astype(np.int64)
        ids = ids[None] if ids.ndim == 1 else ids
        found[start : start + len(ids), : ids.shape[1]] = ids[:, :k]
        start += len(ids)
    return found


def percentiles(seconds: npt.NDArray[np.float64], mode: str) -> dict[str, float]:
    """A pass as its total and, for single queries, the percentiles of their times."""
    facts = {"seconds": float(seconds.sum())}
    if mode == "single":
        p50, p99 = np.percentile(seconds, (50, 99)) * 1e6
        facts |= {"p50_us": float(p50), "p99_us": float(p99)}
    return facts


class Host:
    """One peer, its index once built, and the orders it understands."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._unit = False
        self._queries: tuple[Any, Floats] | None = None

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one order; a failure is an answer too."""
        try:
            result: dict[str, Any] = {"build": self.build, "search": self.search, "work": self.work}[order["do"]](order)
        except Exception as error:  # whatever a library raises is the caller's to report
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        return result

    def build(self, order: dict[str, Any]) -> dict[str, Any]:
        """Build the index and say what it cost."""
        metric, threads, folder = order["metric"], order["threads"], Path(order["folder"])
        self._unit = metric == "cosine" and not self._peer.own_cosine
        base = Base(order["base"], order["rows"], self._unit)
        use_threads(threads)
        began = time.perf_counter()
        self._peer.build(base, "dot" if self._unit else metric, order["settings"], threads, folder)
        facts = {"seconds": time.perf_counter() - began, "resident": memory("VmRSS"), "peak_rss": memory("VmHWM")}
        versions = {"python": platform.python_version()} | {name: version(name) for name in order["packages"]}
        return facts | {"index_bytes": self._peer.index_bytes(folder), "versions": versions}

    def search(self, order: dict[str, Any]) -> dict[str, Any]:
        """Passes over the queries until `min_seconds` are measured; the first one's row numbers go to `answers`."""
        queries, k, mode, batch = self._load(order), order["k"], order["mode"], order["batch"]
        ask = self._peer.ready(order["settings"], k, order["threads"])
        use_threads(order["threads"])
        one_pass(ask, queries[:WARM_UP_QUERIES], mode, batch)
        passes: list[dict[str, float]] = []
        while len(passes) < MAX_PASSES and sum(each["seconds"] for each in passes) < order["min_seconds"]:
            seconds, replies = one_pass(ask, queries, mode, batch)
            if not passes and order["answers"]:
                np.save(order["answers"], rows_of(ask, replies, len(queries), k), allow_pickle=False)
            passes.append(percentiles(seconds, mode))
        return {"passes": passes}

    def work(self, order: dict[str, Any]) -> dict[str, Any]:
        """Count, untimed, the work of every query, if the peer can; i64[q, 2] goes to `answers`."""
        queries = self._load(order)
        self._peer.ready(order["settings"], order["k"], 1)
        counted = self._peer.work(queries)
        if counted is not None:
            np.save(order["answers"], counted, allow_pickle=False)
        return {"counted": counted is not None}

    def _load(self, order: dict[str, Any]) -> Floats:
        key = (order["queries"], order["limit"])
        if self._queries is None or self._queries[0] != key:
            vectors = np.load(key[0], mmap_mode="r", allow_pickle=False)[: key[1]]
            self._queries = key, as_floats(vectors, self._unit)
        return self._queries[1]


def load_peer(path: Path, name: str) -> Peer:
    """The class called `name` in the file `path`, made."""
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    peer: Peer = getattr(module, name)()
    return peer


def main() -> None:
    """Answer orders until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    host = Host(load_peer(Path(sys.argv[1]), sys.argv[2]))
    for line in sys.stdin:
        replies.write(json.dumps(host.answer(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
