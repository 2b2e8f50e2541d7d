"""Aliases: one namespace with collections, switched all or none, found by every process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import nestvec
from nestvec.engine.aliases import MAX_SWITCHES, AliasSwitch
from nestvec.engine.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with nestvec.open(tmp_path / "db") as database:
        for name in ("blue", "green"):
            database.create_collection(name, dims=2)
        yield database


def test_an_alias_names_a_collection_and_moves(database: Database) -> None:
    assert database.switch_aliases([AliasSwitch("live", "blue")]) == {"live": "blue"}
    assert database.collection("live") is database.collection("blue")
    assert database.switch_aliases([AliasSwitch("live", "green"), AliasSwitch("old", "blue")]) == {
        "live": "green",
        "old": "blue",
    }
    assert database.collection("live").name == "green"
    assert database.switch_aliases([AliasSwitch("old", None)]) == {"live": "green"}
    with pytest.raises(nestvec.NotFound):
        database.collection("old")


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (AliasSwitch("b", "absent"), nestvec.NotFound),
        (AliasSwitch("b", None), nestvec.NotFound),
        (AliasSwitch("blue", "green"), nestvec.Conflict),
        (AliasSwitch("b", "a"), nestvec.NotFound),  # an alias of an alias
        (AliasSwitch("a", "blue"), nestvec.InvalidInput),  # twice in one list
        (AliasSwitch("../x", "blue"), nestvec.InvalidInput),
        (AliasSwitch("b", "../x"), nestvec.InvalidInput),
    ],
)
def test_one_bad_switch_and_none_is_made(database: Database, last: AliasSwitch, error: type[Exception]) -> None:
    database.switch_aliases([AliasSwitch("a", "blue")])
    with pytest.raises(error):
        database.switch_aliases([AliasSwitch("a", "green"), AliasSwitch("c", "green"), last])
    assert database.aliases() == {"a": "blue"}


def test_the_number_of_switches_is_bounded(database: Database) -> None:
    for count in (0, MAX_SWITCHES + 1):
        with pytest.raises(nestvec.InvalidInput, match=f"got {count}"):
            database.switch_aliases([AliasSwitch(f"a{i}", "blue") for i in range(count)])


def test_a_collection_may_not_take_an_alias_s_name(database: Database) -> None:
    database.switch_aliases([AliasSwitch("live", "blue")])
    with pytest.raises(nestvec.Conflict, match="alias of collection 'blue'"):
        database.create_collection("live", dims=2)
    with pytest.raises(nestvec.Conflict, match="alias"):
        database.create_collection("live", dims=2, exist_ok=True)
    name = database.snapshot("blue").name
    with pytest.raises(nestvec.Conflict, match="alias"):
        database.restore(name, "live")


def test_a_collection_with_an_alias_is_not_deleted(database: Database) -> None:
    database.switch_aliases([AliasSwitch("live", "blue"), AliasSwitch("main", "blue")])
    with pytest.raises(nestvec.Conflict, match="'live', 'main'"):
        database.delete_collection("blue")
    with pytest.raises(nestvec.NotFound):
        database.delete_collection("live")  # aliases are taken away, not deleted as collections
    assert database.collection("live").name == "blue"
    database.switch_aliases([AliasSwitch("live", "green"), AliasSwitch("main", None)])
    database.delete_collection("blue")


def test_a_switch_is_seen_by_other_processes_at_once(tmp_path: Path, database: Database) -> None:
    with nestvec.open(tmp_path / "db") as other:
        database.switch_aliases([AliasSwitch("live", "blue")])
        assert other.collection("live").name == "blue"
        database.switch_aliases([AliasSwitch("live", "green")])
        assert other.collection("live").name == "green"
        assert other.aliases() == {"live": "green"}
