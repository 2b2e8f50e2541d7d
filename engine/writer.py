"""Upsert and delete: validate the whole request, then one durable transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import apsw
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from nestvec.engine.chunking import is_first
from nestvec.engine.coordinates import F32, as_matrix, bad_rows
from nestvec.engine.filters.declared import Fields, check_types
from nestvec.engine.record import Record, UpsertResult
from nestvec.engine.schema import CollectionConfig, check_id, check_payload, check_text
from nestvec.engine.storage.catalog import Catalog, chunk_ids, last_number, meta_value, record_crc
from nestvec.engine.storage.files import crash_point
from nestvec.errors import InvalidInput, InvalidRecord

Encode = Callable[[Sequence[str]], F32]


class Reconfigured(Exception):
    """The configuration changed between the check of some records and their commit: check them again."""


class Row(NamedTuple):
    """A record's checked columns, as the catalog stores them."""

    id: str
    payload: bytes
    text: str | None
    crc: int


def check_row(position: int, id: str, payload: dict[str, Any] | None, text: str | None, fields: Fields) -> Row:
    """The columns of one record, or InvalidRecord saying which record and why."""
    try:
        checked, data, content = check_id(id), check_payload(payload), check_text(text)
        check_types(payload, fields)
    except InvalidInput as error:
        raise InvalidRecord(position, id if isinstance(id, str) else None, str(error)) from None
    return Row(checked, data, content, record_crc(checked, data, content))


def numbered_rows(start: int, count: int) -> list[Row]:
    """The columns of records without payload or text whose ids are the numbers from `start` on."""
    ids = [str(number) for number in range(start, start + count)]
    return [Row(id, b"null", None, record_crc(id, b"null", None)) for id in ids]


def check_records(records: Sequence[Record], config: CollectionConfig, encode: Encode) -> tuple[list[Row], F32]:
    """(columns, the user's vectors f32 [n, dims]) of a whole request, or InvalidRecord for the first bad one."""
    rows: list[Row] = []
    seen: dict[str, int] = {}
    vectors = np.empty((len(records), config.dims), np.float32)
    to_encode: list[int] = []
    for position, record in enumerate(records):
        row = check_row(position, record.id, record.payload, record.text, config.fields)
        first = seen.setdefault(row.id, position)
        if first != position:
            raise InvalidRecord(position, row.id, f"the same id is already at position {first} of this request")
        rows.append(row)
        if record.vector is not None:
            vectors[position] = _vector(position, record, config)
        elif row.text is not None and config.encoder is not None:
            to_encode.append(position)
        else:
            raise InvalidRecord(
                position, row.id, "it has no vector" if config.encoder is None else "it has neither vector nor text"
            )
    if to_encode:
        vectors[to_encode] = as_matrix(encode([rows[position].text or "" for position in to_encode]), config.dims)
    for position, reason in sorted(bad_rows(vectors, config.metric, config.dtype).items()):
        raise InvalidRecord(position, rows[position].id, reason)
    return rows, vectors


def _vector(position: int, record: Record, config: CollectionConfig) -> F32:
    try:
        matrix = as_matrix(np.asarray(record.vector)[None], config.dims)
    except (InvalidInput, ValueError) as error:
        raise InvalidRecord(position, record.id, str(error)) from None
    return matrix.reshape(-1)


def upsert(catalog: Catalog, rows: Sequence[Row], vectors: F32, documents: Sequence[str] = ()) -> UpsertResult:
    """Write checked records; when this returns they are durable and every reader sees them.

    They replace the records of the same ids, and all chunks of `documents`. Raises Reconfigured where they were checked
    against a configuration that is no longer the stored one.
    """
    return begin_upsert(catalog, rows, vectors, documents)()


def begin_upsert(
    catalog: Catalog, rows: Sequence[Row], vectors: F32, documents: Sequence[str] = (), *, wait: bool = True
) -> Callable[[], UpsertResult]:
    """`upsert` but for the commit, which waits for the disk: that is what is returned, to be called once, soon, in any
    thread. Until then nobody else can write. Raises what `upsert` does, and Busy as `Catalog.write` without `wait`."""
    blobs = [vector.tobytes() for vector in vectors.astype("<f4")]
    with ExitStack() as undone:
        connection = undone.enter_context(catalog.write(wait=wait))
        if meta_value(connection, "config") != catalog.config:
            raise Reconfigured
        _bury(connection, _all_chunks(connection, documents) if documents else [row.id for row in rows])
        seq = last_number(connection, "record")
        connection.executemany(
            "INSERT INTO record(seq, id, payload, text, crc) VALUES (?, ?, ?, ?, ?)",
            ((seq + i, *row) for i, row in enumerate(rows, 1)),
        )
        connection.executemany(
            "INSERT INTO growing(seq, vector, crc) VALUES (?, ?, ?)",
            ((seq + i, blob, crc32c(blob)) for i, blob in enumerate(blobs, 1)),
        )
        crash_point("upsert-before-commit")
        transaction = undone.pop_all()

    def commit() -> UpsertResult:
        transaction.close()
        crash_point("upsert-committed")
        return UpsertResult(len(rows), seq + len(rows))

    return commit


def delete(catalog: Catalog, ids: Sequence[str]) -> int:
    """Remove the records that exist among `ids`; how many did."""
    with catalog.write() as connection:
        count = _bury(connection, list(dict.fromkeys(ids)))
        crash_point("erase-before-commit")
    crash_point("erase-committed")
    return count


def delete_documents(catalog: Catalog, documents: Sequence[str]) -> int:
    """Remove all chunks of the documents that exist; how many documents did."""
    with catalog.write() as connection:
        chunks = _all_chunks(connection, list(dict.fromkeys(documents)))
        _bury(connection, chunks)
    return sum(map(is_first, chunks))


def _all_chunks(connection: apsw.Connection, documents: Sequence[str]) -> list[str]:
    return [id for document in documents for id in chunk_ids(connection, document)]


def _bury(connection: apsw.Connection, ids: Sequence[str]) -> int:
    """Tombstone and delete the present versions of these ids."""
    found = (connection.execute("SELECT seq FROM record WHERE id=?", (id,)).get for id in ids)
    seqs = [seq for seq in found if seq is not None]
    bury(connection, np.array(seqs, np.int64))
    return len(seqs)


def bury(connection: apsw.Connection, seqs: NDArray[np.int64]) -> None:
    """Tombstone and delete the records of these sequence numbers i64 [n], which exist."""
    if len(seqs):
        doomed = (apsw.carray(seqs),)
        connection.execute("INSERT INTO tombstone(seq) SELECT value FROM carray(?)", doomed)
        connection.execute("DELETE FROM record WHERE seq IN (SELECT value FROM carray(?))", doomed)
        connection.execute("DELETE FROM growing WHERE seq IN (SELECT value FROM carray(?))", doomed)
