"""One SQLite file of ours (WAL, synchronous=FULL) through apsw: its connections, transactions and errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import apsw

from nestvec.engine.storage import files
from nestvec.errors import Busy, Damaged, NestvecError, NoSpace, NotFound, OutcomeUnknown

MIN_SQLITE = (3, 51, 3)
APPLICATION_ID = 0x6E737476
"""SQLite's mark of whose file it is: "nstv". Files of the first release have none."""
INTEGRITY_AT_OPEN_BYTES = 16 << 20
"""Larger files are checked as a whole by `verify` only: it takes about 6 ms for a MiB."""
BUSY_MILLISECONDS = 5000
_MAPPED_BYTES = 1 << 40
_UNWRITTEN = (
    apsw.IOError, apsw.CantOpenError, apsw.CorruptError, apsw.NotADBError, apsw.NoMemError,
    apsw.ReadOnlyError,  # SQLite's way out where opening to write fails, be it for once
)  # fmt: skip


def check_sqlite() -> None:
    """Refuse a SQLite whose WAL can corrupt itself."""
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise NestvecError(
            f"SQLite {apsw.sqlite_lib_version()} has a WAL corruption bug; need {wanted} or newer: "
            "pip install --upgrade apsw"
        )


def create_file(path: Path, schema: str, meta: dict[str, Any]) -> None:
    """Create the file with its tables (`meta` among them) and facts, closed again and free of a WAL."""
    check_sqlite()
    files.create_empty(path)
    with clean_errors(str(path)):
        _fill(path, schema, meta)


def _fill(path: Path, schema: str, meta: dict[str, Any]) -> None:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("PRAGMA page_size=16384")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN")
        connection.execute(schema)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
        connection.execute("COMMIT")
    finally:
        connection.close()


@dataclass(frozen=True, eq=False)
class _Reader:
    """A connection, its thread, and their process: what a fork inherits is not for it to close."""

    connection: apsw.Connection
    thread: threading.Thread
    pid: int


