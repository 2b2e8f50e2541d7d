"""Queries over REST beside a route that does nothing, and beside the same search in process.

    python -m nestvec.benchmarks.rest --base base.npy --queries queries.npy

Two collections are built from the first `--rows` vectors: as they are, and each tiled four times (768 becomes 3,072
dims). With --db and --collection the first is one that exists. Every round measures every cell, the bare route next to
ours; the figures are medians over the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import nestvec
from nestvec.benchmarks.load.closed import Figures, measure, request
from nestvec.benchmarks.machine import describe

F32 = NDArray[np.float32]

ENCODINGS = ("list", "base64", "msgpack")
_JSON, _MSGPACK = "application/json", "application/msgpack"
_TILES = 4
_QUERIES = 500
_BATCH = 20_000


@dataclass(frozen=True)
class Cell:
    """What is measured: queries of so many dims in one encoding over so many connections."""

    dims: int
    encoding: str
    connections: int


@dataclass(frozen=True)
class Row:
    """A cell's figures, medians over the rounds; `share`: ours over bare, in the same round."""

    cell: Cell
    ours: Figures
    bare: Figures
    share: float


@dataclass(frozen=True)
class Subject:
    """A collection to query, and its queries."""

    db: Path
    collection: str
    queries: F32


def body(vector: F32, encoding: str) -> bytes:
    """The body of a query for ten hits."""
    packed = vector.astype("<f4").tobytes()
    if encoding == "msgpack":
        return msgspec.msgpack.encode({"vector": packed, "k": 10})
    return msgspec.json.encode(
        {"vector": base64.b64encode(packed).decode() if encoding == "base64" else vector.tolist(), "k": 10}
    )


def requests(subject: Subject, encoding: str) -> list[bytes]:
    """Whole requests, one for each query."""
    kind = _MSGPACK if encoding == "msgpack" else _JSON
    path = f"/v1/collections/{subject.collection}/query"
    return [request(path, body(query, encoding), kind, kind) for query in subject.queries]


@contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A server process that answers on its port; killed with everything it started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NESTVEC_")}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(process, port)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
                wire.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                if wire.recv(12)[9:] in (b"200", b"404"):
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers on port {port}; the process ended with {process.poll()}")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serving(subject: Subject) -> tuple[list[str], int]:
    """(the command that serves the subject, its port)."""
    port = free_port()
    return ["nestvec.cli", "serve", "--db", str(subject.db), "--port", str(port)], port


def in_process(subject: Subject, seconds: float) -> Figures:
    """`Collection.search` for the same queries, one after the other, payloads read."""
    with nestvec.open(subject.db) as database:
        collection = database.collection(subject.collection)
        collection.warm()
        search: Callable[..., Any] = collection.search
        times = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for query in subject.queries:
                began = time.perf_counter()
                for hit in search(query, k=10):
                    _ = hit.payload
                times.append(time.perf_counter() - began)
    middle, late = np.percentile(times, [50, 99]) * 1000
    return Figures(1 / float(np.mean(times)), float(middle), float(late))


def reply_size(port: int, one: bytes) -> int:
    """Bytes of one reply's body."""
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(one)
        held = b""
        while b"\r\n\r\n" not in held:
            held += wire.recv(1 << 16)
    head = held.partition(b"\r\n\r\n")[0].lower()
    return int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])


def sample(subject: Subject, cells: list[Cell], seconds: float, rounds: int) -> list[Row]:
    """Every cell in every round, bare then ours."""
    found: dict[Cell, list[tuple[Figures, Figures]]] = {cell: [] for cell in cells}
    wanted = {encoding: requests(subject, encoding) for encoding in ENCODINGS}
    command, port = serving(subject)
    with running(command, port) as ours:
        size = reply_size(ours, wanted["base64"][0])
        bare_port = free_port()
        with running(["nestvec.benchmarks.bare", str(bare_port), str(size)], bare_port) as bare:
            for turn in range(rounds + 1):
                for cell in cells:
                    # The first turn warms up and is not counted.
                    span = seconds if turn else min(seconds, 0.5)
                    pair = (
                        measure(bare, wanted[cell.encoding], cell.connections, span),
                        measure(ours, wanted[cell.encoding], cell.connections, span),
                    )
                    if turn:
                        found[cell].append(pair)
    return [_row(cell, pairs) for cell, pairs in found.items()]


