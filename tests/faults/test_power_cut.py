"""F9: the power is cut after every call of every protocol, and what was not synced is lost, kept or torn.

The real recovery then finds the old state or the new one, whole, and nothing else.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultlib import Model, amount, apply, check_search, check_tidy, listed, record_of, send, stored
from powercut import Recorder, states
from writers import build

import nestvec
from nestvec.engine import build as building
from nestvec.engine import compaction
from nestvec.engine.database import Database
from nestvec.engine.storage import files

ROWS = 40
MOST = amount(30, 4000)
Work = Callable[[Database], object]
BUILT = [(f"built{i}", 900 + i) for i in range(ROWS)]

PROTOCOLS: dict[str, tuple[str, Work]] = {  # name -> (what is there before, what is done)
    "first seal": ("growing", lambda database: database.collection("c").seal()),
    "second seal": ("sealed", lambda database: database.collection("c").seal()),
    "compact": ("sealed", lambda database: database.collection("c").compact()),
    "retrain": ("sealed", lambda database: database.collection("c").compact(retrain=True)),
    "first build": ("empty", lambda database: build(database.collection("c"), BUILT, "pca")),
    "second build": ("sealed", lambda database: build(database.collection("c"), BUILT)),
    "snapshot": ("sealed", lambda database: database.snapshot("c")),
    "restore": ("snapshot", lambda database: database.restore(database.snapshots()[0].name, "other")),
    "create": ("growing", lambda database: database.create_collection("made", dims=2)),
    "delete": ("growing", lambda database: database.delete_collection("doomed")),
    "first key": ("growing", lambda database: database.create_key("k", "read")),
}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory that is no disk where there is one: thousands of states are written."""
    home = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="nestvec-", dir=home if home.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _small_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MIN_TRAINING_ROWS", 20)
    monkeypatch.setattr(building, "MIN_TRAINING_ROWS", 20)


def prepare(path: Path, kind: str) -> Model:
    model: Model = {}
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=8, metric="dot")
        database.create_collection("doomed", dims=2)
        if kind == "empty":
            return model
        for turn in range(2):
            request = [(f"r{i}", 100 * turn + i + 1) for i in range(turn * 10, ROWS)]
            send(collection, request)
            model = apply(model, request)
            if kind != "growing" and turn == 0:
                collection.seal()
        if kind == "snapshot":
            database.snapshot("c")
    return model


def record(path: Path, work: Work, lying: str) -> Recorder:
    """Run a protocol on the recording disk."""
    recorder, before = Recorder(path, lying), files.disk
    with nestvec.open(path) as database:
        files.disk = recorder
        try:
            work(database)
            recorder._note("before")
        finally:
            files.disk = before
    return recorder


def run(name: str, memory: Path, lying: str = "", most: int = MOST) -> int:
    kind, work = PROTOCOLS[name]
    model = prepare(memory / "db", kind)
    shutil.copytree(memory / "db", memory / "base")
    recorder = record(memory / "db", work, lying)
    allowed = [model, apply(model, BUILT)] if "build" in name else [model]
    seen, outcomes = 0, set()
    for call, state in states(memory / "base", recorder.moments, memory, most):
        try:
            outcomes.add(recovered(state, allowed))
        except Exception as error:
            raise AssertionError(f"{name}, cut after {call}: {type(error).__name__}: {error}") from error
        seen += 1
    assert len(outcomes) >= 2 or name == "snapshot", f"{name} was never seen done, or never undone: {outcomes}"
    print(f"F9: {name}: {len(recorder.moments)} calls, {seen} states, outcomes {sorted(outcomes)}")
    return seen


def recovered(path: Path, allowed: list[Model]) -> str:
    """Open what is left, check all of it, and say which state it is."""
    with nestvec.open(path, create=False) as database:
        assert database.damaged() == []
        collection = database.collection("c")
        records = stored(collection)
        found = {record.id: (record.payload or {})["version"] for record in records}
        assert found in allowed
        assert collection.count() == len(found)
        check_search(collection, found)
        info = collection.info()
        segments = sorted(listed(collection.part.layout.root)["segments"])
        assert all(one.damage is None for one in database.snapshots())
        for other in ("other", "made", "doomed"):
            if other in (names := {one.name for one in database.collections()}):
                assert database.collection(other).count() == (len(found) if other == "other" else 0)
        keys = len(database.keys())
        assert all(report.ok for report in database.verify())
        collection.upsert([record_of("r0", 5000)])
        assert collection.seal().rows
    check_tidy(path)
    return f"{len(found)} records, segments {segments}, generation {info.generation}, {sorted(names)}, {keys} keys"


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_power_cut_leaves_the_old_state_or_the_new_one(name: str, memory: Path) -> None:
    assert run(name, memory) >= 5


@pytest.mark.parametrize("lying", ["fsync", "fsync_directory"])
def test_a_disk_that_does_not_sync_is_found_out(lying: str, memory: Path) -> None:
    """The check can fail: without syncs there are states that no recovery can mend."""
    with pytest.raises(AssertionError, match="cut after"):
        run("compact", memory, lying, 150)
