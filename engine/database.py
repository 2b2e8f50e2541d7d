"""A database: a directory of collections."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from nestvec.engine import aliases as naming
from nestvec.engine import backup, lexical
from nestvec.engine import keys as api_keys
from nestvec.engine.aliases import AliasSwitch
from nestvec.engine.backup import SnapshotInfo
from nestvec.engine.chunking import Chunking
from nestvec.engine.collection import Collection
from nestvec.engine.configuration import same, settle
from nestvec.engine.damage import DamagedCollection, Wrecks
from nestvec.engine.filters.declared import Fields
from nestvec.engine.jobs import Jobs
from nestvec.engine.keys import KeyInfo
from nestvec.engine.progress import Progress, silent
from nestvec.engine.record import CollectionInfo
from nestvec.engine.schema import CollectionConfig, Dtype, Metric, check_name
from nestvec.engine.spool import FOLDER as JOBS
from nestvec.engine.storage import catalog, files, scratch, sqlite
from nestvec.engine.storage.archive import FOLDER as SNAPSHOTS
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.ledger import FILE_NAME as LEDGER_FILE
from nestvec.engine.storage.ledger import Ledger, create_ledger
from nestvec.engine.storage.locks import FileLock
from nestvec.engine.storage.root import SERVICE_LOCK, has_ledger, note_ledger, open_root
from nestvec.engine.verification import VerifyReport, verify_database
from nestvec.errors import Conflict, Damaged, DatabaseLocked, NotFound


def open(path: str | os.PathLike[str], *, create: bool = True) -> Database:
    """Open the database in a directory; with `create`, make one in a directory that is empty or absent.

    Raises NotFound where there is none, Conflict where the directory holds something else, Damaged for a format that
    this nestvec does not read. Many processes may hold a database open; see `Database.acquire_service_lock`.
    """
    root = Path(path)
    open_root(root, create)
    return Database(root)


class Database:
    """An open database. Use `nestvec.open`; close it, or use it as a context manager."""

    def __init__(self, root: Path) -> None:
        sqlite.check_sqlite()
        self.path = root
        self._collections = files.new_directory(root / "collections")
        self._opened: dict[str, Collection] = {}
        self._by_name: dict[str, Collection] = {}
        self._wrecks = Wrecks()
        self._lock = threading.RLock()
        self._service_lock: FileLock | None = None
        self._ledger: Ledger | None = None
        self._jobs: Jobs | None = None
        lock = self._directory_lock()
        if lock.try_acquire():
            try:
                files.sweep_temporary(self._collections)
                files.sweep_temporary(root)
            finally:
                lock.release()
        for folder in (SNAPSHOTS, JOBS):
            scratch.sweep(root / folder)
        for directory in self._directories():
            self._readable(directory)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def create_collection(
        self,
        name: str,
        *,
        dims: int | None = None,
        metric: Metric = "cosine",
        granularities: Sequence[int] | None = None,
        dtype: Dtype = "float32",
        encoder: str | None = None,
        chunking: Chunking | None = None,
        fields: Fields | None = None,
        bm25: bool | None = None,
        bm25_fields: Sequence[str] = (),
        exist_ok: bool = False,
    ) -> Collection:
        """Create a collection. With `encoder` dims and granularities come from it. `chunking` splits texts into
        chunks, and searches find whole documents. `fields` declares the types of payload fields: "string", "number",
        "bool" or "datetime" (or arrays of it); a write that differs is refused. `exist_ok` returns an existing
        collection of the same configuration. `bm25` (None: where there is an encoder) lets texts, and the strings in
        the payload fields `bm25_fields`, be searched by their words. Raises Conflict, InvalidInput, and what the
        encoder's loading raises."""
        check_name(name)
        bm25 = True if bm25 is None and bm25_fields else bm25
        config = replace(
            settle(dims, metric, granularities, dtype, encoder, chunking),
            fields=fields or {},
            bm25=encoder is not None if bm25 is None else bm25,
            bm25_fields=tuple(bm25_fields),
        )
        with self._lock, self._directories_locked():
            existing = self._find(name)
            if existing is not None:
                return self._existing(existing, name, config, exist_ok, bm25)
            self._wrecks.check(name)
            self._check_no_alias(name)
            final = self._next_directory()
            with files.staging(self._collections, "create") as directory:
                Layout(directory).create()
                catalog.create_catalog(
                    directory / catalog.FILE_NAME,
                    {"name": name, "identity": uuid.uuid4().hex, "config": json.dumps(config.to_json())},
                    lexical.schema(config),
                )
                files.fsync_directory(directory)
                files.crash_point("create-staged")
                files.publish(directory, final)
            files.crash_point("create-renamed")
            return self._open_directory(final)

    def _existing(
        self, directory: Path, name: str, config: CollectionConfig, exist_ok: bool, bm25: bool | None
    ) -> Collection:
        collection = self._open_directory(directory)
        if bm25 is None:  # not asked for: the collection may be older than its default
            config = replace(config, bm25=collection.config.bm25, bm25_fields=collection.config.bm25_fields)
        if not exist_ok:
            raise Conflict(f"collection {name!r} exists already")
        if not same(collection.config, config):
            raise Conflict(f"collection {name!r} exists with {collection.config}, asked for {config}")
        return collection

    def collection(self, name: str) -> Collection:
        """The collection of this name, or of this alias. Raises NotFound, Damaged where it cannot be opened."""
        check_name(name)
        with self._lock:
            directory, named = self._find(name), None
            if directory is None and self._has_ledger():
                named = naming.resolve(self.ledger, name)
                directory = None if named is None else self._find(named)
            if directory is None:
                self._wrecks.check(name if named is None else named)
                raise NotFound(f"there is no collection {name!r} in {self.path}")
            return self._open_directory(directory)

    def opened(self, name: str) -> Collection | None:
        """The collection of this name or alias if this process has it open: `collection` without waiting for anybody.

        None says nothing: ask `collection`, which looks at the directory.
        """
        found = self._by_name.get(name)
        if found is None and self._ledger is not None:
            found = self._by_name.get(naming.resolve(self._ledger, name) or "")
        return None if found is None or found.deleted else found

    def collections(self) -> list[CollectionInfo]:
        """Facts about every collection that can be read, by name; `damaged` tells of the others."""
        with self._lock:
            opened = [(path, found) for path in self._directories() if (found := self._readable(path)) is not None]
        infos = []
        for directory, collection in opened:
            try:
                infos.append(collection.info())
            except Damaged as error:
                self._wrecks.add(directory, error)
        return sorted(infos, key=lambda info: info.name)

    def damaged(self) -> list[DamagedCollection]:
        """The collections that cannot be opened: all others work. `nestvec repair` rebuilds what can be rebuilt."""
        with self._lock:
            return self._wrecks.all()

    def delete_collection(self, name: str) -> None:
        """Delete a collection and all its files.

        Raises NotFound, Conflict while an alias names it, Busy while it is built, sealed or compacted.
        """
        check_name(name)
        with self._lock, self._directories_locked():
            directory = self._find(name)
            if directory is None:
                self._wrecks.check(name)
                raise NotFound(f"there is no collection {name!r} in {self.path}")
            if self._has_ledger():
                naming.check_unnamed(self.ledger, name)
            lock = Layout(directory).maintenance_lock()
            lock.acquire(1.0, f"delete collection {name!r}")
            try:
                doomed = self._collections / f"tmp-deleted-{uuid.uuid4().hex[:12]}"
                files.publish(directory, doomed)
            finally:
                lock.release()
            files.crash_point("delete-renamed")
            self._forget(directory.name)
            files.remove_tree(doomed)

    def aliases(self) -> dict[str, str]:
        """Alias -> the collection that it names."""
        return naming.all_aliases(self.ledger) if self._has_ledger() else {}

    def switch_aliases(self, switches: Sequence[AliasSwitch]) -> dict[str, str]:
        """Let aliases name other collections, or nothing: all switches at one instant, or none. All aliases after it.

        Raises InvalidInput, Conflict where an alias is a collection's name, NotFound where there is no such collection
        or no such alias to take away.
        """
        ledger = self.ledger
        with self._lock, self._directories_locked():
            return naming.switch(ledger, switches, lambda name: self._find(name) is not None)

    def snapshot(self, collection: str, *, progress: Progress | None = None) -> SnapshotInfo:
        """Write a collection, as it is at one instant, into one file in the database directory, while searches and
        writes go on; `restore` reads it. Raises NotFound."""
        return backup.take(self.collection(collection), self.path, progress or silent)

    def snapshots(self) -> list[SnapshotInfo]:
        """The snapshots in the database directory, by name."""
        return backup.stored(self.path)

    def snapshot_file(self, name: str) -> Path:
        """Where a snapshot's file is. Raises NotFound."""
        return backup.path_of(name, self.path)

    def add_snapshot(self, chunks: Iterable[bytes]) -> SnapshotInfo:
        """Keep a snapshot's file that comes from elsewhere. Raises InvalidInput for what is none, or not whole."""
        return backup.store(chunks, self.path)

    def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot's file. Raises NotFound."""
        files.remove_file(backup.path_of(name, self.path))
        files.fsync_directory(self.path / SNAPSHOTS)

    def restore(self, source: Path | str, name: str, *, progress: Progress | None = None) -> Collection:
        """Make a new collection `name` from a snapshot of this database (its name) or from a snapshot's file (a Path).

        All of it appears, verified, or nothing. Raises NotFound, Conflict where the name is taken, InvalidInput for a
        file that is no snapshot, Damaged for one that is not whole.
        """
        check_name(name)
        path = source if isinstance(source, Path) else backup.path_of(source, self.path)
        with self._lock:
            self._check_free(name)
        unpacked = backup.unpacked(path, name, self.path, progress or silent)
        with unpacked as directory, self._lock, self._directories_locked():
            self._check_free(name)
            final = self._next_directory()
            files.publish(directory, final)
            files.crash_point("restore-renamed")
            return self._open_directory(final)

    def verify(self) -> list[VerifyReport]:
        """Read every stored byte: a report on each collection, on the ledger and on each snapshot."""
        return verify_database(self.path)

    def create_key(self, name: str, scope: str, collections: Sequence[str] | None = None) -> tuple[KeyInfo, str]:
        """Make an API key of scope "read", "write" or "admin", for these collections or (None) for all; an alias
        counts as the collection that it names now. Returns its facts and its secret, which is never shown again.

        Raises InvalidInput, Conflict where a key has this name.
        """
        if collections is not None and not isinstance(collections, str):
            named = self.aliases()
            collections = [named.get(name, name) for name in collections]
        return api_keys.create_key(self.ledger, name, scope, collections)

    def keys(self) -> list[KeyInfo]:
        """The API keys, by name, without their secrets."""
        return api_keys.all_keys(self.ledger) if self._has_ledger() else []

    def revoke_key(self, name: str) -> None:
        """Take an API key away: requests with it are refused from now on, by every process. Raises NotFound."""
        api_keys.revoke_key(self.ledger, name)

    @property
    def ledger(self) -> Ledger:
        """What belongs to no collection: aliases, API keys, jobs. Made when it is first asked for."""
        with self._lock:
            if self._ledger is None:
                if not self._has_ledger():
                    with self._directories_locked():
                        if not self._has_ledger():
                            create_ledger(self.path / LEDGER_FILE)
                            note_ledger(self.path)
                self._ledger = Ledger(self.path / LEDGER_FILE)
            return self._ledger

    @property
    def jobs(self) -> Jobs:
        """The jobs of all processes; those that are submitted here run in a thread of this one, until `close`."""
        with self._lock:
            if self._jobs is None:
                self._jobs = Jobs(self.ledger)
            return self._jobs

    def acquire_service_lock(self) -> None:
        """Claim the directory for one service, until `close`. Raises DatabaseLocked with the holder's pid."""
        if self._service_lock is not None:
            return
        lock = FileLock(self.path / SERVICE_LOCK)
        if not lock.try_acquire():
            raise DatabaseLocked(str(self.path), lock.holder())
        lock.write_pid()
        self._service_lock = lock

    def close(self) -> None:
        """Stop the jobs, close every collection and give the service lock back."""
        if self._jobs is not None:
            self._jobs.close()  # outside the lock: a running job may want it before it ends
        with self._lock:
            self._jobs = None
            for name in list(self._opened):
                self._forget(name)
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None
            if self._service_lock is not None:
                self._service_lock.release()
                self._service_lock = None

    def _has_ledger(self) -> bool:
        return self._ledger is not None or (self.path / LEDGER_FILE).exists() or has_ledger(self.path)

    def _check_no_alias(self, name: str) -> None:
        if self._has_ledger():
            naming.check_free(self.ledger, name)

    def _check_free(self, name: str) -> None:
        if self._find(name) is not None:
            raise Conflict(f"collection {name!r} exists already")
        self._wrecks.check(name)
        self._check_no_alias(name)

    def _next_directory(self) -> Path:
        """Where the next collection goes. The caller holds the lock of the directory."""
        taken = [int(path.name) for path in self._directories()]
        return self._collections / f"{max(taken, default=0) + 1:06d}"

    def _directory_lock(self) -> FileLock:
        return FileLock(self._collections / "LOCK")

    @contextmanager
    def _directories_locked(self) -> Iterator[None]:
        lock = self._directory_lock()
        lock.acquire(5.0, "create or delete a collection")
        try:
            files.sweep_temporary(self._collections)
            yield
        finally:
            lock.release()

    def _directories(self) -> list[Path]:
        return sorted(path for path in self._collections.iterdir() if path.name.isdigit())

    def _find(self, name: str) -> Path | None:
        for directory in self._directories():
            collection = self._readable(directory)
            if collection is not None and collection.name == name:
                return directory
        return None

    def _readable(self, directory: Path) -> Collection | None:
        """The collection in a directory, None where it is damaged."""
        known = self._opened.get(directory.name)
        if known is not None and not known.deleted:
            return known
        self._forget(directory.name)
        collection = self._wrecks.open(directory)
        if collection is not None:
            self._opened[directory.name] = self._by_name[collection.name] = collection
        return collection

    def _open_directory(self, directory: Path) -> Collection:
        """`_readable`, or Damaged."""
        collection = self._readable(directory)
        if collection is None:
            raise self._wrecks.reason(directory)
        return collection

    def _forget(self, directory: str) -> None:
        collection = self._opened.pop(directory, None)
        if collection is not None:
            if self._by_name.get(collection.name) is collection:
                del self._by_name[collection.name]
            collection.close()
