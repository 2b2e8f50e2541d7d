"""Where passages come from: files, BEIR folders, a collection, or the documentation of the Python standard library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestvec.engine import database as databases
from nestvec.engine.readers import Columns, Reader, open_reader
from nestvec.engine.readers.rows import NO_TEXT
from nestvec.engine.stdlib_docs import passages as stdlib_passages
from nestvec.errors import InvalidInput
from nestvec.train.encoder.tables import Passage

STDLIB, COLLECTION = "stdlib", "collection:"
_PAGE, _CHUNK = 1000, 4096
_BEIR_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")


@dataclass(frozen=True)
class SourceColumns:
    """Names of the columns (of a collection: of payload fields) to read; an absent title is an empty one."""

    id: str | None = None
    title: str = "title"
    text: str = "text"


def read_source(
    names: Sequence[str], *, db: Path | None = None, columns: SourceColumns = SourceColumns()
) -> Iterator[Passage]:
    """Every passage of the sources in order; those without a text are left out.

    A name is a file (.jsonl, .jsonl.gz, .parquet), a BEIR folder (its corpus.jsonl), `stdlib`, or `collection:NAME` of
    the database at `db`. Raises InvalidInput for what cannot be read, and for an id that comes twice.
    """
    if not names:
        raise InvalidInput("expected a source: a file, a folder with corpus.jsonl, stdlib or collection:NAME")
    seen: set[str] = set()
    given = 0
    for name in names:
        for passage in _one(name, db, columns):
            if passage.doc_id in seen:
                raise InvalidInput(f"{name}: the id {passage.doc_id!r:.100} comes twice; ids must be unique")
            seen.add(passage.doc_id)
            if passage.text.strip():
                given += 1
                yield passage
    if not given:
        raise InvalidInput(f"{', '.join(names)}: no passage found, of {len(seen)} with an id none has a text")


def _one(name: str, db: Path | None, columns: SourceColumns) -> Iterator[Passage]:
    if name == STDLIB:
        return (Passage(each["id"], each["title"], each["text"]) for each in stdlib_passages())
    if name.startswith(COLLECTION):
        return _of_collection(name.removeprefix(COLLECTION), db, columns)
    path = Path(name)
    if path.is_dir():
        found = next((path / each for each in _BEIR_CORPUS if (path / each).is_file()), None)
        if found is None:
            raise InvalidInput(f"{path}: expected a folder with {' or '.join(_BEIR_CORPUS)}")
        path = found
    return _of_file(path, columns)


def _of_file(path: Path, columns: SourceColumns) -> Iterator[Passage]:
    reader = _reader(path, columns)
    row = 0
    for chunk in reader.chunks(_CHUNK):
        for offset in range(chunk.size):
            row += 1
            if chunk.bad.get(offset, NO_TEXT) != NO_TEXT:
                raise InvalidInput(f"{path}, row {row}: {chunk.bad[offset]}")
            text = chunk.texts[offset] if chunk.texts else None
            payload = (chunk.payloads[offset] if chunk.payloads else None) or {}
            doc_id = chunk.ids[offset] if chunk.ids else f"{path.name}#{row}"
            yield Passage(doc_id, _words(payload.get(columns.title)), text or "")


def _reader(path: Path, columns: SourceColumns) -> Reader:
    """The reader of id, title and text; BEIR calls the id `_id`, and not every file has titles or ids."""
    ids = (columns.id,) if columns.id else ("id", "_id", None)
    problem: InvalidInput | None = None
    for title in ((columns.title,), ()):
        for id_column in ids:
            try:
                return open_reader(path, Columns(id=id_column, texts=(columns.text,), payload=title))
            except InvalidInput as error:
                problem = error
    raise problem or InvalidInput(f"{path}: cannot be read")


def _of_collection(name: str, db: Path | None, columns: SourceColumns) -> Iterator[Passage]:
    if db is None:
        raise InvalidInput(f"{COLLECTION}{name} needs the database it is in (--db)")
    with databases.open(db, create=False) as database:
        collection, cursor = database.collection(name), None
        while True:
            page = collection.scroll(cursor=cursor, limit=_PAGE)
            for record in page.records:
                title = _words((record.payload or {}).get(columns.title))
                yield Passage(record.id, title, record.text or "")
            cursor = page.cursor
            if cursor is None:
                return


def _words(value: Any) -> str:  # noqa: ANN401 - payloads hold anything
    return " ".join(value.split()) if isinstance(value, str) else ""
