"""One reader per file format; `open_reader` picks it by the file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nestvec.engine.readers.arrays import read_npy, read_npz, read_vecs
from nestvec.engine.readers.jsonl import JsonlReader
from nestvec.engine.readers.parquet import ParquetReader
from nestvec.engine.readers.rows import Chunk, Columns, Reader
from nestvec.errors import InvalidInput

__all__ = ["Chunk", "Columns", "Reader", "open_reader"]

_BY_SUFFIX: dict[str, Callable[[Path, Columns], Reader]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".fvecs": read_vecs,
    ".bvecs": read_vecs,
    ".parquet": ParquetReader,
    ".jsonl": JsonlReader,
    ".jsonl.gz": JsonlReader,
}


def open_reader(path: Path, columns: Columns) -> Reader:
    """The reader of `path`, its header checked. Raises InvalidInput if it is no file or of no known kind."""
    kind = next((suffix for suffix in _BY_SUFFIX if path.name.lower().endswith(suffix)), None)
    if kind is None:
        raise InvalidInput(f"{path}: expected a file ending in {' '.join(_BY_SUFFIX)}")
    if not path.is_file():
        raise InvalidInput(f"{path}: {'is not a file' if path.exists() else 'does not exist'}")
    return _BY_SUFFIX[kind](path, columns)
