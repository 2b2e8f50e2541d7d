"""Search, count, delete and scroll under a filter, while rows grow, are sealed, compacted, replaced and deleted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Busy, Collection, Database, Filter, InvalidInput, InvalidRecord, Record
from nestvec.engine.filters.columns import KEPT_FIELDS
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot

Json = Any  # any JSON value
DIMS = 4
ODD = {"field": "odd", "eq": True}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with nestvec.open(tmp_path / "db") as opened:
        yield opened


def vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, DIMS)).astype(np.float32)


def payload(n: int) -> dict[str, Any]:
    return {"n": n, "odd": n % 2 == 1, "word": f"w{n % 10}", "at": f"2024-01-{n % 28 + 1:02}"}


def records(start: int, stop: int) -> list[Record]:
    return [
        Record(str(n), vector, payload(n)) for n, vector in zip(range(start, stop), vectors(stop - start), strict=True)
    ]


def pages(collection: Collection, **options: Json) -> Iterator[list[str]]:
    cursor = None
    while True:
        page = collection.scroll(cursor=cursor, **options)
        assert len(page) <= options["limit"]
        yield [record.id for record in page]
        cursor = page.cursor
        if cursor is None:
            return


def test_a_filter_follows_rows_as_they_grow_are_sealed_replaced_and_deleted(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    alive: dict[str, int] = {}

    def check() -> None:
        expected = sum(n % 2 == 1 for n in alive.values())
        assert collection.count(filter=ODD) == expected
        hits = collection.search(vectors(1, 7)[0], k=1000, filter=ODD, exact=True)
        assert sorted(hit.id for hit in hits) == sorted(id for id, n in alive.items() if n % 2 == 1)
        assert (hits.filter.matching, hits.work.rows) == (expected, expected)

    for start, stop in [(0, 5), (5, 250), (250, 260), (260, 700), (700, 701)]:
        collection.upsert(records(start, stop))
        alive |= {str(n): n for n in range(start, stop)}
        check()
    collection.delete(["1", "3", "4", "699"])
    alive = {id: n for id, n in alive.items() if id not in ("1", "3", "4", "699")}
    check()
    for change in (collection.seal, collection.compact):
        change()
        check()
        collection.upsert([Record("5", vectors(1)[0], payload(6)), Record("6", vectors(1)[0], payload(7))])
        alive |= {"5": 6, "6": 7}
        check()
        collection.upsert([Record("5", vectors(1)[0], payload(5))])
        alive["5"] = 5
        check()


def test_a_segment_whose_sequence_numbers_enclose_another_has_its_own_columns(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.upsert(records(0, 10))
    built = range(100, 400)
    collection.build([Batch(0, [str(n) for n in built], vectors(300), None, [payload(n) for n in built])])
    collection.upsert(records(10, 20))
    collection.seal()
    assert collection.count(filter=ODD) == 160
    assert collection.count(filter={"field": "n", "range": {"lt": 100}}) == 20


def test_records_without_payload_match_only_what_is_absent(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.build([Batch(0, vectors=vectors(50))])
    collection.upsert(records(100, 110))
    assert collection.count(filter={"field": "n", "exists": False}) == 50
    assert collection.count(filter={"field": "n", "eq": None}) == 50
    assert collection.count(filter={"not": ODD}) == 55


def test_delete_takes_ids_or_a_filter_and_not_both(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS)
    collection.upsert(records(0, 10))
    for arguments in ({}, {"ids": ["1"], "filter": ODD}):
        with pytest.raises(InvalidInput, match="exactly one"):
            collection.delete(**arguments)
    assert collection.delete(filter=Filter(ODD)) == 5
    assert collection.delete(filter=ODD) == 0
    assert collection.count() == 5
    assert [record.id for record in collection.get([str(n) for n in range(10)])] == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize("epoch_changes", [False, True])
def test_delete_by_filter_deletes_what_matches_at_its_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch, epoch_changes: bool
) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.upsert(records(0, 300))
    collection.seal()
    collection.upsert(records(300, 310))
    evaluated, meanwhile = Snapshot.live_seqs, [True]

    def write_meanwhile(snapshot: Snapshot) -> NDArray[np.int64]:
        found = evaluated(snapshot)
        if meanwhile.pop() if meanwhile else False:
            with ThreadPoolExecutor(1) as other:
                other.submit(collection.upsert, [Record("1", vectors(1)[0], payload(2))]).result()
                other.submit(collection.upsert, [Record("2", vectors(1)[0], payload(1))]).result()
                other.submit(collection.upsert, [Record("new", vectors(1)[0], payload(1))]).result()
                other.submit(collection.delete, ["3"]).result()
                if epoch_changes:
                    other.submit(collection.seal).result()
        return found

    monkeypatch.setattr(Snapshot, "live_seqs", write_meanwhile)
    assert collection.delete(filter=ODD) == 155 - 2 + 2
    assert not meanwhile
    assert collection.count(filter=ODD) == 0
    assert [record.id for record in collection.get(["1", "2", "new", "4"])] == ["1", "4"]
    collection.verify()


def test_delete_by_filter_gives_up_where_segments_never_rest(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.upsert(records(0, 10))
    evaluated = Snapshot.live_seqs

    def seal_meanwhile(snapshot: Snapshot) -> NDArray[np.int64]:
        with ThreadPoolExecutor(1) as other:
            other.submit(collection.upsert, [Record("new", vectors(1)[0], payload(1))]).result()
            other.submit(collection.seal).result()
        return evaluated(snapshot)

    monkeypatch.setattr(Snapshot, "live_seqs", seal_meanwhile)
    with pytest.raises(Busy, match="nothing was deleted"):
        collection.delete(filter=ODD)
    assert collection.count() == 11


def test_columns_read_after_a_delete_do_not_mislead_an_older_instant(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.upsert(records(0, 300))
    collection.seal()
    collection.upsert(records(300, 310))
    part = collection._part
    connection, older = part.keeper.pin()
    try:
        collection.delete(["1", "301"])
        assert collection.count(filter=ODD) == 153
        assert older.matching(connection, Filter(ODD)).rows == 155
        assert older.matching(connection, Filter({"not": ODD})).rows == 155
    finally:
        part.catalog.unpin(connection)
    assert collection.count(filter={"not": ODD}) == 155


def test_scroll_returns_every_record_once_in_the_order_of_writing(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="cosine")
    assert [*pages(collection, limit=3)] == [[]]
    collection.upsert(records(0, 40))
    collection.seal()
    collection.upsert(records(40, 60))
    collection.delete([str(n) for n in range(10, 20)])
    wanted = [str(n) for n in range(60) if not 10 <= n < 20]
    for limit in (1, 7, 25, 50, 1000):
        found = [*pages(collection, limit=limit)]
        assert [id for page in found for id in page] == wanted
        assert len(found) == -(-len(wanted) // limit)
    odd = [id for page in pages(collection, limit=4, filter=ODD) for id in page]
    assert odd == [id for id in wanted if int(id) % 2]
    page = collection.scroll(limit=2, with_vector=True)
    np.testing.assert_allclose([record.vector for record in page], vectors(40)[:2], rtol=1e-6)
    assert [record.payload for record in page] == [payload(0), payload(1)]
    assert [record.payload for record in collection.scroll(limit=2, with_payload=False)] == [None, None]
    assert [record.payload for record in collection.scroll(limit=1, with_payload=["n"])] == [{"n": 0}]


def test_scroll_goes_on_through_writes_seals_compactions_and_restarts(tmp_path: Path) -> None:
    database = nestvec.open(tmp_path / "db")
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.upsert(records(0, 400))
    seen, cursor, turn = [], None, 0
    while True:
        page = collection.scroll(cursor=cursor, limit=23, filter=ODD)
        seen += [record.id for record in page]
        cursor, turn = page.cursor, turn + 1
        if cursor is None:
            break
        if turn < 8:
            collection.upsert(
                [Record(f"new{turn}", vectors(1)[0], payload(1)), Record("399", vectors(1)[0], payload(1))]
            )
            collection.delete([str(turn * 2)])
        (collection.seal if turn % 2 else collection.compact)()
        if turn % 3 == 0:
            database.close()
            database = nestvec.open(tmp_path / "db")
            collection = database.collection("c")
    database.close()
    stayed = [str(n) for n in range(1, 399, 2)]
    assert [id for id in seen if id in set(stayed)] == stayed
    assert [id for id in seen if id not in set(stayed)] == [f"new{n}" for n in range(1, 7)] + ["new7", "399"]


def test_cursors_of_others_and_changed_ones_are_refused(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS)
    other = database.create_collection("other", dims=DIMS)
    for each in (collection, other):
        each.upsert(records(0, 20))
    cursor = collection.scroll(limit=5).cursor
    assert cursor is not None
    changed = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    for bad in (changed, cursor[:-1], cursor + "A", cursor + "=", "", "ü", "x" * 5000, 3, b"abc"):
        with pytest.raises(InvalidInput, match="this cursor"):
            collection.scroll(cursor=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="this cursor"):
        other.scroll(cursor=cursor)
    with pytest.raises(InvalidInput, match="this cursor"):
        collection.scroll(cursor=cursor, filter=ODD)
    database.delete_collection("c")
    again = database.create_collection("c", dims=DIMS)
    with pytest.raises(InvalidInput, match="this cursor"):
        again.scroll(cursor=cursor)
    for limit in (0, 1001, True, 2.5):
        with pytest.raises(InvalidInput, match="limit must be"):
            again.scroll(limit=limit)  # type: ignore[arg-type]


FIELDS: dict[str, Any] = {"n": "number", "word": "string", "at": "datetime", "odd": "bool", "deep.tags": "string"}


def test_declared_fields_hold_every_write_and_survive_reopening(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"n": "1"}, "'n' is declared number.*got a string of 1 char"),
        ({"n": True}, "'n' is declared number"),
        ({"word": 1}, "'word' is declared string"),
        ({"at": "soon"}, "'at' is declared datetime.*got a string of 4 char"),
        ({"odd": 0}, "'odd' is declared bool"),
        ({"deep": {"tags": ["a", 1]}}, "'deep.tags' is declared string.*got 1"),
        ({"deep": {"tags": ["a", None]}}, "'deep.tags' is declared string.*null"),
        ({"n": {"x": 1}}, "'n' is declared number"),
    ]
    good = [{}, None, {"n": None, "deep": 3}, {"n": [1, 2.5], "deep": {"tags": []}, "other": [{}]}, payload(3)]
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS, fields=FIELDS)
        assert collection.config == CollectionConfig.from_json(collection.config.to_json())
        collection.upsert([Record(f"good{i}", vectors(1)[0], each) for i, each in enumerate(good)])
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS, fields=FIELDS, exist_ok=True)
        assert collection.config.fields == FIELDS
        for wrong, reason in bad:
            with pytest.raises(InvalidRecord, match=reason) as caught:
                collection.upsert([Record("ok", vectors(1)[0]), Record("x", vectors(1)[0], wrong)])
            assert (caught.value.position, caught.value.id) == (1, "x")
            with pytest.raises(InvalidRecord, match=reason):
                collection.build([Batch(0, ["x"], vectors(1), None, [wrong])])
        assert collection.count() == len(good)
        with pytest.raises(nestvec.Conflict):
            database.create_collection("c", dims=DIMS, exist_ok=True)


@pytest.mark.parametrize("fields", [{"a": "int"}, {"": "string"}, {"a..b": "bool"}, {3: "bool"}, ["a"]])
def test_unusable_declarations_are_invalid_input(fields: Json) -> None:
    with pytest.raises(InvalidInput):
        CollectionConfig(DIMS, fields=fields)


def test_configurations_from_before_fields_were_declared_are_read(tmp_path: Path) -> None:
    old = CollectionConfig(DIMS).to_json()
    del old["fields"]
    assert CollectionConfig.from_json(old).fields == {}


def test_warm_reads_the_columns_of_declared_fields(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot", fields={"n": "number"})
    collection.upsert(records(0, 300))
    collection.seal()
    with collection._part.keeper.current() as (_, snapshot):
        columns = snapshot.segments[0].columns
    assert columns.nbytes == 0
    collection.warm()
    held = columns.nbytes
    assert held >= 300 * 8
    assert collection.count(filter={"field": "n", "range": {"lt": 10}}) == 10
    assert columns.nbytes == held


def test_many_threads_share_columns_while_others_write(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.build([Batch(0, [str(n) for n in range(3000)], vectors(3000), None, [payload(n) for n in range(3000)])])

    def ask(turn: int) -> bool:
        field, value = [("word", f"w{turn % 10}"), ("at", f"2024-01-{turn % 28 + 1:02}")][turn % 2]
        hits = collection.search(vectors(1, turn)[0], k=20, filter={"field": field, "eq": value})
        return len(hits) == 20 and all(hit.payload is not None and hit.payload[field] == value for hit in hits)

    def replace(turn: int) -> int:
        collection.upsert(records(3000 + turn, 3001 + turn))
        return collection.delete(filter={"field": "n", "eq": turn})

    with ThreadPoolExecutor(5) as pool:
        asked, replaced = pool.map(ask, range(80)), pool.map(replace, range(40))
        for _ in range(3):
            collection.seal()
        assert all(asked)
        assert [*replaced] == [1] * 40
    assert collection.count() == 3000
    assert collection.count(filter=ODD) == 1500


_OTHER = """
import sys, nestvec
collection = nestvec.open(sys.argv[1], create=False).collection("c")
for line in sys.stdin:
    print(collection.count(filter={"field": "odd", "eq": True}), flush=True)
