"""The catalog: one SQLite file per collection, the write-ahead truth (WAL, synchronous=FULL) through apsw.

Readers follow three counters, read in the same transaction as the rows: `epoch` (bumped by every change of segments or
generation), the last record sequence number and the last tombstone number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import apsw
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from nestvec.errors import Busy, Damaged, NestvecError, NotFound, OutcomeUnknown

FORMAT_VERSION = 1
FILE_NAME = "catalog.sqlite"
MIN_SQLITE = (3, 51, 3)
BUSY_MILLISECONDS = 5000

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE record(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, payload BLOB NOT NULL, text TEXT,
                    crc INTEGER NOT NULL);
CREATE TABLE growing(seq INTEGER PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE tombstone(n INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER NOT NULL);
CREATE TABLE segment(segment INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, manifest_crc INTEGER NOT NULL);
CREATE TABLE generation(generation INTEGER PRIMARY KEY AUTOINCREMENT, manifest_crc INTEGER NOT NULL,
                        partitions INTEGER NOT NULL);
CREATE TABLE postings(generation INTEGER NOT NULL REFERENCES generation ON DELETE CASCADE,
                      segment INTEGER NOT NULL REFERENCES segment ON DELETE CASCADE, manifest_crc INTEGER NOT NULL,
                      PRIMARY KEY(generation, segment)) WITHOUT ROWID;
INSERT INTO sqlite_sequence(name, seq) VALUES ('record', 0), ('tombstone', 0), ('segment', 0), ('generation', 0);
"""


class State(NamedTuple):
    """Equal states are equal contents: what a reader compares to know whether its snapshot is current."""

    epoch: int
    seq: int
    tombstone: int


def check_sqlite() -> None:
    """Refuse a SQLite whose WAL can corrupt itself."""
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise NestvecError(
            f"SQLite {apsw.sqlite_lib_version()} has a WAL corruption bug; need {wanted} or newer: "
            "pip install --upgrade apsw"
        )


def create_catalog(path: Path, meta: dict[str, Any]) -> None:
    """Create the file with its tables and facts, closed again and free of a WAL."""
    check_sqlite()
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    try:
        connection.execute("PRAGMA page_size=16384")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        with connection:
            connection.execute(_SCHEMA)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("format", FORMAT_VERSION), ("epoch", 0), ("current_generation", None), *meta.items()],
            )
    finally:
        connection.close()


def record_crc(id: str, payload: bytes, text: str | None) -> int:
    """crc32c over id, payload and text."""
    return crc32c(id.encode() + payload + text.encode() if text else id.encode() + payload)


