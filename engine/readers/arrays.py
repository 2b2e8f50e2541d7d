"""Files of bare vectors: .npy (mapped), .npz (streamed), .fvecs and .bvecs (mapped)."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from nestvec.engine.readers.rows import Chunk, Columns, block_ranges, refuse_columns
from nestvec.engine.storage.files import release
from nestvec.errors import InvalidInput

Array = npt.NDArray[np.generic]
Blocks = Callable[[int], Iterator[Array]]
Header = tuple[tuple[int, ...], bool, np.dtype[np.generic]]


@dataclass
class ArrayReader:
    """A file that is one array [rows, dims]; `blocks` yields it from the top, a given number of rows at a time.

    `ids` does the same for an array of strings [rows] that lies beside it.
    """

    dims: int | None
    rows: int | None
    blocks: Blocks
    ids: Blocks | None = None
    fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.fields = frozenset({"vectors"} if self.ids is None else {"vectors", "ids"})

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Blocks as float32; a number beyond its range becomes infinite, which the build rejects."""
        ids = None if self.ids is None else self.ids(rows)
        for block in self.blocks(rows):
            with np.errstate(over="ignore"):
                named = None if ids is None else next(ids).tolist()
                yield Chunk(len(block), ids=named, vectors=np.ascontiguousarray(block, np.float32))


def read_npy(path: Path, columns: Columns) -> ArrayReader:
    """A 2-D array of numbers. Raises InvalidInput naming the file if it is anything else."""
    refuse_columns(path, columns)
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidInput(f"{path}: is not a whole .npy file of numbers ({error})") from error
    _check_array(str(path), array.shape, array.dtype)
    return ArrayReader(array.shape[1], len(array), lambda rows: _slices(array, rows))


def read_npz(path: Path, columns: Columns) -> ArrayReader:
    """One 2-D member: the one named by `columns.vector`, or the only one; and its ids, if a member `ids` holds strings.

    Raises InvalidInput listing the members.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise InvalidInput(f"{path}: is not a whole .npz file of numbers ({error})") from error
    refuse_columns(path, columns, allowed=[columns.vector] if columns.vector else [])
    member = _member(path, {name: shape for name, (shape, _, _) in headers.items()}, columns.vector)
    shape, fortran, dtype = headers[member]
    _check_array(f"{path}, member {member!r}", shape, dtype)
    if fortran:
        raise InvalidInput(f"{path}, member {member!r}: is stored by columns; save it with np.ascontiguousarray")
    ids = _ids(path, headers, shape[0])
    return ArrayReader(shape[1], shape[0], lambda rows: _stream(path, member, rows), ids)


def _ids(path: Path, headers: dict[str, Header], rows: int) -> Blocks | None:
    """What an export writes beside the vectors."""
    shape, _, dtype = headers.get("ids", ((), False, np.dtype("f4")))
    if dtype.kind != "U":
        return None
    if shape != (rows,):
        raise InvalidInput(f"{path}, member 'ids': expected {rows} ids, one for each vector, got {list(shape)}")
    return lambda size: _stream(path, "ids", size)


def read_vecs(path: Path, columns: Columns) -> ArrayReader:
    """.fvecs or .bvecs: each row is its dims as int32, then that many float32 or uint8. All little-endian."""
    refuse_columns(path, columns)
    item = np.dtype("<f4") if path.name.lower().endswith(".fvecs") else np.dtype("u1")
    size = path.stat().st_size
    head = np.fromfile(path, "<i4", count=1)
    if len(head) == 0 or head[0] < 1:
        raise InvalidInput(f"{path}: expected a dimension >= 1 at the start, got {head[0] if len(head) else 'no data'}")
    row = np.dtype([("dims", "<i4"), ("vector", item, (int(head[0]),))])
    if size % row.itemsize:
        expected = f"rows of {row.itemsize} bytes ({head[0]} dims)"
        raise InvalidInput(f"{path}: is truncated, or its rows differ in length: expected {expected}, got {size} bytes")
    array: npt.NDArray[np.void] = np.memmap(path, row, mode="r")
    return ArrayReader(int(head[0]), len(array), lambda rows: _checked_vecs(path, array, rows))


def _slices(array: Array, size: int) -> Iterator[Array]:
    for start, end in block_ranges(len(array), size):
        yield array[start:end]
        release(array)


def _checked_vecs(path: Path, array: npt.NDArray[np.void], size: int) -> Iterator[Array]:
    dims = int(array["dims"][0])
    for start, end in block_ranges(len(array), size):
        block = array[start:end]
        other = np.flatnonzero(block["dims"] != dims)
        if len(other):
            raise InvalidInput(f"{path}: row {start + other[0]}: expected {dims} dims, got {block['dims'][other[0]]}")
        yield block["vector"]
        release(array)


def _check_array(where: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    if len(shape) != 2 or shape[1] < 1 or dtype.kind not in "fiu":
        raise InvalidInput(f"{where}: expected numbers [rows, dims], got {dtype} {list(shape)}")


def _member(path: Path, shapes: dict[str, tuple[int, ...]], wanted: str | None) -> str:
    if wanted is not None and wanted in shapes:
        return wanted
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"
    if wanted is not None:
        raise InvalidInput(f"{path}: no member {wanted!r}; found: {listed}")
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) != 1:
        raise InvalidInput(f"{path}: expected one 2-D member, or its name as the vector column; found: {listed}")
    return matrices[0]


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(name) as stream:
        return _read_header(stream)


def _read_header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _stream(path: Path, member: str, size: int) -> Iterator[Array]:
    """Blocks read one after the other out of the archive: a compressed member cannot be mapped."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as stream:
        (rows, *rest), _, dtype = _read_header(stream)
        for start, end in block_ranges(rows, size):
            expected = (end - start) * prod(rest) * dtype.itemsize
            try:
                content = stream.read(expected)
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise InvalidInput(f"{path}, member {member!r}: damaged after row {start} ({error})") from error
            if len(content) != expected:
                raise InvalidInput(f"{path}, member {member!r}: is truncated after row {start}")
            yield np.frombuffer(content, dtype).reshape(-1, *rest)
