"""Parquet, by way of the optional pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestvec.engine.readers.rows import Chunk, Columns, chunk_of
from nestvec.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


class ParquetReader:
    """Columns by name; the vector column holds lists, fixed in size or not, of numbers."""

    def __init__(self, path: Path, columns: Columns) -> None:
        """Read the schema. Raises InvalidInput naming the file and the columns found, or MissingDependency."""
        self._path = path
        with self._open() as file:
            schema = file.schema_arrow
            self.rows: int | None = file.metadata.num_rows
            self._columns = columns.resolve(schema.names, str(path))
            self.fields = self._columns.fields()
            self.dims = None if self._columns.vector is None else self._vector_dims(file, self._columns.vector)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """All rows; a row whose list is null, or of another length than the first, is bad."""
        columns, vector = self._columns, self._columns.vector
        names = [*columns.named(), *([columns.whole_payload] if columns.whole_payload else [])]
        with self._open() as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(dict.fromkeys(names))):
                dense = None if vector is None else _dense(batch.column(vector), self.dims or 0)
                kept = batch if dense is None else batch.drop_columns([vector])
                values: list[dict[str, Any]] = kept.to_pylist() if kept.num_columns else [{} for _ in range(len(batch))]
                chunk = chunk_of(values, columns, self.dims if dense is None else None)
                chunk.vectors = chunk.vectors if dense is None else dense
                chunk.void_bad_rows()
                yield chunk

    def _open(self) -> pyarrow.parquet.ParquetFile:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependency(f"reading {self._path}", "parquet") from error
        try:
            return pyarrow.parquet.ParquetFile(self._path)
        except (pyarrow.ArrowException, OSError) as error:
            raise InvalidInput(f"{self._path}: is not a whole Parquet file ({error})") from error

    def _vector_dims(self, file: pyarrow.parquet.ParquetFile, column: str) -> int:
        import pyarrow.types as types

        kind = file.schema_arrow.field(column).type
        fixed = types.is_fixed_size_list(kind)
        if not (fixed or types.is_list(kind) or types.is_large_list(kind)) or not _is_number(kind.value_type):
            raise InvalidInput(f"{self._path}: expected lists of numbers in column {column!r}, got {kind}")
        if fixed:
            return int(kind.list_size)
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            lengths = [length for length in batch.column(0).value_lengths().to_pylist() if length]
            if lengths:
                return int(lengths[0])
        raise InvalidInput(f"{self._path}: no row has a list of numbers in {column!r}")


def _is_number(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_floating(kind) or types.is_integer(kind))


def _dense(column: pyarrow.Array, dims: int) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """f32 [rows, dims] without a detour through Python numbers, if every row is whole; None otherwise."""
    if column.null_count:
        return None
    flat = column.flatten()
    if flat.null_count or any(length != dims for length in set(column.value_lengths().to_pylist())):
        return None
    with np.errstate(over="ignore"):
        return np.array(flat.to_numpy(zero_copy_only=False), np.float32).reshape(-1, dims)
