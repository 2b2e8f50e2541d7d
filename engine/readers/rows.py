"""What all readers share: which columns to read, what they yield, and how single values are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput

Floats = npt.NDArray[np.float32]

VECTOR_NAMES = ("vector", "embedding")


NO_TEXT = "text: is empty or missing"
"""The reason in `Chunk.bad` for a row that has none where one is needed."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None = guess (before `resolve`) or absent (after)."""

    id: str | None = None
    vector: str | None = None
    texts: tuple[str, ...] | None = None
    payload: tuple[str, ...] | None = None
    whole_payload: str | None = None
    """A column that holds the payload object itself; only found by guessing."""

    def named(self) -> list[str]:
        """All columns given by name, without the guesses."""
        single = [name for name in (self.id, self.vector) if name is not None]
        return [*single, *(self.texts or ()), *(self.payload or ())]

    def resolve(self, found: Sequence[str], where: str) -> Columns:
        """Fill the guesses from the columns `found`. Raises InvalidInput if one is missing or nothing can be read."""
        missing = [name for name in self.named() if name not in found]
        if missing:
            raise InvalidInput(f"{where}: no column {missing[0]!r}; found: {', '.join(found) or 'none'}")
        vector = self.vector or next((name for name in VECTOR_NAMES if name in found), None)
        texts = self.texts
        if texts is None and "text" in found:
            texts = ("title", "text") if "title" in found else ("text",)
        if vector is None and not texts:
            expected = "expected a column 'vector', 'embedding' or 'text', or their names given"
            raise InvalidInput(f"{where}: {expected}; found: {', '.join(found) or 'none'}")
        return replace(
            self,
            id=self.id or ("id" if "id" in found else None),
            vector=vector,
            texts=texts or None,
            whole_payload="payload" if self.payload is None and "payload" in found else None,
        )

    def fields(self) -> frozenset[str]:
        """What rows have: some of "ids", "vectors", "texts", "payloads"."""
        present = {
            "ids": self.id,
            "vectors": self.vector,
            "texts": self.texts,
            "payloads": self.payload or self.whole_payload,
        }
        return frozenset(name for name, column in present.items() if column)


@dataclass
class Chunk:
    """Consecutive rows of one file. `bad` maps the offset of an unusable row to the reason; see `void_bad_rows`."""

    size: int
    ids: list[str] | None = None
    vectors: Floats | None = None
    texts: list[str | None] | None = None
    payloads: list[dict[str, Any] | None] | None = None
    bad: dict[int, str] = field(default_factory=dict)

    def void_bad_rows(self) -> None:
        """Give every bad row a vector of NaN, or an empty text where there are no vectors."""
        for offset in self.bad:
            if self.vectors is not None:
                self.vectors[offset] = np.nan
            elif self.texts is not None:
                self.texts[offset] = ""


class Reader(Protocol):
    """One open file."""

    dims: int | None
    rows: int | None
    fields: frozenset[str]

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """All rows from the first on, at most `rows` at a time."""


def chunk_of(values: list[dict[str, Any]], columns: Columns, dims: int | None) -> Chunk:
    """A chunk from one dict per row. A value of the wrong kind makes its row bad and stops nothing.

    The caller voids the bad rows once the chunk has its vectors.
    """
    chunk = Chunk(len(values))
    if columns.vector is not None and dims is not None:
        chunk.vectors = vectors_of([row.get(columns.vector) for row in values], dims, chunk.bad)
    if columns.id is not None:
        chunk.ids = [_id(row.get(columns.id), offset, chunk.bad) for offset, row in enumerate(values)]
    if columns.texts is not None:
        needed = columns.vector is None
        parts = [[row.get(name) for name in columns.texts] for row in values]
        chunk.texts = [_text(each, offset, chunk.bad, needed) for offset, each in enumerate(parts)]
    if columns.payload is not None:
        chunk.payloads = [{name: row[name] for name in columns.payload if name in row} for row in values]
    elif columns.whole_payload is not None:
        given = [row.get(columns.whole_payload) for row in values]
        chunk.payloads = [_payload(each, offset, chunk.bad) for offset, each in enumerate(given)]
    return chunk


def vectors_of(values: list[Any], dims: int, bad: dict[int, str]) -> Floats:
    """f32 [len(values), dims]; a value that is not a list of `dims` numbers gives a row of NaN and an entry in bad."""
    vectors = np.full((len(values), dims), np.nan, np.float32)
    for offset, value in enumerate(values):
        reason = vector_fault(value, dims)
        if reason is None:
            try:
                with np.errstate(over="ignore"):
                    vectors[offset] = np.asarray(value, np.float64)
            except (OverflowError, ValueError, TypeError):
                reason = "vector: a number is too large"
        if reason is not None:
            bad.setdefault(offset, reason)
    return vectors


def vector_fault(value: Any, dims: int | None = None) -> str | None:  # noqa: ANN401 - any JSON value may come
    """Why `value` is no vector (of `dims` numbers), or None."""
    if not isinstance(value, list):
        return f"vector: expected a list of numbers, got {_kind(value)}"
    if dims is not None and len(value) != dims:
        return f"vector: expected {dims} numbers, got {len(value)}"
    kinds = set(map(type, value)) - {int, float}
    if kinds:
        return f"vector: expected numbers, got a {min(kind.__name__ for kind in kinds)}"
    return None if value else "vector: is empty"


def block_ranges(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive blocks."""
    return ((start, min(rows, start + size)) for start in range(0, rows, size))


def refuse_columns(path: Path, columns: Columns, allowed: Sequence[str] = ()) -> None:
    """Raise InvalidInput if columns were named for a file that has none."""
    unknown = [name for name in columns.named() if name not in allowed]
    if unknown:
        raise InvalidInput(f"{path}: this kind of file has vectors only, so no column {unknown[0]!r}")


def _id(value: Any, offset: int, bad: dict[int, str]) -> str:  # noqa: ANN401
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    bad.setdefault(offset, f"id: expected a string or an integer, got {_kind(value)}")
    return ""


def _text(parts: list[Any], offset: int, bad: dict[int, str], needed: bool) -> str | None:
    if not needed and all(part is None for part in parts):
        return None
    wrong = next((part for part in parts if part is not None and not isinstance(part, str)), None)
    if wrong is not None:
        bad.setdefault(offset, f"text: expected a string, got {_kind(wrong)}")
        return ""
    joined = ": ".join(part for part in parts if part)
    if needed and not joined:
        bad.setdefault(offset, NO_TEXT)
    return joined


def _payload(value: Any, offset: int, bad: dict[int, str]) -> dict[str, Any] | None:  # noqa: ANN401
    """An object, or the JSON of one: what an export to Parquet writes."""
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, str):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(value, type=dict[str, Any] | None)
    bad.setdefault(offset, f"payload: expected an object, got {_kind(value)}")
    return None


def _kind(value: Any) -> str:  # noqa: ANN401
    return "nothing" if value is None else f"a {type(value).__name__}"
