"""JSON lines, plain or gzipped: one object per line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from nestvec.engine.readers.rows import Chunk, Columns, chunk_of, vector_fault
from nestvec.errors import InvalidInput


class JsonlReader:
    """The first object decides which columns there are; the first usable vector decides the dims."""

    rows: int | None = None

    def __init__(self, path: Path, columns: Columns) -> None:
        """Read as far as the first row with a usable vector. Raises InvalidInput naming file and line."""
        self._path = path
        first = next(self._objects(), None)
        if first is None:
            raise InvalidInput(f"{path}: holds no rows")
        self._columns = columns.resolve(list(first), str(path))
        self.fields = self._columns.fields()
        self.dims = None if self._columns.vector is None else self._first_dims(self._columns.vector)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """All rows; blank lines are none. Raises InvalidInput naming file and line where a line is no JSON object."""
        objects = self._objects()
        while values := list(islice(objects, rows)):
            chunk = chunk_of(values, self._columns, self.dims)
            chunk.void_bad_rows()
            yield chunk

    def _first_dims(self, column: str) -> int:
        vectors = (row.get(column) for row in self._objects())
        for vector in vectors:
            if isinstance(vector, list) and vector_fault(vector) is None:
                return len(vector)
        raise InvalidInput(f"{self._path}: no row has a list of numbers in {column!r}")

    def _objects(self) -> Iterator[dict[str, Any]]:
        decode = msgspec.json.Decoder().decode
        for number, line in self._lines():
            try:
                value = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InvalidInput(f"{self._path}, line {number}: is not JSON ({error})") from error
            if not isinstance(value, dict):
                raise InvalidInput(f"{self._path}, line {number}: expected an object, got a {type(value).__name__}")
            yield value

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        opener = gzip.open if self._path.name.lower().endswith(".gz") else open
        try:
            with opener(self._path, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line
        except (EOFError, zlib.error, OSError) as error:
            raise InvalidInput(f"{self._path}: cannot be read after line {number} ({error})") from error
