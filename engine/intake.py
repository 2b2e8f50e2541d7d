"""Intake: batches of any size are checked row by row and appended to a build's staging files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.chunking import chunk_id
from nestvec.engine.coordinates import F32, as_matrix, bad_rows, to_stored, to_unit
from nestvec.engine.documents import document_fault, pieces_of
from nestvec.engine.maintenance import Part
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage import files
from nestvec.engine.storage.catalog import record_crc
from nestvec.engine.writer import Encode, Row, check_row, numbered_rows
from nestvec.errors import InvalidInput, InvalidRecord

_GROUP_CHARS = 4_000_000  # chunks of 160 words then have 20 MiB of vectors at 1,024 dims


@dataclass(eq=False)
class Batch:
    """Consecutive rows of an input. `start` is the 0-based number of the first; `vectors` is f32 [n, dims].

    Without `ids` a row's number is its id. Without `vectors` the texts are encoded by the collection's encoder.
    `bad` maps the offsets of rows that could not be read to the reasons; their vectors or texts are not looked at.
    """

    start: int
    ids: list[str] | None = None
    vectors: NDArray[np.float32] | None = None
    texts: Sequence[str | None] | None = None
    payloads: Sequence[dict[str, Any] | None] | None = None
    bad: dict[int, str] = field(default_factory=dict)


class Intake:
    """Checks rows and appends them to the staging files: vectors (and norms) raw, the rest in a SQLite file."""

    FILE = "rows.sqlite"

    def __init__(
        self, part: Part, directory: Path, snapshot: Snapshot, undecided: bool, rejects: Path | None, encode: Encode
    ) -> None:
        self._part, self._snapshot, self._undecided, self._encode = part, snapshot, undecided, encode
        self.rows, self.rejected = 0, 0
        self._free_from: int | None = 0  # from this number on, no row number is an id of this build; None: unknown
        files.new_directory(directory / "segment")
        self._vectors = files.FileWriter(directory / "segment" / "vectors.bin")
        cosine = part.config.metric == "cosine"
        self._norms = files.FileWriter(directory / "segment" / "norms.bin") if cosine else None
        self._database = apsw.Connection(str(directory / self.FILE))
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "PRAGMA cache_size=-65536",
            "CREATE TABLE row(row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, payload BLOB NOT NULL, "
            "text TEXT, crc INTEGER NOT NULL, source INTEGER NOT NULL)",
            "BEGIN",
        ):
            self._database.execute(statement)
        self._rejects: TextIO | None = rejects.open("w", encoding="utf-8") if rejects else None

    def add(self, batch: Batch) -> None:
        """Check one batch and append its good rows; the bad ones are rejected, or InvalidRecord names the first."""
        if self._part.config.chunking is not None:
            self._add_documents(batch)
            return
        vectors, bad = self._vectors_of(batch)
        if self._claims_new_numbers(batch) and not bad:
            self._append(vectors, numbered_rows(batch.start, len(vectors)), range(batch.start, self._free_from or 0))
            return
        good, rows = self._checked(batch, _ids(batch, len(vectors)), bad)
        if len(good) < len(vectors):
            vectors = vectors[good]
        if len(good):
            self._append(vectors, rows, [batch.start + i for i in good])

    def _add_documents(self, batch: Batch) -> None:
        """Check the batch's documents, then append the chunks of the good ones, some documents at a time."""
        faults = dict(batch.bad)
        if batch.vectors is not None or batch.texts is None:
            vectors, faults = self._vectors_of(batch)
        else:
            vectors = None
            faults = {i: "the text is empty" for i, text in enumerate(batch.texts) if not (text or "").strip()} | faults
        ids = _ids(batch, len(batch.texts or []) if vectors is None else len(vectors))
        faults = {i: reason for i, id in enumerate(ids) if (reason := document_fault(id))} | faults
        good, rows = self._checked(batch, ids, faults)
        if vectors is not None:
            chunks = [_chunk(row, 0, row.text) for row in rows]
            self._append(vectors[good], chunks, [batch.start + i for i in good])
            return
        for documents in _groups(rows):
            self._append_chunks(batch.start, dict(zip(good[documents], rows[documents], strict=True)))

    def _append_chunks(self, start: int, documents: dict[int, Row]) -> None:
        """Encode and append the chunks of some documents, by their place in the batch from row `start`."""
        config = self._part.config
        owners, chunks = [], []
        for position, row in documents.items():
            pieces = pieces_of(row.text, config)
            chunks += [_chunk(row, n, text) for n, text in enumerate(pieces)]
            owners += [position] * len(pieces)
        try:
            vectors = as_matrix(self._encode([chunk.text or "" for chunk in chunks]), config.dims)
        except InvalidInput as error:
            raise InvalidInput(f"rows from {start + owners[0]}: {error}") from None
        bad = {owners[i]: reason for i, reason in bad_rows(vectors, config.metric, config.dtype).items()}
        for position, reason in bad.items():
            self._reject(InvalidRecord(start + position, documents[position].id, reason))
        kept = [i for i, owner in enumerate(owners) if owner not in bad]
        self._append(vectors[kept], [chunks[i] for i in kept], [start + owners[i] for i in kept])

    def _claims_new_numbers(self, batch: Batch) -> bool:
        """Whether the batch is bare vectors whose row numbers, their ids, are new: no row needs a look of its own.

        True while every batch of the build has been of this kind, in order, into an empty collection.
        """
        bare = batch.ids is None and batch.texts is None and batch.payloads is None and not self._snapshot.rows
        free_from, self._free_from = self._free_from, None
        if not bare or batch.vectors is None or free_from is None or batch.start < free_from:
            return False
        self._free_from = batch.start + len(batch.vectors)
        return True

    def _vectors_of(self, batch: Batch) -> tuple[F32, dict[int, str]]:
        """(vectors, offset -> why that row cannot be used)."""
        config: CollectionConfig = self._part.config
        try:
            if batch.vectors is not None:
                vectors = as_matrix(batch.vectors, config.dims)
                return vectors, bad_rows(vectors, config.metric, config.dtype) | batch.bad
            if batch.texts is None or config.encoder is None:
                raise InvalidInput("the rows have no vectors, and no text that an encoder of the collection could read")
            return self._encoded(batch.texts, batch.bad)
        except InvalidInput as error:
            raise InvalidInput(f"rows from {batch.start}: {error}") from None

    def _encoded(self, texts: Sequence[str | None], unread: dict[int, str]) -> tuple[F32, dict[int, str]]:
        """Vectors of the usable texts, NaN for the others: one bad text must not stop its whole batch."""
        empty = {i: "the text is empty" for i, text in enumerate(texts) if not (text or "").strip()}
        usable = [i for i in range(len(texts)) if i not in empty and i not in unread]
        config = self._part.config
        vectors = np.full((len(texts), config.dims), np.nan, np.float32)
        if usable:
            vectors[usable] = as_matrix(self._encode([texts[i] or "" for i in usable]), config.dims)
        return vectors, bad_rows(vectors, config.metric, config.dtype) | empty | unread

    def _checked(self, batch: Batch, ids: list[str], bad: dict[int, str]) -> tuple[list[int], list[Row]]:
        """(positions, columns) of the good rows; the bad ones are rejected, or the first of them is raised."""
        good, rows, seen, fields = [], [], set[str](), self._part.config.fields
        with self._part.catalog.read() as connection:
            known = connection if self._snapshot.rows else None
            for i, id in enumerate(ids):
                try:
                    row = check_row(
                        batch.start + i,
                        id,
                        batch.payloads[i] if batch.payloads else None,
                        batch.texts[i] if batch.texts else None,
                        fields,
                    )
                    reason = bad.get(i) or self._duplicate(row.id, seen, known)
                    if reason:
                        raise InvalidRecord(batch.start + i, row.id, reason)
                except InvalidRecord as error:
                    self._reject(error)
                    continue
                seen.add(row.id)
                good.append(i)
                rows.append(row)
        return good, rows

    def _duplicate(self, id: str, seen: set[str], known: apsw.Connection | None) -> str | None:
        if id in seen:
            return "the same id came earlier in this build"
        if self._part.config.chunking is not None:
            id = chunk_id(id, 0)
        if self.rows:
            earlier = self._database.execute("SELECT source FROM row WHERE id=?", (id,)).get
            if earlier is not None:
                return f"the same id came earlier in this build, at row {earlier}"
        if known is not None and known.execute("SELECT 1 FROM record WHERE id=?", (id,)).get is not None:
            return "the collection already holds a record of this id"
        return None

    def _reject(self, error: InvalidRecord) -> None:
        if self._rejects is None:
            raise error
        self.rejected += 1
        line = {"row": error.position, "id": error.id, "reason": error.reason}
        self._rejects.write(json.dumps(line) + "\n")

    def _append(self, vectors: F32, rows: Sequence[Row], sources: Sequence[int]) -> None:
        config = self._part.config
        if self._undecided:
            stored, norms = to_unit(vectors, config)
        else:
            stored, norms = to_stored(vectors, config, self._snapshot.turn)
        self._vectors.append(stored)
        if self._norms is not None and norms is not None:
            self._norms.append(norms)
        self._database.executemany(
            "INSERT INTO row VALUES (?, ?, ?, ?, ?, ?)",
            ((self.rows + i, *row, source) for i, (row, source) in enumerate(zip(rows, sources, strict=True))),
        )
        self.rows += len(rows)

    def finish(self) -> list[files.FileEntry]:
        """Everything is in the staging files; the entries of vectors.bin and norms.bin."""
        self._database.execute("COMMIT")
        if self._rejects is not None:
            self._rejects.flush()
        return [self._vectors.finish(), *([self._norms.finish()] if self._norms else [])]

    def close(self) -> None:
        """Close every file, after success or failure."""
        self._vectors.close()
        if self._norms is not None:
            self._norms.close()
        self._database.close(True)
        if self._rejects is not None:
            self._rejects.close()


def _ids(batch: Batch, count: int) -> list[str]:
    """The ids of a batch of `count` rows, given or made of their numbers; InvalidInput where a column is shorter."""
    ids = batch.ids if batch.ids is not None else [str(batch.start + i) for i in range(count)]
    for name, column in (("ids", ids), ("texts", batch.texts), ("payloads", batch.payloads)):
        if column is not None and len(column) != count:
            what = "texts" if batch.vectors is None else "vectors"
            raise InvalidInput(
                f"the batch from row {batch.start} has {count} {what} and {len(column)} {name}; they must be as many"
            )
    return ids


def _chunk(row: Row, number: int, text: str | None) -> Row:
    """Chunk `number` of a document, with the document's payload."""
    id = chunk_id(row.id, number)
    return Row(id, row.payload, text, record_crc(id, row.payload, text))


def _groups(rows: Sequence[Row], most: int = _GROUP_CHARS) -> Iterator[slice]:
    """Consecutive rows of together about `most` characters of text, so that their vectors take bounded memory."""
    start = size = 0
    for end, row in enumerate(rows):
        if size > most:
            yield slice(start, end)
            start, size = end, 0
        size += len(row.text or "")
    if start < len(rows):
        yield slice(start, len(rows))