"""


def test_another_process_filters_what_was_just_acknowledged(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    command = [sys.executable, "-c", _OTHER, str(database.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for turn in range(6):
            collection.upsert(records(turn * 100, turn * 100 + 100))
            if turn == 2:
                collection.seal()
            if turn == 4:
                collection.delete(filter={"field": "n", "range": {"lt": 50}})
            print("?", file=other.stdin, flush=True)
            assert int(other.stdout.readline()) == collection.count(filter=ODD) == (turn + 1) * 50 - 25 * (turn >= 4)
        other.stdin.close()


def test_fields_that_nobody_asks_for_any_more_are_forgotten(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, metric="dot")
    collection.upsert(records(0, 300))
    collection.seal()
    assert collection.count(filter=ODD) == 150
    with collection._part.keeper.current() as (_, snapshot):
        columns = snapshot.segments[0].columns
    for n in range(2 * KEPT_FIELDS):
        assert collection.count(filter={"all": [{"field": f"no{n}", "eq": None}, {"field": "n", "eq": n}]}) == 1
    assert columns.nbytes < 300 * 1.5 * KEPT_FIELDS
    assert collection.count(filter={"field": "word", "eq": "w3"}) == 30
    assert collection.count(filter={"all": [ODD, {"field": "word", "eq": "w3"}]}) == 30