def _row(cell: Cell, pairs: list[tuple[Figures, Figures]]) -> Row:
    def middle(which: int) -> Figures:
        rates, p50, p99 = zip(*((f.per_second, f.p50, f.p99) for f in (pair[which] for pair in pairs)), strict=True)
        return Figures(median(rates), median(p50), median(p99))

    share = median(ours.per_second / bare.per_second for bare, ours in pairs)
    return Row(cell, middle(1), middle(0), share)


def build(directory: Path, vectors: F32, tiles: int) -> Path:
    """A database with one collection "rest" of these vectors, each repeated `tiles` times, with small payloads."""
    with nestvec.open(directory, create=True) as database:
        collection = database.create_collection("rest", dims=vectors.shape[1] * tiles, metric="cosine", dtype="float16")
        batches = (
            nestvec.Batch(
                start,
                vectors=np.tile(vectors[start : start + _BATCH], (1, tiles)),
                payloads=[{"row": row, "lang": "en"} for row in range(start, min(start + _BATCH, len(vectors)))],
            )
            for start in range(0, len(vectors), _BATCH)
        )
        # A nested embedding needs no rotation, and tiles are not what one should be chosen by.
        collection.build(batches, rotate="none")
    return directory


def tables(rows: list[Row], within: dict[int, Figures]) -> str:
    """Markdown: one line per cell, and the search in process above those of its dims."""
    lines = [
        "| dims | encoding | connections | requests/s | p50 ms | p99 ms | bare requests/s | bare p50 ms | share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dims, figures in within.items():
        lines.append(f"| {dims} | in process | – | {figures.per_second:,.0f} | {figures.p50:.3f} | "
                     f"{figures.p99:.3f} | – | – | – |")  # fmt: skip
        for row in rows:
            if row.cell.dims == dims:
                ours, bare = row.ours, row.bare
                lines.append(
                    f"| {dims} | {row.cell.encoding} | {row.cell.connections} | {ours.per_second:,.0f} | "
                    f"{ours.p50:.3f} | {ours.p99:.3f} | {bare.per_second:,.0f} | {bare.p50:.3f} | {row.share:.0%} |"
                )
    return "\n".join(lines)


def run(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure, print the tables and the JSON line."""
    base = np.load(arguments.base, mmap_mode="r", allow_pickle=False)[: arguments.rows].astype(np.float32)
    queries = np.load(arguments.queries, allow_pickle=False)[:_QUERIES].astype(np.float32)
    db = arguments.db or build(scratch / "plain", base, 1)
    subjects = [Subject(db, arguments.collection if arguments.db else "rest", queries)]
    if not arguments.plain:
        tiled = build(scratch / "tiled", base, _TILES)
        subjects.append(Subject(tiled, "rest", np.tile(queries, (1, _TILES))))
    rows: list[Row] = []
    within: dict[int, Figures] = {}
    for subject in subjects:
        dims = subject.queries.shape[1]
        within[dims] = in_process(subject, arguments.seconds)
        cells = [Cell(dims, encoding, n) for n in (1, 16) for encoding in arguments.encodings]
        rows += sample(subject, cells, arguments.seconds, arguments.rounds)
    sys.stdout.write(tables(rows, within) + "\n")
    told = {"machine": describe(), "in_process": {d: asdict(f) for d, f in within.items()}}
    sys.stdout.write(json.dumps(told | {"cells": [asdict(row) for row in rows]}) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help=".npy of vectors [n, dims] to build from")
    parser.add_argument("--queries", type=Path, required=True, help=".npy of queries [q, dims]")
    parser.add_argument("--rows", type=int, default=50_000, help="how many of the base vectors")
    parser.add_argument("--db", type=Path, help="a database to query instead of building the first")
    parser.add_argument("--collection", default="rest", help="its collection")
    parser.add_argument("--plain", action="store_true", help="leave the tiled vectors out")
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--seconds", type=float, default=3.0, help="per cell and round")
    parser.add_argument("--rounds", type=int, default=3)
    with tempfile.TemporaryDirectory(prefix="nestvec-rest-") as scratch:
        run(parser.parse_args(), Path(scratch))


if __name__ == "__main__":
    main()
