"""The only code that creates, syncs and renames files of a database, through the ten calls of `disk`.

A directory of files is published in one way: every file is written into a `tmp-*` directory and fsynced,
`manifest.json` is written last, the directory is fsynced, renamed to its final name, and its parent is fsynced. Until
a catalog transaction lists it, a published directory is an orphan that the next open sweeps away.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from nestvec.engine.storage.disk import FILE_MODE as FILE_MODE
from nestvec.engine.storage.disk import Disk
from nestvec.engine.storage.manifest import FORMAT_VERSION, check_array, described, parse
from nestvec.engine.storage.manifest import MANIFEST as MANIFEST
from nestvec.engine.storage.manifest import FileEntry as FileEntry
from nestvec.engine.storage.manifest import Manifest as Manifest
from nestvec.errors import Damaged, NoSpace
from nestvec.index import kernels

BLOCK_BYTES = 1 << 20
_PIECE_BYTES = 1 << 21  # of a huge page: Linux keeps what is written in such pieces in huge pages, and maps it so


disk = Disk()


def crash_point(name: str) -> None:
    """Kill this process here when the environment variable NESTVEC_CRASH_AT is `name`: how crash tests aim."""
    if os.environ.get("NESTVEC_CRASH_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


class FileWriter:
    """Append-only writer of one new file; checksums are computed on the way. `finish` makes it durable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = disk.create(path)
        self._size, self._crc, self._block_crc = 0, 0, 0
        self._blocks: list[int] = []
        self._pending = bytearray()  # less than a piece

    def append(self, data: NDArray[Any] | bytes) -> None:
        """Write the bytes of a contiguous array (or bytes) at the end."""
        if isinstance(data, np.ndarray):
            view = memoryview(cast(Any, np.ascontiguousarray(data).reshape(-1).view(np.uint8)))
        else:
            view = memoryview(data)
        self._put(view)
        while len(view):
            piece = view[: BLOCK_BYTES - self._size % BLOCK_BYTES]
            self._crc = crc32c(piece, self._crc)
            self._block_crc = crc32c(piece, self._block_crc)
            self._size += len(piece)
            if self._size % BLOCK_BYTES == 0:
                self._close_block()
            view = view[len(piece) :]

    def _put(self, view: memoryview) -> None:
        """Write whole pieces, and keep the rest for later."""
        room = _PIECE_BYTES - len(self._pending)
        if self._pending and len(view) >= room:
            self._pending += view[:room]
            self._flush()
            view = view[room:]
        if not self._pending:
            whole = len(view) - len(view) % _PIECE_BYTES
            self._write(view[:whole])
            view = view[whole:]
        self._pending += view

    def _flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._write(memoryview(pending))

    def _write(self, piece: memoryview) -> None:
        while len(piece):
            piece = piece[disk.write(self._fd, piece) :]

    def _close_block(self) -> None:
        self._blocks.append(self._block_crc)
        self._block_crc = 0

    def finish(self) -> FileEntry:
        """fsync and close; the entry to list in the manifest."""
        if self._size % BLOCK_BYTES:
            self._close_block()
        self._flush()
        disk.fsync(self._fd)
        self.close()
        return FileEntry(self._path.name, self._size, self._crc, self._blocks)

    def close(self) -> None:
        """Close without promising anything (clean-up after an error)."""
        if self._fd >= 0:
            disk.close(self._fd)
            self._fd = -1


def write_file(path: Path, data: NDArray[Any] | bytes) -> FileEntry:
    """Create `path` with these bytes, durably."""
    writer = FileWriter(path)
    try:
        writer.append(data)
        return writer.finish()
    finally:
        writer.close()


def adopt(directory: Path) -> list[FileEntry]:
    """Make the files that somebody else wrote into a staging directory ours: durable, with our mode; their entries."""
    entries = []
    for name in sorted(os.listdir(directory)):
        size, crc, blocks = 0, 0, []
        with (directory / name).open("rb") as file:
            while piece := file.read(BLOCK_BYTES):
                size, crc = size + len(piece), crc32c(piece, crc)
                blocks.append(crc32c(piece))
            os.fchmod(file.fileno(), FILE_MODE)
            disk.fsync(file.fileno())
        entries.append(FileEntry(name, size, crc, blocks))
    return entries


