"""A database: a directory of collections."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from nestvec.engine.collection import Collection
from nestvec.engine.record import CollectionInfo
from nestvec.engine.schema import CollectionConfig, Dtype, Metric, check_name
from nestvec.engine.storage import catalog, files
from nestvec.engine.storage.layout import Layout
from nestvec.errors import Conflict, Damaged, DatabaseLocked, InvalidInput, NotFound

FORMAT_VERSION = 1
_FORMAT_FILE = "nestvec.json"
_SERVICE_LOCK = "SERVICE.lock"


def open(path: str | os.PathLike[str], *, create: bool = True) -> Database:
    """Open the database in a directory; with `create`, make one in a directory that is empty or absent.

    Raises NotFound where there is none, Conflict where the directory holds something else, Damaged for a format that
    this nestvec does not read. Many processes may hold a database open; see `Database.acquire_service_lock`.
    """
    root = Path(path)
    if not (root / _FORMAT_FILE).is_file():
        _create(root, create)
    _check_format(root / _FORMAT_FILE)
    return Database(root)


def _create(root: Path, create: bool) -> None:
    if not create:
        raise NotFound(f"{root} holds no nestvec database; `nestvec build` or nestvec.open(create=True) makes one")
    if root.exists() and not root.is_dir():
        raise Conflict(f"{root} is a file; a database is a directory")
    if root.is_dir() and any(not name.startswith("tmp-") for name in os.listdir(root) if name != _FORMAT_FILE):
        raise Conflict(
            f"{root} is not empty and has no {_FORMAT_FILE}: it is no nestvec database. If it was one, "
            f"restore {_FORMAT_FILE}; otherwise choose another directory"
        )
    files.new_directory(root, parents=True)
    temporary = root / f"tmp-{uuid.uuid4().hex}.json"
    files.write_file(temporary, json.dumps({"format": "nestvec", "version": FORMAT_VERSION}).encode())
    files.publish(temporary, root / _FORMAT_FILE)


def _check_format(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
        found = (content["format"], content["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(str(path), f"is unreadable: {error!r}") from None
    if found != ("nestvec", FORMAT_VERSION):
        raise Damaged(
            str(path),
            f"says format {found[0]} version {found[1]}; this nestvec reads nestvec version "
            f"{FORMAT_VERSION}. Open it with the release that wrote it",
        )


class Database:
    """An open database. Use `nestvec.open`; close it, or use it as a context manager."""

    def __init__(self, root: Path) -> None:
        catalog.check_sqlite()
        self.path = root
        self._collections = files.new_directory(root / "collections")
        self._opened: dict[str, Collection] = {}
        self._lock = threading.RLock()
        self._service_lock: files.FileLock | None = None
        lock = self._directory_lock()
        if lock.try_acquire():
            try:
                files.sweep_temporary(self._collections)
                files.sweep_temporary(root)
            finally:
                lock.release()
        for directory in self._directories():
            self._open_directory(directory)

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
        exist_ok: bool = False,
    ) -> Collection:
        """Create a collection. With `encoder` dims and granularities come from it. `exist_ok` returns an existing one
        of the same configuration. Raises Conflict, InvalidInput."""
        check_name(name)
        config = _config(dims, metric, granularities, dtype, encoder)
        with self._lock, self._directories_locked():
            existing = self._find(name)
            if existing is not None:
                return self._existing(existing, name, config, exist_ok)
            taken = [int(path.name) for path in self._directories()]
            final = self._collections / f"{max(taken, default=0) + 1:06d}"
            with files.staging(self._collections, "create") as directory:
                Layout(directory).create()
                catalog.create_catalog(
                    directory / catalog.FILE_NAME, {"name": name, "config": json.dumps(config.to_json())}
                )
                files.fsync_directory(directory)
                files.crash_point("create-staged")
                files.publish(directory, final)
            files.crash_point("create-renamed")
            return self._open_directory(final)

    def _existing(self, directory: Path, name: str, config: CollectionConfig, exist_ok: bool) -> Collection:
        collection = self._open_directory(directory)
        if not exist_ok:
            raise Conflict(f"collection {name!r} exists already")
        if collection.config != config:
            raise Conflict(f"collection {name!r} exists with {collection.config}, asked for {config}")
        return collection

    def collection(self, name: str) -> Collection:
        """The collection of this name. Raises NotFound."""
        check_name(name)
        with self._lock:
            directory = self._find(name)
            if directory is None:
                raise NotFound(f"there is no collection {name!r} in {self.path}")
            return self._open_directory(directory)

    def collections(self) -> list[CollectionInfo]:
        """Facts about every collection, by name."""
        with self._lock:
            opened = [self._open_directory(directory) for directory in self._directories()]
        return sorted((collection.info() for collection in opened), key=lambda info: info.name)

    def delete_collection(self, name: str) -> None:
        """Delete a collection and all its files. Raises NotFound, Busy while it is built, sealed or compacted."""
        check_name(name)
        with self._lock, self._directories_locked():
            directory = self._find(name)
            if directory is None:
                raise NotFound(f"there is no collection {name!r} in {self.path}")
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

    def acquire_service_lock(self) -> None:
        """Claim the directory for one service, until `close`. Raises DatabaseLocked with the holder's pid."""
        if self._service_lock is not None:
            return
        lock = files.FileLock(self.path / _SERVICE_LOCK)
        if not lock.try_acquire():
            raise DatabaseLocked(str(self.path), lock.holder())
        lock.write_pid()
        self._service_lock = lock

    def close(self) -> None:
        """Close every collection and give the service lock back."""
        with self._lock:
            for name in list(self._opened):
                self._forget(name)
            if self._service_lock is not None:
                self._service_lock.release()
                self._service_lock = None

    def _directory_lock(self) -> files.FileLock:
        return files.FileLock(self._collections / "LOCK")

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
            if self._open_directory(directory).name == name:
                return directory
        return None

    def _open_directory(self, directory: Path) -> Collection:
        collection = self._opened.get(directory.name)
        if collection is not None and collection.deleted:
            self._forget(directory.name)
            collection = None
        if collection is None:
            collection = self._opened[directory.name] = Collection(directory)
        return collection

    def _forget(self, directory: str) -> None:
        collection = self._opened.pop(directory, None)
        if collection is not None:
            collection.close()


def _config(
    dims: int | None, metric: Metric, granularities: Sequence[int] | None, dtype: Dtype, encoder: str | None
) -> CollectionConfig:
    chosen = tuple(granularities or ())
    if encoder is None:
        if dims is None:
            raise InvalidInput("a collection needs dims, or an encoder that knows them")
        return CollectionConfig(dims, metric, chosen, dtype)
    from nestvec.engine.encoders.registry import load_encoder

    loaded = load_encoder(encoder)
    if dims is not None and dims != loaded.dims:
        raise InvalidInput(f"encoder {encoder!r} makes vectors of {loaded.dims} dims, asked for {dims}")
    return CollectionConfig(
        loaded.dims, metric, chosen or tuple(loaded.granularities), dtype, encoder, loaded.fingerprint
    )
