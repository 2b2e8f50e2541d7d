"""A write in two steps: begun, it keeps other writers out; committed, it is what `upsert` makes; else it is nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec import Collection, Record
from nestvec.errors import InvalidRecord

DIMS = 4


def record(id: str, value: float = 1.0) -> Record:
    return Record(id, np.full(DIMS, value, np.float32), {"value": value})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=DIMS, metric="dot").upsert([record("kept")])
    return tmp_path / "db"


def ids(collection: Collection) -> list[str]:
    return sorted(hit.id for hit in collection.search(np.ones(DIMS, np.float32), k=10).hits)


def test_it_is_seen_when_it_is_committed_and_not_before(path: Path) -> None:
    with nestvec.open(path) as database, nestvec.open(path) as elsewhere:
        here, there = database.collection("c"), elsewhere.collection("c")
        commit = here.begin_upsert([record("new"), record("kept", 2.0)])
        assert commit is not None
        assert ids(here) == ids(there) == ["kept"]
        for other in here, there:
            assert other.begin_upsert([record("other")]) is None
        thread = threading.Thread(target=commit)  # begun here, committed there
        thread.start()
        thread.join()
        assert ids(here) == ids(there) == ["kept", "new"]
        assert here.get(["kept"])[0].payload == {"value": 2.0}
        again = there.begin_upsert([record("other")])
        assert again is not None
        assert again().count == 1
        here.upsert([record("last")])
    with nestvec.open(path) as database:
        assert ids(database.collection("c")) == ["kept", "last", "new", "other"]


def test_who_waits_for_it_writes_afterwards(path: Path) -> None:
    with nestvec.open(path) as database:
        collection = database.collection("c")
        commit = collection.begin_upsert([record("first")])
        assert commit is not None
        waiting = threading.Thread(target=lambda: collection.upsert([record("second")]))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        first = commit()
        waiting.join(10)
        assert ids(collection) == ["first", "kept", "second"]
        assert first.seq == 2


def test_what_is_refused_leaves_no_lock_and_no_trace(path: Path) -> None:
    with nestvec.open(path) as database:
        collection = database.collection("c")
        with pytest.raises(InvalidRecord):
            collection.begin_upsert([record("good"), Record("bad", np.full(DIMS, np.nan, np.float32))])
        with pytest.raises(InvalidRecord):
            collection.begin_upsert([Record("wide", np.ones(DIMS + 1, np.float32))])
        assert collection.begin_upsert([Record("text", text="no vector, so it may have to be encoded")]) is None
        collection.upsert([record("good")])
        assert ids(collection) == ["good", "kept"]


_LEAVE = """
import os, sys
import numpy as np
import nestvec
database = nestvec.open(sys.argv[1])
assert database.collection("c").begin_upsert([nestvec.Record("lost", np.ones(4, np.float32))]) is not None
os._exit(7)
"""


def test_a_write_that_is_never_committed_is_nothing(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", _LEAVE, str(path)], check=False, timeout=60).returncode == 7
    with nestvec.open(path) as database:
        collection = database.collection("c")
        assert ids(collection) == ["kept"]
        collection.upsert([record("next")])
        assert ids(collection) == ["kept", "next"]