class SqliteFile:
    """This process' connections to one file: a writer, used by one thread at a time, and a reader per thread.

    `owner` names what the file belongs to ("the collection"), `version` is the format that is understood.
    """

    def __init__(self, path: Path, owner: str, version: int) -> None:
        self.path, self._owner, self._version = path, owner, version
        self._name = os.fspath(path)
        self._inode = self._current_inode()
        self._write_lock = threading.Lock()
        self._guard = threading.Lock()
        self._writer: apsw.Connection | None = None
        self._readers: list[_Reader] = []
        self._pinned: list[apsw.Connection] = []
        self._local = threading.local()
        self._closed = False
        self._check_format()

    def _current_inode(self) -> int:
        try:
            return os.stat(self._name).st_ino
        except FileNotFoundError:
            if self.path.parent.is_dir():
                raise Damaged(str(self.path), "is missing; restore it from a backup") from None
            raise NotFound(f"{self._owner} in {self.path.parent} was deleted") from None

    def _check_format(self) -> None:
        try:
            with self.read() as connection:
                mark = connection.execute("PRAGMA application_id").get
                found = meta_value(connection, "format")
                if found == self._version and mark in (0, APPLICATION_ID):
                    check_integrity(connection, INTEGRITY_AT_OPEN_BYTES)
        except BaseException as error:
            self.close()
            if isinstance(error, apsw.SQLError):
                raise Damaged(str(self.path), f"is no SQLite file of nestvec: {error}") from error
            raise
        if found != self._version or mark not in (0, APPLICATION_ID):
            self.close()
            raise Damaged(
                str(self.path),
                f"has format {found} and mark {mark:#x}; this nestvec reads format {self._version} and mark "
                f"{APPLICATION_ID:#x}: use the release that wrote it",
            )

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
        try:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:  # an error may have ended it
                    connection.execute("ROLLBACK")
        except apsw.Error as error:
            self._refuse(error)

    def data_version(self) -> tuple[int, int]:
        """What differs from its last value on this thread when any process has committed since: 4 µs."""
        connection = self._reader()
        try:
            version: int = connection.execute("PRAGMA data_version").get
        except apsw.Error:
            with self.translated():
                raise
        return self._local.pid, version  # a connection counts for itself, and a fork gets a new one

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
    def write(self, *, wait: bool = True) -> Iterator[apsw.Connection]:
        """One write transaction, committed (durable) on the way out, rolled back on an exception.

        Raises Busy when another process writes for over 5 s, or, without `wait`, when anybody does; OutcomeUnknown when
        the commit itself fails.
        """
        if not self._write_lock.acquire(blocking=wait):
            raise Busy(f"{self.path}: another thread is writing; nothing was changed, try again")
        try:
            with self.translated():
                connection = self._open_writer()
                connection.set_busy_timeout(BUSY_MILLISECONDS if wait else 0)
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    self._roll_back(connection)
                    raise
                self._commit(connection)
        finally:
            self._write_lock.release()

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
            connections = [*(reader.connection for reader in self._readers), *self._pinned]
            self._readers, self._pinned = [], []
        for connection in connections:
            connection.close(True)
        with self._write_lock:
            self._drop_writer()

    def _check_open(self) -> None:
        if self._closed:
            raise NestvecError(f"{self.path.parent} is closed")
        if self._current_inode() != self._inode:
            raise NotFound(f"{self._owner} in {self.path.parent} was deleted")

    def _reader(self) -> apsw.Connection:
        self._check_open()
        if getattr(self._local, "pid", None) != os.getpid():
            connection = self._connect_reader()
            for left in self._register(connection):
                left.close(True)
            self._local.connection, self._local.pid = connection, os.getpid()
        reader: apsw.Connection = self._local.connection
        return reader

    def _register(self, connection: apsw.Connection) -> list[apsw.Connection]:
        """Note that it is this thread's; those of threads that ended are for the caller to close."""
        own = _Reader(connection, threading.current_thread(), os.getpid())
        with self._guard:
            ended = [one for one in self._readers if one.pid == own.pid and not one.thread.is_alive()]
            self._readers = [own, *(one for one in self._readers if one not in ended)]
        return [one.connection for one in ended]

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
            # Pages are read where the system caches them, not copied: half the time of looking records up.
            connection.execute(f"PRAGMA mmap_size={_MAPPED_BYTES}")
            connection.wal_autocheckpoint(0)
        return connection

    def _connect(self) -> apsw.Connection:
        with self.translated():
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            if connection.readonly("main"):  # SQLite's way out where opening to write fails, be it for once
                connection.close()
                raise NestvecError(f"{self.path}: cannot be opened for writing; nothing was changed, try again")
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)  # no statement can damage the file on purpose
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
        """Turn SQLite's errors into ours: everything that is run on a connection of this file is run inside."""
        try:
            yield
        except apsw.Error as error:
            self._refuse(error)

    def _refuse(self, error: apsw.Error) -> NoReturn:
        """Raise SQLite's error as one of ours; what only a mistake of our own can cause stays as it is."""
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            raise Busy(
                f"{self.path}: another process has been writing for {BUSY_MILLISECONDS / 1000:g} s; nothing was "
                "changed, try again"
            ) from error
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            raise Damaged(str(self.path), f"SQLite says {error}; restore it from a backup") from error
        if isinstance(error, apsw.FullError):
            raise NoSpace(f"{self.path}: no space left; nothing was changed. Free some and try again") from error
        if isinstance(error, apsw.ConnectionClosedError):
            raise NestvecError(f"{self.path.parent} is closed") from error
        if isinstance(error, apsw.IOError | apsw.CantOpenError | apsw.ReadOnlyError):
            raise NestvecError(f"{self.path}: {error}; nothing was changed") from error
        raise error


@contextmanager
def clean_errors(what: str) -> Iterator[None]:
    """For a new file that nothing depends on yet: what keeps SQLite from writing it, as an error of ours."""
    try:
        yield
    except apsw.FullError as error:
        raise NoSpace(f"{what}: no space left; nothing was changed. Free some and try again") from error
    except _UNWRITTEN as error:
        raise NestvecError(f"{what}: {error}; nothing was changed, try again") from error


def check_integrity(connection: apsw.Connection, most_bytes: int | None = None) -> None:
    """Have SQLite compare its tables, indexes and word indexes; only in files of at most `most_bytes`. Raises Damaged.

    A word index is read by what its connection remembers of it, and called corrupt once another process has written;
    opening the table makes the connection look again.
    """
    pages, page_bytes = (connection.execute(f"PRAGMA {name}").get for name in ("page_count", "page_size"))
    if most_bytes is not None and pages * page_bytes > most_bytes:
        return
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name='words'").get:
        connection.execute("SELECT 1 FROM words LIMIT 1")
    found = connection.execute("PRAGMA integrity_check(1)").get
    if found != "ok":
        raise Damaged(connection.filename, f"SQLite's integrity_check says {found}; restore it from a backup")


def rows_of(connection: apsw.Connection, query: str, bindings: tuple[int | None, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return cast(list[tuple[Any, ...]], connection.execute(query, bindings).fetchall())


def meta_value(connection: apsw.Connection, key: str) -> Any:  # noqa: ANN401 - SQLite values have many types
    """One value of the meta table, None if absent."""
    return connection.execute("SELECT value FROM meta WHERE key=?", (key,)).get
