"""The memory of records: it says what the catalog says, whatever was asked before, and stays small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec.engine.collection import Collection
from nestvec.engine.record import Record
from nestvec.engine.storage.catalog import read_records
from nestvec.engine.storage.records import RecordMemory
from nestvec.errors import Damaged

ROWS = 300


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("docs", dims=2)
        rows = np.eye(2, dtype=np.float32)[np.arange(ROWS) % 2]
        collection.upsert([Record(f"r{i}", rows[i], {"n": i}, "x" * i) for i in range(ROWS)])
        yield collection


@pytest.mark.parametrize("most_bytes", [0, 5_000, 60_000, 1 << 24])
def test_it_finds_what_the_catalog_holds_in_any_order(collection: Collection, most_bytes: int) -> None:
    memory, rng = RecordMemory(most_bytes), np.random.default_rng(3)
    with collection.part.keeper.current() as (connection, _):
        for _ in range(200):
            seqs = rng.integers(1, ROWS + 1, rng.integers(0, 12))
            expected = [read_records(connection, [int(seq)])[0] for seq in seqs]
            assert memory.read(connection, seqs) == expected
            held = [*memory._young.values(), *memory._old.values()]
            assert sum(len(id) + len(payload) + len(text or "") for id, payload, text in held) <= most_bytes


def test_what_is_asked_for_again_is_not_read_again(collection: Collection) -> None:
    memory, popular = RecordMemory(40_000), np.array([7, 8, 9])
    with collection.part.keeper.current() as (connection, _):
        for start in range(20, ROWS, 20):  # several times more than it keeps
            first = memory.read(connection, popular)
            memory.read(connection, np.arange(start, start + 20))
            assert all(new is old for new, old in zip(memory.read(connection, popular), first, strict=True))


def test_searches_see_every_new_version_and_no_deleted_one(collection: Collection) -> None:
    query = np.array([1.0, 0.0], np.float32)
    for version in range(5):
        collection.upsert([Record("r0", query, {"version": version})])
        found = collection.search(query, k=ROWS)
        assert {hit.id: hit.payload for hit in found}["r0"] == {"version": version}
        assert len(found) == ROWS
    collection.delete(["r0"])
    assert "r0" not in {hit.id for hit in collection.search(query, k=ROWS)}


def test_a_record_that_fails_its_checksum_is_never_remembered(collection: Collection) -> None:
    with collection.part.catalog.write() as connection:
        connection.execute("UPDATE record SET payload=? WHERE seq=5", (b'{"n":50}',))
    memory = RecordMemory()
    with collection.part.keeper.current() as (connection, _):
        memory.read(connection, np.array([4, 6]))
        for _ in range(2):
            with pytest.raises(Damaged, match="seq 5"):
                memory.read(connection, np.array([4, 5, 6]))
