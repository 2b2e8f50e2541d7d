"""Documents in a collection with chunking: written as chunk records, found as themselves.

A record of such a collection is a chunk with the id `document#n`; its payload is the document's, its text its own part.
Clients name documents: an upsert replaces all chunks of its documents in one transaction, a delete removes them, and a
search counts and returns each document once, by its best chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine import writer
from nestvec.engine.chunking import chunk_id, document_of
from nestvec.engine.coordinates import F32
from nestvec.engine.execute import EXACT, Found
from nestvec.engine.plan import Plan
from nestvec.engine.record import Record, UpsertResult
from nestvec.engine.schema import MAX_ID_BYTES, CollectionConfig
from nestvec.engine.storage import catalog
from nestvec.engine.storage.catalog import Catalog
from nestvec.engine.writer import Encode, Row, check_records, check_row
from nestvec.errors import InvalidRecord

Find = Callable[[Sequence[int], int], list[Found]]
"""`find(queries, k)`: the k best chunks for each of these queries, by their numbers; fewer only where no more can be
found."""

MAX_DOCUMENT_ID_BYTES = MAX_ID_BYTES - 8  # a text of 1 MiB has fewer than ten million chunks
OVERSAMPLE = 4  # chunks asked for, for each document wanted; more are fetched only where these hold too few documents


def upsert(held: Catalog, records: Sequence[Record], config: CollectionConfig, encode: Encode) -> UpsertResult:
    """Write documents, each in place of all its chunks; the result counts documents. See `Collection.upsert`."""
    rows, vectors = _chunk_rows(records, config, encode)
    written = writer.upsert(held, rows, vectors, [record.id for record in records])
    return UpsertResult(len(records), written.seq)


def _chunk_rows(records: Sequence[Record], config: CollectionConfig, encode: Encode) -> tuple[list[Row], F32]:
    """(columns of all chunks, the user's vectors f32 [chunks, dims]), or InvalidRecord for the first bad record.

    A record that brings its own vector is one chunk, whatever its text.
    """
    seen: dict[str, int] = {}
    chunks: list[Record] = []
    owners: list[int] = []
    for position, record in enumerate(records):
        _check_document(position, record)
        if (first := seen.setdefault(record.id, position)) != position:
            raise InvalidRecord(position, record.id, f"the same id is already at position {first} of this request")
        pieces = [record.text] if record.vector is not None else pieces_of(record.text, config)
        chunks += [replace(record, id=chunk_id(record.id, n), text=text) for n, text in enumerate(pieces)]
        owners += [position] * len(pieces)
    try:
        rows, vectors = check_records(chunks, config, encode)
    except InvalidRecord as error:
        owner = owners[error.position]
        raise InvalidRecord(owner, records[owner].id, error.reason) from None
    return rows, vectors


def _check_document(position: int, record: Record) -> None:
    check_row(position, record.id, record.payload, record.text, {})  # the fields are checked with its chunks
    if reason := document_fault(record.id):
        raise InvalidRecord(position, record.id, reason)
    if record.vector is None and record.text is not None and not record.text.strip():
        raise InvalidRecord(position, record.id, "the text is empty")


def pieces_of(text: str | None, config: CollectionConfig) -> list[str | None]:
    """The texts of a document's chunks; a record without text, or without chunking, is one piece."""
    return [text] if text is None or config.chunking is None else [*config.chunking.split(text)]


def document_fault(id: str) -> str | None:
    """Why a record's checked id cannot be a document's, or None: the numbers of its chunks must fit behind it."""
    size = len(id.encode())
    if size <= MAX_DOCUMENT_ID_BYTES:
        return None
    return f"a document's id has at most {MAX_DOCUMENT_ID_BYTES} bytes of UTF-8, got {size}"


def folded(connection: apsw.Connection, find: Find, queries: int, k: int) -> list[Found]:
    """The k best documents of so many queries, as their best chunks; min(k, documents that can be found), always.

    Asks for a multiple of k chunks, then for twice as many again where they belong to too few documents.
    """
    answers: dict[int, Found] = {}
    waiting, wanted = list(range(queries)), OVERSAMPLE * k
    while waiting:
        found = find(waiting, wanted)
        for query, answer in zip(waiting, found, strict=True):
            kept = _best_of_each(connection, answer, k)
            if len(kept.seqs) == k or len(answer.seqs) < wanted:
                answers[query] = kept
        waiting = [query for query in waiting if query not in answers]
        wanted *= 2
    return [answers[query] for query in range(queries)]


def widened(plan: Plan, k: int) -> Plan:
    """The plan, or the exact one where one of its cuts keeps fewer than k rows."""
    kept = [plan.shortlist.keep] if plan.shortlist else []
    return plan if min([*kept, *(stage.keep for stage in plan.stages)], default=k) >= k else EXACT


def count_documents(connection: apsw.Connection, seqs: NDArray[np.int64] | None = None) -> int:
    """How many documents have chunks among these live records i64 [n]; None: among all of them."""
    if seqs is not None:
        return len({document_of(id) for id in catalog.read_ids(connection, seqs)})
    # A document has one first chunk, and each of its chunks ends in its number.
    total: int = connection.execute("SELECT count(*) FROM record WHERE id GLOB ?", (f"*{chunk_id('', 0)}",)).get
    return total


def _best_of_each(connection: apsw.Connection, found: Found, k: int) -> Found:
    """The first chunk of every document, at most k."""
    ids = catalog.read_ids(connection, found.seqs)
    first: dict[str, int] = {}
    for position, id in enumerate(ids):
        first.setdefault(document_of(id), position)
        if len(first) == k:
            break
    kept = np.fromiter(first.values(), np.int64, len(first))
    return replace(found, seqs=found.seqs[kept], scores=found.scores[kept])
