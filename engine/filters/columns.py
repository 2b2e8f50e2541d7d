"""The columns of rows that never change: read from the catalog when a filter first asks for them, and kept.

A sequence number keeps its payload for ever: an upsert makes a new one, and a delete only takes it away. So the
columns of a segment serve every snapshot that holds the segment, whatever died since.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from operator import attrgetter
from typing import Any

import apsw
import msgspec
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.filters.declared import inside
from nestvec.engine.filters.evaluate import evaluate
from nestvec.engine.filters.tree import Filter
from nestvec.engine.filters.values import Column, ColumnBuilder, Mask
from nestvec.engine.recent import Recent
from nestvec.engine.storage.catalog import State, rows_of
from nestvec.errors import Damaged

Seqs = NDArray[np.int64]

KEPT_FIELDS = 128
"""Fields whose columns are kept, of every segment; at least twice as many as one filter can name."""

_BATCH_ROWS = 4096
_GAP = 64  # sequence numbers that are cheaper to read over than to seek past
_GROWING_BLOCKS = (65536, 4096, 256)  # rows of the blocks that growing rows are read in: once each, if they stay


class SealedColumns:
    """The columns of rows with sequence numbers i64 [n], ascending. Safe to use from many threads."""

    def __init__(self, seqs: Seqs) -> None:
        self._seqs = seqs
        self._lock = threading.Lock()
        self._columns: dict[str, Column] = {}
        self._masks: Recent[Filter, Mask] = Recent()
        self._gaps_at: State | None = None  # the latest instant at which a row of these was gone when it was read

    def mask(self, connection: apsw.Connection, state: State, filter: Filter) -> Mask:
        """bool [n]: where the filter holds, among rows that are alive at `state`, the instant of the connection's
        transaction; a row that is dead may be anything. Not to be written to. Raises Damaged."""
        mask = self._masks.get(filter)
        if mask is None:
            columns = self.load(connection, state, filter.fields)
            mask = self._masks.keep(filter, evaluate(filter.root, columns, len(self._seqs)))
        if self._gaps_at is not None and state < self._gaps_at:
            # Rows that are alive at this older instant were gone already when another thread read the columns.
            return SealedColumns(self._seqs).mask(connection, state, filter)
        return mask

    def load(self, connection: apsw.Connection, state: State, fields: Iterable[str]) -> dict[str, Column]:
        """The columns of these fields, at least; reads the payloads once for all that are not here."""
        wanted = set(fields)
        columns = self._columns
        if wanted <= columns.keys():
            return columns
        with self._lock:
            missing = sorted(wanted - self._columns.keys())
            if missing:
                made, complete = _read(connection, self._seqs, missing)
                if not complete:
                    self._gaps_at = max(state, self._gaps_at or state)
                self._columns = self._trimmed(made, wanted)
            return self._columns

    def _trimmed(self, made: dict[str, Column], wanted: set[str]) -> dict[str, Column]:
        """The new columns and those held, without the ones that were not read for longest."""
        held = {field: column for field, column in self._columns.items() if field not in wanted}
        now = {field: column for field, column in self._columns.items() if field in wanted} | made
        forgotten = max(0, len(held) + len(now) - KEPT_FIELDS)
        return dict(list(held.items())[forgotten:]) | now

    @property
    def nbytes(self) -> int:
        """Bytes of the columns in memory."""
        return sum(column.nbytes for column in self._columns.values())


class GrowingColumns:
    """The columns of growing rows: in blocks, so that new rows cost little more than themselves."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], SealedColumns] = {}

    def mask(self, seqs: Seqs, connection: apsw.Connection, state: State, filter: Filter) -> Mask:
        """`SealedColumns.mask` of the growing rows that a snapshot sees."""
        known = self._blocks
        blocks = {
            bounds: known.get(bounds) or SealedColumns(seqs[slice(*bounds)].copy()) for bounds in _bounds(len(seqs))
        }
        self._blocks = blocks
        masks = [block.mask(connection, state, filter) for block in blocks.values()]
        return np.concatenate(masks) if masks else np.empty(0, np.bool_)


def _bounds(rows: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the blocks of growing rows: large ones first, then what is left."""
    start = 0
    for size in _GROWING_BLOCKS:
        while start + size <= rows:
            yield start, start + size
            start += size
    if start < rows:
        yield start, rows


def _read(connection: apsw.Connection, seqs: Seqs, fields: list[str]) -> tuple[dict[str, Column], bool]:
    """(the columns of the fields, whether every row was there)."""
    builders = {field: ColumnBuilder() for field in fields}
    complete = True
    for start in range(0, len(seqs), _BATCH_ROWS):
        batch = seqs[start : start + _BATCH_ROWS]
        payloads = _payloads(connection, batch)
        complete = complete and len(payloads) == len(batch)
        held = [payloads.get(seq, b"{}") for seq in batch.tolist()]
        for field, values in _values(held, fields, connection.filename).items():
            builders[field].add(values)
    return {field: builder.finish() for field, builder in builders.items()}, complete


def _payloads(connection: apsw.Connection, seqs: Seqs) -> dict[int, bytes]:
    """The payloads of those that are there, by range scans."""
    found: dict[int, bytes] = {}
    for run in np.split(seqs, np.flatnonzero(np.diff(seqs) > _GAP) + 1):
        bounds = int(run[0]), int(run[-1])
        found.update(rows_of(connection, "SELECT seq, payload FROM record WHERE seq BETWEEN ? AND ?", bounds))
    if len(found) > len(seqs):
        mine = set(seqs.tolist())
        found = {seq: payload for seq, payload in found.items() if seq in mine}
    return found


def _values(payloads: list[bytes], fields: list[str], path: str) -> dict[str, list[Any]]:
    """Each field's value in each payload, None where it is absent."""
    keys = tuple(sorted({field.split(".", 1)[0] for field in fields}))
    decoder, getters = _decoder(keys)
    joined = b",".join([b"{}" if payload == b"null" else payload for payload in payloads])
    try:
        objects = decoder.decode(b"[" + joined + b"]")
    except msgspec.DecodeError as error:
        raise Damaged(path, f"holds a payload that is no JSON object: {error}") from error
    found = {}
    for field in fields:
        first, *rest = field.split(".")
        values = list(map(getters[first], objects))
        found[field] = [inside(value, rest) for value in values] if rest else values
    return found


@lru_cache(maxsize=64)
def _decoder(keys: tuple[str, ...]) -> tuple[msgspec.json.Decoder[list[Any]], dict[str, Callable[[Any], Any]]]:
    """Decodes an array of payloads, only these keys of them; and what takes each key out of one."""
    names = {f"f{i}": key for i, key in enumerate(keys)}
    try:
        kind = msgspec.defstruct("Payload", [(name, Any, None) for name in names], rename=names, gc=False)
    except ValueError:  # a key that must be escaped in JSON
        return msgspec.json.Decoder(list[dict[str, Any]]), {key: _item(key) for key in keys}
    return msgspec.json.Decoder(list[kind]), {key: attrgetter(name) for name, key in names.items()}  # type: ignore[valid-type]


def _item(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda payload: payload.get(key)
