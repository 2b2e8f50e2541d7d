"""F11, F12, F15, F16: a second service, a build without memory, churn, the syncs of writes and publications."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from documentation import python_passages
from faultlib import amount, record_of

import nestvec
from nestvec import Record
from nestvec.engine.encoders.static import load

SERVE = [sys.executable, "-m", "nestvec.cli", "serve", "--port", "0", "--db"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A running service: its database, and its pid."""
    path = tmp_path / "db"
    with nestvec.open(path) as database:
        database.create_collection("c", dims=8, metric="dot").upsert([record_of("a", 1)])
    with subprocess.Popen([*SERVE, str(path)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "serving" not in process.stderr.readline():
            assert process.poll() is None
        yield path, process.pid
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


HOLD = """
import sys, time, nestvec
with nestvec.open(sys.argv[1]) as database:
    for _ in range(int(sys.argv[2])):
        started = time.monotonic()
        try:
            database.acquire_service_lock()
        except nestvec.DatabaseLocked as error:
            print(error.pid, time.monotonic() - started, error)
"""


def test_a_second_service_is_refused_at_once_with_the_holders_pid(service: tuple[Path, int]) -> None:
    path, pid = service
    times = amount(5, 20)
    asked = subprocess.run(
        [sys.executable, "-c", HOLD, str(path), str(times)], capture_output=True, text=True, check=True
    )
    lines = asked.stdout.splitlines()
    assert len(lines) == times
    for line in lines:
        held, seconds, message = line.split(maxsplit=2)
        assert int(held) == pid
        assert float(seconds) < 1
        assert str(path) in message
    second = subprocess.run([*SERVE, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 3
    assert str(pid) in second.stderr
    assert str(path) in second.stderr


def test_a_killed_service_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "db"
    nestvec.open(path).close()
    with subprocess.Popen([*SERVE, str(path)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "serving" not in process.stderr.readline():
            assert process.poll() is None
        process.kill()
        process.communicate()
    with nestvec.open(path) as database:
        database.acquire_service_lock()


HUNGRY = """
import resource, sys, faiss, numpy as np, nestvec  # faiss now: what runs out is to be the build, not the import
path, room = sys.argv[1], int(sys.argv[2])
vectors = np.random.default_rng(0).normal(size=(20000, 256)).astype(np.float32)
vectors[:2000] @ vectors[:2000].T  # OpenBLAS tries for ever to get its buffers: it has them before memory is short
with nestvec.open(path) as database:
    collection = database.collection("c")
    used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        collection.build([nestvec.Batch(0, [f"b{i}" for i in range(20000)], vectors)], calibrate=False)
        print("built")
    except (MemoryError, nestvec.NestvecError, OSError, RuntimeError) as error:
        print("failed", repr(error)[:100])
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(collection.count(), len(collection.search(vectors[0], k=5)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_build_without_memory_fails_and_leaves_the_collection_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "db"
    vectors = np.random.default_rng(1).normal(size=(1100, 256)).astype(np.float32)
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=256)
        collection.upsert([Record(f"r{i}", vector) for i, vector in enumerate(vectors[:1000])])
        collection.upsert([Record(f"r{i}", vector) for i, vector in enumerate(vectors)])
    outcomes = []
    for room in [1 << 20, 8 << 20, 24 << 20, 48 << 20, 80 << 20][: amount(3, 5)]:
        done = subprocess.run(
            [sys.executable, "-c", HUNGRY, str(path), str(room)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outcome, counted = done.stdout.splitlines()
        outcomes.append(outcome)
        if outcome == "built":
            break
        assert counted == "1100 5"
        with nestvec.open(path) as database:
            assert database.collection("c").count() == 1100
            assert all(report.ok for report in database.verify())
    assert outcomes[0].startswith("failed"), outcomes
    print("F12:", outcomes)


DIMS_OF_TEXT = 128


def text_vectors(rows: int) -> np.ndarray:
    """Float32 [rows, 128]: the static encoder's vectors of runs of words out of the documentation of Python."""
    width = 16
    texts = [passage["text"].split() for passage in python_passages()]
    runs = [" ".join(words[at : at + width]) for words in texts for at in range(0, max(1, len(words) - width), 4)]
    runs = list(dict.fromkeys(runs))
    chosen = np.random.default_rng(3).permutation(len(runs))[:rows]
    assert len(chosen) == rows, f"there are {len(runs)} runs of words"
    return load().encode_queries([runs[i] for i in chosen])[:, :DIMS_OF_TEXT]


def recall(collection: nestvec.Collection, queries: np.ndarray) -> float:
    found = collection.search_batch(queries, k=10)
    truth = collection.search_batch(queries, k=10, exact=True)
    assert all(len(hits) == 10 for hits in found)
    return float(np.mean([len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in zip(found, truth, strict=True)]))


@pytest.mark.timeout(1200)
def test_churn_costs_no_recall_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    """F15, with vectors of real text: what is deleted in one round may come back under another id in a later one."""
    rng = np.random.default_rng(3)
    rows, rounds, asked = amount(4000, 20_000), amount(5, 20), amount(200, 1000)
    vectors = text_vectors(rows * 8 // 5 + asked)
    queries, vectors = vectors[-asked:], vectors[:-asked]
    held = {f"start-{i}": i for i in range(rows)}
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS_OF_TEXT, granularities=(64, DIMS_OF_TEXT))
        collection.build([nestvec.Batch(0, list(held), vectors[:rows])])
        before = recall(collection, queries)
        worst = 1.0
        for turn in range(rounds):
            held = churned(collection, held, vectors, turn, rng)
            collection.seal()
            if turn % 4 == 3:
                collection.compact()
            worst = min(worst, recall(collection, queries))
            assert collection.count() == rows
        answers = [[(hit.id, hit.score) for hit in hits] for hits in collection.search_batch(queries, k=10)]
    with nestvec.open(tmp_path / "db") as database:
        collection = database.collection("c")
        again = [[(hit.id, hit.score) for hit in hits] for hits in collection.search_batch(queries, k=10)]
        assert again == answers
        assert {record.id for record in collection.get(list(held))} == set(held)
        after = recall(collection, queries)
    print(f"F15: recall@10 {before:.4f} before, {worst:.4f} at worst, {after:.4f} after {rounds} rounds of {rows} rows")
    assert worst >= before - 0.01


def churned(
    collection: nestvec.Collection, held: dict[str, int], vectors: np.ndarray, turn: int, rng: np.random.Generator
) -> dict[str, int]:
    """Delete 30 % and write as many others: id -> row of `vectors`, before and after."""
    doomed = rng.choice(list(held), len(held) * 3 // 10, replace=False).tolist()
    free = np.setdiff1d(np.arange(len(vectors)), list(held.values()))
    fresh = {f"t{turn}-{row}": int(row) for row in rng.choice(free, len(doomed), replace=False)}
    for start in range(0, len(doomed), 1000):
        collection.delete(doomed[start : start + 1000])
        part = list(fresh)[start : start + 1000]
        collection.upsert([Record(id, vectors[fresh[id]]) for id in part])
    assert not collection.get(doomed[:1000])
    gone = set(doomed)
    return {id: row for id, row in held.items() if id not in gone} | fresh


SYNCS = """
import sys, numpy as np, nestvec, os
with nestvec.open(sys.argv[1]) as database:
    collection = database.collection("c")
    rng = np.random.default_rng(0)
    def mark(word):
        os.stat("/mark-" + word) if os.path.exists("/mark-" + word) else None
    collection.upsert([nestvec.Record("warm", rng.normal(size=8))])
    mark("upsert")
    for i in range(20):
        collection.upsert([nestvec.Record(f"r{i}", rng.normal(size=8))])
        mark("acknowledged")
    collection.seal()
    mark("sealed")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_every_acknowledged_write_and_every_publication_is_synced(tmp_path: Path) -> None:
    path, log = tmp_path / "db", tmp_path / "calls"
    with nestvec.open(path) as database:
        database.create_collection("c", dims=8, metric="cosine")
    calls = "trace=fsync,fdatasync,rename,stat,newfstatat,openat"
    subprocess.run(
        ["strace", "-f", "-y", "-o", log, "-e", calls, sys.executable, "-c", SYNCS, str(path)],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    lines = log.read_text().splitlines()
    marks = [place for place, line in enumerate(lines) if "/mark-upsert" in line or "/mark-acknowledged" in line]
    assert len(marks) == 21
    for start, end in pairwise(marks):
        assert any("fdatasync" in line and "catalog.sqlite-wal" in line for line in lines[start:end])
    seal = lines[marks[-1] :]
    synced = [found.group(1) for line in seal if (found := re.search(r"f(?:data)?sync\(\d+<([^>]*)>\)", line))]
    for name in ("vectors.bin", "norms.bin", "seqs.bin", "manifest.json"):
        assert any(one.endswith(name) for one in synced), name
    assert any(re.search(r"/tmp-segment-[0-9a-f]+$", one) for one in synced), "the directory itself"
    assert any(one.endswith("/segments") for one in synced), "the directory that holds its name"
    at = next(place for place, line in enumerate(seal) if "rename(" in line and "/segments/" in line)
    assert sum("tmp-segment-" in line for line in seal[:at] if "sync(" in line) >= 5, "all before the renaming"
