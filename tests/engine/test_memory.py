"""A process keeps no memory and no files for what is over: threads that ended, builds that are done."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path

import numpy as np
import nursery
import pytest

import nestvec
from nestvec import Record

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")


def open_files(path: Path) -> int:
    """Descriptors of files below a directory."""
    held = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            held += os.readlink(link).startswith(str(path))
        except FileNotFoundError:  # the one that lists them
            continue
    return held


def test_a_thread_that_ended_leaves_no_connection(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=4)
        collection.upsert([Record("a", np.ones(4))])
        found: list[str] = []

        def search() -> None:
            found.extend(hit.id for hit in collection.search(np.ones(4), k=1))

        def in_a_thread() -> int:
            thread = threading.Thread(target=search)
            thread.start()
            thread.join()
            return open_files(tmp_path)

        in_a_thread()
        held = in_a_thread()  # the last one's connection is closed when the next needs one
        assert [in_a_thread() for _ in range(20)] == [held] * 20
        assert found == ["a"] * 22
        search()  # those of the living still work
    assert open_files(tmp_path) == 0


LEFT = """
import ctypes, sys, numpy as np, nestvec
def held():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) >> 10
vectors = np.random.default_rng(0).standard_normal((3000, 256), np.float32)
with nestvec.open(sys.argv[1]) as database:
    collection = database.create_collection("c", dims=256)
    collection.build([nestvec.Batch(0, [str(i) for i in range(3000)], vectors)])
    kept = held()
    ctypes.CDLL(None).malloc_trim(0)
    print(kept - held())
"""


def test_a_build_gives_back_what_it_worked_in(tmp_path: Path) -> None:
    """In a process of its own: MiB that are still free in the heap when a build returns."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library than glibc")
    done = nursery.run([sys.executable, "-c", LEFT, str(tmp_path / "db")])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 4
