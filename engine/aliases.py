"""Aliases: second names of collections, switched many at a time and all or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nestvec.engine.schema import check_name
from nestvec.engine.storage.ledger import Ledger, rows_of
from nestvec.errors import Conflict, InvalidInput, NotFound

MAX_SWITCHES = 100


@dataclass(frozen=True)
class AliasSwitch:
    """Let `alias` name `collection` from now on; None takes the alias away."""

    alias: str
    collection: str | None


def all_aliases(ledger: Ledger) -> dict[str, str]:
    """Alias -> collection, by alias."""
    with ledger.read() as connection:
        return dict(rows_of(connection, "SELECT alias, collection FROM alias ORDER BY alias"))


def resolve(ledger: Ledger, alias: str) -> str | None:
    """The collection that an alias names, None if there is no such alias."""
    with ledger.read() as connection:
        name: str | None = connection.execute("SELECT collection FROM alias WHERE alias=?", (alias,)).get
    return name


def check_free(ledger: Ledger, name: str) -> None:
    """Raise Conflict if `name` is an alias: names and aliases share one namespace."""
    owner = resolve(ledger, name)
    if owner is not None:
        raise Conflict(f"{name!r} is an alias of collection {owner!r}; choose another name, or take the alias away")


def check_unnamed(ledger: Ledger, collection: str) -> None:
    """Raise Conflict naming the aliases of a collection that is to be deleted.

    Dropping them with it would turn every reader that follows an alias into an error, without anybody having said so.
    """
    named = sorted(alias for alias, owner in all_aliases(ledger).items() if owner == collection)
    if named:
        raise Conflict(
            f"collection {collection!r} has the alias {', '.join(map(repr, named))}: switch it to another collection, "
            "or take it away, first"
        )


def switch(ledger: Ledger, switches: Sequence[AliasSwitch], is_collection: Callable[[str], bool]) -> dict[str, str]:
    """Make all the switches in one transaction; all aliases after it. The caller holds the lock of the directory.

    Raises InvalidInput, Conflict for an alias that is a collection's name, NotFound for a collection, or an alias to
    take away, that does not exist; then nothing was switched.
    """
    _check(switches, is_collection)
    with ledger.write() as connection:
        for each in switches:
            if each.collection is not None:
                connection.execute(
                    "INSERT INTO alias(alias, collection) VALUES (?, ?) "
                    "ON CONFLICT(alias) DO UPDATE SET collection=excluded.collection",
                    (each.alias, each.collection),
                )
            else:
                connection.execute("DELETE FROM alias WHERE alias=?", (each.alias,))
                if not connection.changes():
                    raise NotFound(f"there is no alias {each.alias!r} to take away; nothing was switched")
    return all_aliases(ledger)


def _check(switches: Sequence[AliasSwitch], is_collection: Callable[[str], bool]) -> None:
    if not 1 <= len(switches) <= MAX_SWITCHES:
        raise InvalidInput(f"expected 1 to {MAX_SWITCHES} switches, got {len(switches)}")
    seen: set[str] = set()
    for each in switches:
        check_name(each.alias)
        if each.alias in seen:
            raise InvalidInput(f"alias {each.alias!r} is switched twice in one list; switch it once")
        seen.add(each.alias)
        if is_collection(each.alias):
            raise Conflict(f"{each.alias!r} is the name of a collection and cannot be an alias too")
        if each.collection is not None and not is_collection(check_name(each.collection)):
            raise NotFound(f"there is no collection {each.collection!r} for alias {each.alias!r} to name")
