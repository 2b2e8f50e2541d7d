"""Declaring fields of a collection that lives: checked against what is stored, known to all processes at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec import Record
from nestvec.engine.database import Database
from nestvec.engine.reconfigure import Outdated, config_version

ONE = np.ones(2, np.float32)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2, fields={"year": "number"})
        collection.upsert([Record(str(i), ONE, {"year": i, "tag": "x", "mixed": 1}) for i in range(1500)])
        collection.seal()
        yield database


def test_a_declaration_holds_every_later_write_and_survives(database: Database, tmp_path: Path) -> None:
    collection = database.collection("c")
    before = config_version(collection.config)
    collection.declare({"tag": "string"}, expected=before)
    assert collection.config.fields == {"year": "number", "tag": "string"}
    assert config_version(collection.config) != before
    with pytest.raises(nestvec.InvalidRecord, match="'tag' is declared string"):
        collection.upsert([Record("bad", ONE, {"tag": 3})])
    with pytest.raises(nestvec.InvalidRecord, match="'tag' is declared string"):
        collection.build([nestvec.Batch(0, ["bad"], ONE[None], payloads=[{"tag": 3}])])
    with nestvec.open(tmp_path / "db") as again:
        assert again.collection("c").config == collection.config


def test_what_does_not_fit_is_refused_and_changes_nothing(database: Database) -> None:
    collection = database.collection("c")
    collection.upsert([Record("odd", ONE, {"mixed": "one"})])
    before = collection.config
    with pytest.raises(nestvec.Conflict, match="record 'odd'"):
        collection.declare({"mixed": "number", "tag": "string"})
    with pytest.raises(nestvec.Conflict, match="'year' is declared number"):
        collection.declare({"year": "string"})
    with pytest.raises(nestvec.InvalidInput):
        collection.declare({"": "string"})
    with pytest.raises(Outdated, match="read it again"):
        collection.declare({"tag": "string"}, expected="0" * 16)
    assert collection.info().config == before
    collection.declare({"year": "number"})  # as it is
    assert collection.info().config == before


def test_another_process_holds_its_writes_to_it_at_once(database: Database, tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as other:
        held = other.collection("c")
        database.collection("c").declare({"tag": "string"})
        with pytest.raises(nestvec.InvalidRecord, match="declared string"):
            held.upsert([Record("bad", ONE, {"tag": 3})])
        assert held.info().config.fields["tag"] == "string"
        held.upsert([Record("good", ONE, {"tag": "y"})])


def test_a_build_that_began_before_is_not_published_unchecked(database: Database, tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as other:

        def batches() -> Iterator[nestvec.Batch]:
            yield nestvec.Batch(0, ["bad"], ONE[None], payloads=[{"tag": 3}])
            other.collection("c").declare({"tag": "string"})

        with pytest.raises(nestvec.Conflict, match="build again"):
            database.collection("c").build(batches())
    assert database.collection("c").count() == 1500
    database.collection("c").verify()


def test_racing_writers_and_declarations_leave_no_record_that_does_not_fit(database: Database, tmp_path: Path) -> None:
    stop, errors = threading.Event(), list[BaseException]()

    def write(number: int) -> None:
        with nestvec.open(tmp_path / "db") as mine:
            collection, i = mine.collection("c"), 0
            while not stop.is_set():
                i += 1
                payload = {f"f{n}": 1 if i % 20 else "one" for n in range(20)}
                try:
                    collection.upsert([Record(f"w{number}", ONE, payload)])
                except nestvec.InvalidRecord:
                    pass
                except BaseException as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    collection, declared = database.collection("c"), 0
    for n in range(20):
        try:
            collection.declare({f"f{n}": "number"})
            declared += 1
        except nestvec.Conflict:  # one of the two held a string just then
            pass
        for record in collection.get(["w0", "w1"]):
            for name in set(collection.config.fields) - {"year"}:
                assert record.payload is not None
                assert record.payload[name] == 1
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert declared > 1
