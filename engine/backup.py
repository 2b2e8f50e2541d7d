"""Snapshots as files: one file holds one collection at one instant; and collections made from such files.

A snapshot is taken online. A read transaction pins the catalog, the files that it lists are given second names so that
no compaction can take them away, and SQLite's backup copies the catalog page by page out of that very transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nestvec.engine.collection import Collection
from nestvec.engine.foreign import admit
from nestvec.engine.holding import hold
from nestvec.engine.progress import Progress, silent
from nestvec.engine.schema import check_name
from nestvec.engine.storage import files
from nestvec.engine.storage.archive import (
    FOLDER,
    NAME,
    SUFFIX,
    Archive,
    extract,
    open_archive,
    snapshot_files,
    verify_archive,
    write_archive,
)
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.scratch import scratch
from nestvec.errors import Damaged, InvalidInput, NestvecError, NotFound

_TIME = "%Y%m%dT%H%M%S"


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot's file. `created` is ISO 8601 in UTC; `damage` says why the file cannot be read, `rows` is None then.

    Only the header is looked at: `restore` and `Database.verify` read every byte.
    """

    name: str
    collection: str
    created: str
    bytes: int
    rows: int | None
    damage: str | None = None


def take(collection: Collection, root: Path, progress: Progress) -> SnapshotInfo:
    """Write a snapshot of a collection into the database in `root`, while searches and writes go on.

    Progress is told as stages "catalog" (pages) and "write" (bytes). Stopped at any point, it leaves nothing.
    """
    with files.clean_disk_errors("snapshot"), scratch(root / FOLDER, "snapshot") as work:
        held = files.new_directory(work / "held")
        facts, members = hold(collection.part, held, progress)
        files.crash_point("snapshot-held")
        facts |= {"collection": collection.name, "created": _iso(datetime.now(UTC))}
        write_archive(work / "new", facts, members, held, progress)
        files.crash_point("snapshot-written")
        return _publish(work / "new", collection.name, root / FOLDER)


def store(chunks: Iterable[bytes], root: Path) -> SnapshotInfo:
    """Keep a snapshot that comes from elsewhere, once every byte of it was checked.

    Raises InvalidInput for what is no snapshot, or is not whole.
    """
    with files.clean_disk_errors("snapshot"), scratch(root / FOLDER, "upload") as work:
        writer = files.FileWriter(work / "new")
        try:
            for chunk in chunks:
                writer.append(chunk)
            writer.finish()
        finally:
            writer.close()
        return _publish(work / "new", _checked(work / "new"), root / FOLDER)


def stored(root: Path) -> list[SnapshotInfo]:
    """All snapshots of the database in `root`, by name."""
    return [_info(path) for path in snapshot_files(root)]


def path_of(name: str, root: Path) -> Path:
    """The file of a snapshot. Raises InvalidInput for what is no snapshot's name, NotFound."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInput(f"a snapshot's name is COLLECTION-YYYYMMDDTHHMMSSmmmZ, got {name!r:.100}")
    path = root / FOLDER / f"{name}{SUFFIX}"
    if path.is_symlink() or not path.is_file():
        raise NotFound(f"there is no snapshot {name!r}")
    return path


@contextmanager
def unpacked(source: Path, name: str, root: Path, progress: Progress) -> Iterator[Path]:
    """A directory that holds the snapshot's collection under the name `name`, every byte checked; to be renamed away.

    Progress is told as stages "copy" (bytes) and "verify". Raises InvalidInput for a file that is no snapshot, Damaged
    for one that is not whole, or whose collection is not; then nothing is left.
    """
    archive = open_archive(source)
    facts = _facts(archive)
    with files.clean_disk_errors("restore"), scratch(root / FOLDER, "restore") as work:
        directory = files.new_directory(work / "collection")
        Layout(directory).create()
        extract(archive, directory, progress)
        files.crash_point("restore-copied")
        admit(directory, source, name, facts["rows"], progress)
        files.crash_point("restore-verified")
        yield directory


def _checked(upload: Path) -> str:
    """The collection that a snapshot from elsewhere is of; whatever is wrong with it is the sender's."""
    try:
        archive = open_archive(upload)
        collection: str = _facts(archive)["collection"]
        verify_archive(archive, silent)
    except (InvalidInput, Damaged) as error:
        raise InvalidInput(str(error).replace(str(upload), "the snapshot that was sent")) from error
    return collection


def _publish(new: Path, collection: str, home: Path) -> SnapshotInfo:
    """Give it the name of this moment; a name is never used twice."""
    final = home / f"{collection}-{_stamp(datetime.now(UTC))}{SUFFIX}"
    while final.exists():
        final = home / f"{collection}-{_stamp(datetime.now(UTC))}{SUFFIX}"
    files.publish(new, final)
    files.crash_point("snapshot-renamed")
    return _info(final)


def _info(path: Path) -> SnapshotInfo:
    collection, _, stamp = path.stem.rpartition("-")
    created = _iso(datetime.strptime(stamp[:-4], _TIME).replace(tzinfo=UTC, microsecond=int(stamp[-4:-1]) * 1000))
    size = path.lstat().st_size
    try:
        facts = _facts(open_archive(path))
        return SnapshotInfo(path.stem, collection, created, size, facts["rows"])
    except NestvecError as error:
        return SnapshotInfo(path.stem, collection, created, size, None, str(error))


def _facts(archive: Archive) -> dict[str, Any]:
    """The facts of a snapshot, checked to be such as we write."""
    facts = archive.facts
    try:
        check_name(facts["collection"])
        if not isinstance(facts["rows"], int):
            raise InvalidInput(f"rows is {facts['rows']!r:.100}")
    except (KeyError, InvalidInput) as error:
        raise Damaged(str(archive.path), f"the manifest's facts cannot be used: {error}") from None
    return facts


def _stamp(moment: datetime) -> str:
    return f"{moment.strftime(_TIME)}{moment.microsecond // 1000:03d}Z"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
