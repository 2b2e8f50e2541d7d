"""The ledger: made on demand, checked when opened, shared by processes."""

from __future__ import annotations

import threading
from pathlib import Path

import apsw
import pytest

import nestvec
from nestvec.engine.storage.ledger import FILE_NAME, FORMAT_VERSION, Ledger, create_ledger, rows_of

TABLES = {"alias", "api_key", "job", "meta"}


def test_a_database_has_no_ledger_before_it_needs_one(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=2)
        assert database.aliases() == {}
        with pytest.raises(nestvec.NotFound):
            database.collection("other")
        assert not (tmp_path / "db" / FILE_NAME).exists()
        assert database.ledger is database.ledger
        assert (tmp_path / "db" / FILE_NAME).exists()


def test_it_is_created_whole_with_its_tables_and_wal(tmp_path: Path) -> None:
    create_ledger(tmp_path / FILE_NAME)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    ledger = Ledger(tmp_path / FILE_NAME)
    with ledger.read() as connection:
        found = {name for (name,) in rows_of(connection, "SELECT name FROM sqlite_schema WHERE type='table'")}
        assert found >= TABLES
        assert connection.execute("PRAGMA journal_mode").get == "wal"
    with ledger.write() as connection:
        assert connection.execute("PRAGMA synchronous").get == 2  # FULL
    ledger.close()


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    create_ledger(path)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE meta SET value=? WHERE key='format'", (FORMAT_VERSION + 1,))
    connection.close()
    with pytest.raises(nestvec.Damaged, match=f"format {FORMAT_VERSION + 1}"):
        Ledger(path)


def test_a_ledger_of_noise_is_damaged_and_leaves_collections_alone(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=2)
    (tmp_path / "db" / FILE_NAME).write_bytes(b"not SQLite at all" * 1000)
    with nestvec.open(tmp_path / "db") as database:
        assert database.collection("c").count() == 0
        with pytest.raises(nestvec.Damaged):
            database.aliases()


def test_many_threads_ask_for_it_first_and_get_one(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as one, nestvec.open(tmp_path / "db") as two:
        found: list[Ledger] = []
        threads = [threading.Thread(target=lambda each=each: found.append(each.ledger)) for each in (one, two) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len({id(ledger) for ledger in found}) == 2
        assert not list((tmp_path / "db").glob("tmp-*"))


def test_what_is_stored_is_the_owner_s_alone(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=2).upsert([nestvec.Record("x", [1, 0])])
        _ = database.ledger
        database.snapshot("c")
        for path in (tmp_path / "db").rglob("*"):
            expected = 0o700 if path.is_dir() else 0o600
            assert path.stat().st_mode & 0o777 == expected, path
        assert (tmp_path / "db").stat().st_mode & 0o777 == 0o700
