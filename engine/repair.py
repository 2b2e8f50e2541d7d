"""Repair: what is derived is made again from what is not. Records and vectors are read, checked and never changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
from crc32c import crc32c

from nestvec.engine.collection import Collection
from nestvec.engine.damage import open_collection
from nestvec.engine.storage import catalog, files, generation
from nestvec.engine.storage.catalog import record_crc, rows_of
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.locks import FileLock
from nestvec.engine.storage.names import collection_name
from nestvec.engine.storage.root import SERVICE_LOCK, open_root
from nestvec.engine.storage.sqlite import check_integrity
from nestvec.errors import Damaged, DatabaseLocked, NestvecError


@dataclass(frozen=True)
class RepairReport:
    """What was done for one collection, in words; `name` is None where it cannot be read. `damage`: what is left, and
    can only come back from a snapshot or a backup; None where all is well."""

    path: str
    name: str | None
    done: tuple[str, ...]
    damage: str | None


def repair_database(root: Path) -> list[RepairReport]:
    """Rebuild the derived files of every collection that needs it: indexes in the catalog, posting lists, models.

    Raises NotFound where there is no database, DatabaseLocked while a service has it.
    """
    open_root(root, create=False)
    lock = FileLock(root / SERVICE_LOCK)
    if not lock.try_acquire():
        raise DatabaseLocked(str(root), lock.holder())
    try:
        homes = sorted(path for path in (root / "collections").glob("*") if path.name.isdigit())
        return [_repair(home) for home in homes]
    finally:
        lock.release()


def _repair(directory: Path) -> RepairReport:
    done: list[str] = []
    damage = None
    try:
        _repair_catalog(Layout(directory).catalog, done)
        _repair_files(directory, done)
    except (NestvecError, apsw.Error, OSError) as error:
        damage = str(error)
    return RepairReport(str(directory), _name(directory), tuple(done), damage)


def _name(directory: Path) -> str | None:
    try:
        return collection_name(Layout(directory).catalog)
    except (apsw.Error, OSError):
        return None


def _repair_catalog(path: Path, done: list[str]) -> None:
    """The index of ids and the words are made from the records, once all of those were read and found right."""
    if not path.is_file():
        raise Damaged(str(path), "is missing; restore it from a backup")
    with _opened(path) as connection:
        try:
            check_integrity(connection)
            return
        except Damaged:
            _check_rows(connection)
        connection.execute("REINDEX")
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name='words'").get:
            connection.execute("INSERT INTO words(words) VALUES ('rebuild')")
        check_integrity(connection)
        done.append("made the catalog's indexes of ids and words again, from its records")


@contextmanager
def _opened(path: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA trusted_schema=OFF")
        yield connection
    finally:
        connection.close(True)


def _check_rows(connection: apsw.Connection) -> None:
    """Every record and growing vector, read without any index, fits its checksum."""
    for seq, id, payload, text, crc in connection.execute(
        "SELECT seq, id, payload, text, crc FROM record NOT INDEXED ORDER BY seq"
    ):
        if record_crc(str(id), bytes(payload), text) != crc:
            raise Damaged(connection.filename, f"record seq {seq} fails its checksum; restore a snapshot")
    for seq, vector, crc in connection.execute("SELECT seq, vector, crc FROM growing NOT INDEXED"):
        if crc32c(vector) != crc:
            raise Damaged(connection.filename, f"the vector of growing record seq {seq} fails its checksum")


def _repair_files(directory: Path, done: list[str]) -> None:
    bad = _bad_postings(directory)
    collection = open_collection(directory)  # opening makes posting lists again
    try:
        done.extend(f"made {name} again, from the vectors" for name in bad)
        _repair_model(collection, done)
        collection.verify()
    finally:
        collection.close()


def _bad_postings(directory: Path) -> list[str]:
    layout = Layout(directory)
    held = catalog.Catalog(layout.catalog)
    bad = []
    try:
        with held.read() as connection:
            current = catalog.meta_value(connection, "current_generation")
            listed = rows_of(connection, "SELECT segment, manifest_crc FROM postings WHERE generation=?", (current,))
        for segment, crc in listed:
            path = layout.posting_lists(current, segment)
            try:
                files.verify_directory(path, generation.POSTINGS_KIND, crc)
            except (Damaged, FileNotFoundError):
                bad.append(f"postings/{path.name}")
    finally:
        held.close()
    return bad


def _repair_model(collection: Collection, done: list[str]) -> None:
    """A generation whose model cannot be read is trained again, on a merged copy of the segments."""
    with collection.part.keeper.current() as (_, snapshot):
        held = snapshot.generation
    if held is None or held.model is not None or not any(view.live_rows for view in snapshot.segments):
        return
    collection.compact(retrain=True)
    done.append(f"trained a generation in place of generations/{held.number}, and merged the segments under it")