class Catalog:
    """This process' connections to one catalog: a writer, used by one thread at a time, and a reader per thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = self._current_inode()
        self._write_lock = threading.Lock()
        self._guard = threading.Lock()
        self._writer: apsw.Connection | None = None
        self._readers: list[apsw.Connection] = []
        self._pinned: list[apsw.Connection] = []
        self._local = threading.local()
        self._closed = False
        self._check_format()

    def _current_inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            if self.path.parent.is_dir():
                raise Damaged(str(self.path), "is missing; restore it from a backup") from None
            raise NotFound(f"the collection in {self.path.parent} was deleted") from None

    def _check_format(self) -> None:
        with self.read() as connection:
            found = meta_value(connection, "format")
        if found != FORMAT_VERSION:
            self.close()
            raise Damaged(str(self.path), f"has format {found}; this nestvec reads {FORMAT_VERSION}: upgrade nestvec")

    @property
    def replaced(self) -> bool:
        """True when another file, or none, has this path by now."""
        try:
            return self._current_inode() != self._inode
        except (NotFound, Damaged):
            return True

    @contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """One read transaction on this thread's own connection: everything read inside is of one instant."""
        connection = self._reader()
        with self.translated():
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def pin(self) -> apsw.Connection:
        """A connection of the caller's own in a read transaction that stays open until `unpin`, or `close`.

        SQLite keeps its log from that instant on for as long.
        """
        self._check_open()
        connection = self._connect_reader()
        with self._guard:
            self._pinned.append(connection)
        connection.execute("BEGIN")
        return connection

    def unpin(self, connection: apsw.Connection) -> None:
        """Close a pinned connection; fine if it is closed already."""
        with self._guard:
            if connection in self._pinned:
                self._pinned.remove(connection)
        connection.close(True)

    @contextmanager
    def write(self) -> Iterator[apsw.Connection]:
        """One write transaction, committed (durable) on the way out, rolled back on an exception.

        Raises Busy when another process writes for over 5 s, OutcomeUnknown when the commit itself fails.
        """
        with self._write_lock, self.translated():
            connection = self._open_writer()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                self._roll_back(connection)
                raise
            self._commit(connection)

    @contextmanager
    def attached(self, path: Path, name: str) -> Iterator[None]:
        """Let the next write transaction read another SQLite file under `name`."""
        with self._write_lock, self.translated():
            self._open_writer().execute(f"ATTACH ? AS {name}", (str(path),))
        try:
            yield
        finally:
            with self._write_lock, suppress(apsw.Error):
                if self._writer is not None:
                    self._writer.execute(f"DETACH {name}")

    def close(self) -> None:
        """Close every connection; the last one in any process folds the WAL back."""
        with self._guard:
            self._closed = True
            connections, self._readers, self._pinned = [*self._readers, *self._pinned], [], []
        for connection in connections:
            connection.close(True)
        with self._write_lock:
            self._drop_writer()

    def _check_open(self) -> None:
        if self._closed:
            raise NestvecError(f"{self.path.parent} is closed")
        if self._current_inode() != self._inode:
            raise NotFound(f"the collection in {self.path.parent} was deleted")

    def _reader(self) -> apsw.Connection:
        self._check_open()
        if getattr(self._local, "pid", None) != os.getpid():
            connection = self._connect_reader()
            with self._guard:
                self._readers.append(connection)
            self._local.connection, self._local.pid = connection, os.getpid()
        reader: apsw.Connection = self._local.connection
        return reader

    def _open_writer(self) -> apsw.Connection:
        self._check_open()
        if self._writer is None:
            self._writer = self._connect()
            self._writer.execute("PRAGMA synchronous=FULL")
        return self._writer

    def _connect_reader(self) -> apsw.Connection:
        connection = self._connect()
        with self.translated():
            connection.execute("PRAGMA query_only=ON")
            connection.wal_autocheckpoint(0)
        return connection

    def _connect(self) -> apsw.Connection:
        with self.translated():
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA trusted_schema=OFF")
            return connection

    def _commit(self, connection: apsw.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except apsw.Error as error:
            self._drop_writer()
            raise OutcomeUnknown(
                f"{self.path}: the commit failed ({error}); the write may or may not be there. Read "
                "before you write again; an upsert may simply be repeated"
            ) from error

    def _roll_back(self, connection: apsw.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except apsw.Error:
            self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            with suppress(apsw.Error):
                self._writer.close(True)
            self._writer = None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours: everything that is run on a connection of this catalog is run inside."""
        try:
            yield
        except (apsw.BusyError, apsw.LockedError) as error:
            raise Busy(
                f"{self.path}: another process has been writing for {BUSY_MILLISECONDS / 1000:g} s; nothing was "
                "changed, try again"
            ) from error
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise Damaged(str(self.path), f"SQLite says {error}; restore it from a backup") from error
        except apsw.FullError as error:
            raise NestvecError(f"{self.path}: no space left; nothing was changed. Free some and try again") from error
        except apsw.ConnectionClosedError as error:
            raise NestvecError(f"{self.path.parent} is closed") from error
        except (apsw.IOError, apsw.CantOpenError) as error:
            raise NestvecError(f"{self.path}: {error}; nothing was changed") from error


def rows_of(connection: apsw.Connection, query: str, bindings: tuple[int | None, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return cast(list[tuple[Any, ...]], connection.execute(query, bindings).fetchall())


def meta_value(connection: apsw.Connection, key: str) -> Any:  # noqa: ANN401 - SQLite values have many types
    """One value of the meta table, None if absent."""
    return connection.execute("SELECT value FROM meta WHERE key=?", (key,)).get


def read_state(connection: apsw.Connection) -> State:
    """The three counters (a few microseconds)."""
    row = connection.execute(
        "SELECT (SELECT value FROM meta WHERE key='epoch'),"
        "(SELECT seq FROM sqlite_sequence WHERE name='record'),"
        "(SELECT seq FROM sqlite_sequence WHERE name='tombstone')"
    ).get
    return State(*row)


def bump_epoch(connection: apsw.Connection) -> None:
    """Tell every reader that segments or generation changed."""
    connection.execute("UPDATE meta SET value=value+1 WHERE key='epoch'")


def last_number(connection: apsw.Connection, table: str) -> int:
    """The highest key that an AUTOINCREMENT table ever gave out."""
    value: int = connection.execute("SELECT seq FROM sqlite_sequence WHERE name=?", (table,)).get
    return value


def reserve_seqs(connection: apsw.Connection, count: int) -> int:
    """Set `count` record sequence numbers aside; the first of them."""
    first = last_number(connection, "record") + 1
    connection.execute("UPDATE sqlite_sequence SET seq=seq+? WHERE name='record'", (count,))
    return first


def growing_after(
    connection: apsw.Connection, seq: int, dims: int, limit: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Blocks of (seqs i64 [n], the user's vectors f32 [n, dims]) of growing rows with a higher seq, checked."""
    cursor = iter(connection.execute("SELECT seq, vector, crc FROM growing WHERE seq>? ORDER BY seq", (seq,)))
    while rows := cast(list[tuple[int, bytes, int]], list(islice(cursor, limit))):
        for number, blob, crc in rows:
            if crc32c(blob) != crc or len(blob) != 4 * dims:
                raise Damaged(connection.filename, f"the vector of growing record seq {number} fails its checksum")
        seqs = np.array([row[0] for row in rows], np.int64)
        yield seqs, np.frombuffer(b"".join(row[1] for row in rows), "<f4").reshape(-1, dims)


def tombstones_after(connection: apsw.Connection, number: int) -> NDArray[np.int64]:
    """Sequence numbers that died after tombstone `number`."""
    rows = rows_of(connection, "SELECT seq FROM tombstone WHERE n>?", (number,))
    return np.fromiter((row[0] for row in rows), np.int64, len(rows))


def read_records(connection: apsw.Connection, seqs: Sequence[int]) -> list[tuple[str, bytes, str | None]]:
    """(id, payload, text) of live records, at most 32,766 of them, in the order asked for.

    Raises Damaged where one is missing or fails its checksum.
    """
    marks = ",".join("?" * len(seqs))
    query = f"SELECT seq, id, payload, text, crc FROM record WHERE seq IN ({marks})"
    rows = {row[0]: row[1:] for row in connection.execute(query, seqs)}
    found = []
    for seq in seqs:
        if seq not in rows:
            raise Damaged(connection.filename, f"has no record seq {seq}, which a segment holds alive")
        id, payload, text, crc = rows[seq]
        if record_crc(id, payload, text) != crc:
            raise Damaged(connection.filename, f"record seq {seq} fails its checksum")
        found.append((id, payload, text))
    return found