def write_manifest(directory: Path, kind: str, meta: dict[str, Any], files: list[FileEntry]) -> int:
    """Write the manifest last and fsync the directory. Returns the crc32c of the manifest, which the catalog keeps."""
    head = {"format": f"nestvec-{kind}", "version": FORMAT_VERSION, "byte_order": "little", "meta": meta}
    data = json.dumps(head | {"files": [asdict(entry) for entry in files]}, indent=1).encode()
    entry = write_file(directory / MANIFEST, data)
    fsync_directory(directory)
    return entry.crc32c


def read_manifest(directory: Path, kind: str, expected_crc: int, *, sizes: bool = True) -> Manifest:
    """Read and check a manifest, and (with `sizes`) the kind and size of every file that it lists.

    Raises FileNotFoundError when the directory is gone, Damaged for everything else that is wrong.
    """
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if directory.exists():
            raise Damaged(str(path), "is missing") from None
        raise
    found = crc32c(data)
    if found != expected_crc:
        raise Damaged(str(path), f"crc32c is {found:#010x}, the catalog says {expected_crc:#010x}")
    manifest = parse(path, data, kind)
    if sizes:
        for entry in manifest.files.values():
            _check_size(directory / entry.name, entry)
    return manifest


def _check_size(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise Damaged(str(path), "is missing or not a regular file")
    size = path.stat().st_size
    if size != entry.size:
        raise Damaged(str(path), f"has {size} bytes, its manifest says {entry.size}")


def verify_file(path: Path, entry: FileEntry) -> None:
    """Read the whole file and compare every MiB with its checksum. Raises Damaged naming file and block."""
    _check_size(path, entry)
    with path.open("rb") as file:
        for number, expected in enumerate(entry.blocks):
            found = crc32c(file.read(BLOCK_BYTES))
            if found != expected:
                where = f"block {number} (bytes from {number * BLOCK_BYTES})"
                raise Damaged(str(path), f"{where} has crc32c {found:#010x}, its manifest says {expected:#010x}")


def checksum(path: Path) -> tuple[int, int]:
    """(size in bytes, crc32c) of a file, read in pieces."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while piece := file.read(BLOCK_BYTES):
            size, crc = size + len(piece), crc32c(piece, crc)
    return size, crc


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A read-only view of a published file. Raises Damaged where its size is another than that of the array."""
    kind = check_array(path, dtype, shape)
    if 0 in shape:
        return np.empty(shape, kind)
    return np.memmap(path, dtype=_little(kind), mode="r", shape=shape).view(np.ndarray)


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The little-endian form; by way of its name, so that it is the plain native type on a little-endian machine."""
    return np.dtype(dtype.newbyteorder("<").str)


def release(array: NDArray[Any]) -> None:
    """Let go of the pages that a read-only map of ours holds in memory; the next access finds them in the page cache.

    A pass over a large file calls this after each block, or the process would seem to hold the whole file. An array
    in memory is left as it is.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def resident(array: NDArray[Any]) -> NDArray[Any]:
    """A copy of a mapped array in memory, in huge pages where the system has them."""
    copy = kernels.resident(array)
    release(array)
    return copy


class ArraysWriter:
    """Writes named arrays into a staging directory, each as `<name>.bin`, and last the manifest that describes them."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory, self._kind = directory, kind
        self._entries: list[FileEntry] = []
        self._described: dict[str, dict[str, Any]] = {}

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Write one whole array."""
        self.add_blocks(name, [array])

    def add_blocks(self, name: str, blocks: Iterable[NDArray[Any]]) -> None:
        """Write an array that comes in blocks of rows, at least one; they never are in memory together."""
        writer = FileWriter(self._directory / f"{name}.bin")
        try:
            rows, shape, dtype = 0, (), ""
            for block in blocks:
                writer.append(np.ascontiguousarray(block, dtype=_little(block.dtype)))
                rows, shape, dtype = rows + len(block), block.shape[1:], block.dtype.name
            self._entries.append(writer.finish())
        finally:
            writer.close()
        self._described[name] = {"dtype": dtype, "shape": [rows, *shape]}

    def finish(self, meta: dict[str, Any]) -> int:
        """Write the manifest and make the directory durable. Returns the crc32c of the manifest."""
        return write_manifest(self._directory, self._kind, {"facts": meta, "arrays": self._described}, self._entries)


def write_arrays(directory: Path, kind: str, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> int:
    """Write each array as `<name>.bin` and a manifest that tells their dtypes and shapes. Returns its crc32c."""
    writer = ArraysWriter(directory, kind)
    for name, array in arrays.items():
        writer.add(name, array)
    return writer.finish(meta)


def verify_directory(directory: Path, kind: str, expected_crc: int) -> None:
    """Read every byte of a published directory and compare it with its checksums. Raises Damaged naming the file."""
    for name, entry in read_manifest(directory, kind, expected_crc).files.items():
        verify_file(directory / name, entry)


def read_arrays(directory: Path, kind: str, expected_crc: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The fully verified facts and arrays of `write_arrays`; the arrays are read-only maps."""
    manifest = read_manifest(directory, kind, expected_crc)
    arrays = {}
    for name, (dtype, shape) in described(directory / MANIFEST, manifest.meta).items():
        entry = manifest.files.get(f"{name}.bin")
        if entry is None:
            raise Damaged(str(directory / MANIFEST), f"describes an array {name!r:.100} and lists no file of it")
        verify_file(directory / entry.name, entry)
        arrays[name] = map_array(directory / entry.name, dtype, shape)
    return manifest.meta["facts"], arrays


def fsync_directory(path: Path) -> None:
    """Make names created in, renamed into or removed from a directory durable."""
    disk.fsync_directory(path)


def publish(source: Path, target: Path) -> None:
    """Durable rename inside one parent directory; the target must not exist (an empty directory counts as absent)."""
    disk.rename(source, target)
    fsync_directory(target.parent)


def link(source: Path, target: Path) -> None:
    """A second name for a published file, which keeps its content when the first one is removed."""
    disk.link(source, target)


def create_empty(path: Path) -> None:
    """Create a file for somebody else to fill (SQLite), with the mode of ours."""
    disk.close(disk.create(path))


@contextmanager
def new_file(final: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name whole and durable, or after an error not at all."""
    temporary = final.parent / f"tmp-{uuid.uuid4().hex}-{final.name}"
    try:
        with open(disk.create(temporary), "wb") as file:
            yield file
            file.flush()
            disk.fsync(file.fileno())
        publish(temporary, final)
    except BaseException:
        with suppress(FileNotFoundError):
            disk.unlink(temporary)
        raise


def move(source: Path, target: Path) -> None:
    """Rename a scratch file inside a staging directory; nothing depends on its durability."""
    disk.rename(source, target)


def remove_file(path: Path) -> None:
    """Remove a file."""
    disk.unlink(path)


def new_directory(path: Path, *, parents: bool = False) -> Path:
    """Create a directory durably, with `parents` those above it too; fine if it is there already."""
    if parents and not path.parent.is_dir():
        new_directory(path.parent, parents=True)
    if not path.is_dir():
        disk.make(path)
    fsync_directory(path.parent)
    return path


@contextmanager
def staging(parent: Path, what: str) -> Iterator[Path]:
    """A new `tmp-*` directory under `parent`, removed on the way out unless it was renamed away."""
    path = parent / f"tmp-{what}-{uuid.uuid4().hex[:12]}"
    disk.make(path)
    try:
        yield path
    finally:
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it; live maps of its files stay readable until they are closed."""
    with suppress(FileNotFoundError):
        disk.remove(path)


def sweep(parent: Path, keep: set[str]) -> None:
    """Remove every entry of `parent` that is not in `keep`. The caller holds the lock that owns `parent`."""
    if parent.is_dir():
        for entry in os.listdir(parent):
            if entry not in keep:
                remove_tree(parent / entry)


def sweep_temporary(parent: Path) -> None:
    """Remove the `tmp-*` entries of `parent`. The caller holds the lock that owns `parent`."""
    for entry in os.listdir(parent):
        if entry.startswith("tmp-"):
            path = parent / entry
            remove_tree(path) if path.is_dir() else disk.unlink(path)


@contextmanager
def clean_disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk or quota into a NoSpace that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(
                f"{what}: no space left ({error.strerror}); nothing was changed. Free some space and try again"
            ) from error
        raise
