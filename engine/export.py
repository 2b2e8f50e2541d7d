"""Export: the records of one instant into one file that a build or an import reads back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import apsw
import msgspec
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.answers import user_vectors
from nestvec.engine.coordinates import F32
from nestvec.engine.filters.tree import Filter
from nestvec.engine.maintenance import Part
from nestvec.engine.progress import Progress
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage import catalog, files
from nestvec.errors import InvalidInput, MissingDependency, NestvecError

FORMATS = ("parquet", "jsonl", "npz", "npy")
_BLOCK_ROWS, _BLOCK_FLOATS = 8192, 1 << 22  # 16 MiB of vectors at a time, and a row group of Parquet


@dataclass(frozen=True)
class ExportReport:
    """`rows` records are in the file, which has `bytes` bytes."""

    path: str
    format: str
    rows: int
    bytes: int


@dataclass(frozen=True, eq=False)
class _Rows:
    """The records to export, in the order of their writing, at one instant."""

    part: Part
    connection: apsw.Connection
    snapshot: Snapshot
    seqs: NDArray[np.int64]
    progress: Progress

    @property
    def dims(self) -> int:
        return self.part.config.dims

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """The sequence numbers, block by block; pages of mapped vectors are given back after each."""
        size = max(1, min(_BLOCK_ROWS, _BLOCK_FLOATS // self.dims))
        for start in range(0, len(self.seqs), size):
            block = self.seqs[start : start + size]
            yield block
            for view in self.snapshot.segments:
                files.release(view.segment.vectors)
            self.progress("export", start + len(block), len(self.seqs))

    def vectors(self, block: NDArray[np.int64]) -> F32:
        """f32 [n, dims] in the user's coordinates and scale."""
        return user_vectors(self.snapshot, self.part.config, block)

    def records(self, block: NDArray[np.int64]) -> list[tuple[str, bytes, str | None]]:
        """(id, payload as JSON, text) of each."""
        return catalog.read_records(self.connection, block)


def export(part: Part, path: Path, format: str | None, filter: Filter | None, progress: Progress) -> ExportReport:
    """See `Collection.export`."""
    chosen = _format(path, format)
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInput(f"{path}: expected a file in a directory that exists")
    connection, snapshot = part.keeper.pin()
    try:
        with part.catalog.translated(), files.clean_disk_errors("export"), files.new_file(path) as file:
            seen = snapshot if filter is None else snapshot.matching(connection, filter)
            rows = _Rows(part, connection, snapshot, seen.live_seqs(), progress)
            _WRITERS[chosen](file, rows)
    except OSError as error:
        raise NestvecError(f"{path}: cannot be written ({error.strerror}); nothing was left there") from error
    finally:
        part.catalog.unpin(connection)
    return ExportReport(str(path), chosen, len(rows.seqs), path.stat().st_size)


def _format(path: Path, format: str | None) -> str:
    chosen = path.suffix.lower().removeprefix(".") if format is None else format
    if chosen not in FORMATS:
        expected = f"a file that ends in .{', .'.join(FORMATS)}, or the format by name"
        raise InvalidInput(f"expected {expected}; got {chosen or path.name!r:.100}")
    return chosen


def _write_jsonl(file: BinaryIO, rows: _Rows) -> None:
    encode = msgspec.json.Encoder().encode
    for block in rows.blocks():
        for (id, payload, text), vector in zip(rows.records(block), rows.vectors(block), strict=True):
            line = {"id": id, "vector": vector.tolist(), "text": text, "payload": msgspec.Raw(payload)}
            file.write(encode(line) + b"\n")


def _write_parquet(file: BinaryIO, rows: _Rows) -> None:
    """Payloads are JSON strings: records of one collection need not have the same fields, or types, in theirs."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("writing Parquet", "parquet") from error
    names = ("id", "vector", "text", "payload")
    kinds = (pa.string(), pa.list_(pa.float32(), rows.dims), pa.string(), pa.string())
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:  # no value of a vector comes twice
        for block in rows.blocks():
            flat = pa.array(rows.vectors(block).reshape(-1))
            records = rows.records(block)
            columns = [
                pa.array([id for id, _, _ in records], kinds[0]),
                pa.FixedSizeListArray.from_arrays(flat, rows.dims),
                pa.array([text for _, _, text in records], kinds[2]),
                pa.array([None if payload == b"null" else payload.decode() for _, payload, _ in records], kinds[3]),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _write_npy(file: BinaryIO, rows: _Rows) -> None:
    _header(file, np.dtype("<f4"), (len(rows.seqs), rows.dims))
    for block in rows.blocks():
        file.write(rows.vectors(block).astype("<f4").tobytes())


def _write_npz(file: BinaryIO, rows: _Rows) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("vectors.npy"), "w", force_zip64=True) as member:
            _write_npy(cast(BinaryIO, member), rows)
        with archive.open(zipfile.ZipInfo("ids.npy"), "w", force_zip64=True) as member:
            _write_ids(cast(BinaryIO, member), rows)


def _write_ids(file: BinaryIO, rows: _Rows) -> None:
    """As numpy's fixed-width strings, which need the longest one first."""
    longest = max((len(id) for block in rows.blocks() for id in catalog.read_ids(rows.connection, block)), default=1)
    dtype = np.dtype(f"<U{longest}")
    _header(file, dtype, (len(rows.seqs),))
    for block in rows.blocks():
        file.write(np.array(catalog.read_ids(rows.connection, block), dtype).tobytes())


def _header(file: BinaryIO, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    file.write(header.getvalue())


_WRITERS: dict[str, Callable[[BinaryIO, _Rows], None]] = {
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "npy": _write_npy,
    "npz": _write_npz,
}
