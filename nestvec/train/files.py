"""The files between steps: tables that anybody can read, and journals that survive a kill.

A table is `<name>.parquet` where pyarrow is installed, else `<name>.jsonl`, with the same columns. A journal is a file
of JSON lines that only grows; half a line at its end, left by a kill, is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from nestvec.engine.storage.files import new_file
from nestvec.errors import Busy, InvalidInput, MissingDependency

Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl")
_GROUP_ROWS = 8192
Columns = Mapping[str, str]
"""Column name → one of text, texts, number, numbers, tables (lists of lists of numbers), integer."""


def write_table(folder: Path, name: str, columns: Columns, rows: Iterable[Row]) -> Path:
    """Write `rows` as the table `name` of `folder`, whole or not at all; an earlier one of either format goes.

    Returns its path: `.parquet` where pyarrow is installed, else `.jsonl`.
    """
    suffix = ".parquet" if find_spec("pyarrow") is not None else ".jsonl"
    path = folder / f"{name}{suffix}"
    with new_file(path) as file:
        if suffix == ".parquet":
            _write_parquet(file, columns, rows)
        else:
            encoder = msgspec.json.Encoder()
            for row in rows:
                file.write(encoder.encode({column: row[column] for column in columns}) + b"\n")
    for other in SUFFIXES:
        if other != suffix:
            (folder / f"{name}{other}").unlink(missing_ok=True)
    return path


def find_table(folder: Path, name: str) -> Path | None:
    """The file of the table `name` in `folder`, if there is one."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def read_table(folder: Path, name: str, columns: Columns) -> Iterator[Row]:
    """The rows of the table `name` of `folder`, in order; only one group of rows is held.

    Raises InvalidInput where there is no such table or it lacks a column, MissingDependency for parquet without
    pyarrow.
    """
    path = find_table(folder, name)
    if path is None:
        raise InvalidInput(f"{folder} has no {name}.parquet and no {name}.jsonl: run the step before this one first")
    yield from _read_parquet(path, columns) if path.suffix == ".parquet" else _read_lines(path, columns)


def digest_of(path: Path) -> str:
    """16 hexadecimal digits that change with the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_of_json(facts: object) -> str:
    """24 hexadecimal digits that change with anything in `facts`, which JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


class Journal:
    """What was found out so far, by key; every line is the system's once `put` returns. For one
    process at a time, and any of its threads."""

    def __init__(self, path: Path) -> None:
        """Reads what an earlier run left and cuts off a last line without end.

        Raises InvalidInput for rubbish, Busy where another process writes it.
        """
        self.known: dict[str, Any] = {}
        self.path, self._lock = path, threading.Lock()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
        try:
            self._hold()
            self._file.truncate(self._read())
        except BaseException:
            self._file.close()
            raise

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{self.path}: another process writes it; wait until it has finished") from None

    def _read(self) -> int:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    key, value = msgspec.json.decode(line)
                except (msgspec.DecodeError, ValueError, TypeError):
                    raise InvalidInput(
                        f"{self.path}, line {number}: no [key, value]; remove the line or the file"
                    ) from None
                self.known[key] = value
                whole += len(line)
        return whole

    def put(self, key: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Keep `value` under `key`, in one line that is handed to the system at once."""
        with self._lock:
            self._file.write(msgspec.json.encode([key, value]) + b"\n")
            self._file.flush()
            self.known[key] = value

    def close(self) -> None:
        """Bring all lines to the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


@contextmanager
def journal(path: Path) -> Iterator[Journal]:
    """The journal at `path`, closed at the end, also of a block that fails or is interrupted."""
    opened = Journal(path)
    try:
        yield opened
    finally:
        opened.close()


def _write_parquet(file: BinaryIO, columns: Columns, rows: Iterable[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    plain = {"text": pyarrow.string(), "number": pyarrow.float64(), "integer": pyarrow.int64()}
    types = plain | {"texts": pyarrow.list_(plain["text"]), "numbers": pyarrow.list_(plain["number"])}
    types["tables"] = pyarrow.list_(types["numbers"])
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    left = iter(rows)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := [{name: row[name] for name in columns} for row in islice(left, _GROUP_ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    def all_of_them(there: list[str]) -> list[str]:
        _check(path, columns, there)
        return list(columns)

    return parquet_rows(path, all_of_them)


def parquet_rows(path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[Row]:
    """The rows of any parquet file; of the columns that are there, `choose` says which. One group of rows is held.

    Raises InvalidInput for what is no parquet, MissingDependency without pyarrow.
    """
    if find_spec("pyarrow") is None:
        raise MissingDependency(f"reading {path.name}", "parquet")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for group in file.iter_batches(_GROUP_ROWS, columns=choose(file.schema_arrow.names)):
                yield from group.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise InvalidInput(f"{path}: cannot be read as parquet: {error}") from None


def _read_lines(path: Path, columns: Columns) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise InvalidInput(f"{path}, line {number}: no JSON object: {error}") from None
            _check(path, columns, row)
            yield {column: row[column] for column in columns}


def _check(path: Path, columns: Columns, there: Iterable[str]) -> None:
    missing = sorted(set(columns) - set(there))
    if missing:
        raise InvalidInput(f"{path}: expected the columns {', '.join(columns)}; {', '.join(missing)} missing")
