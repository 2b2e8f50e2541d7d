"""From a collection and pairs to examples: stored vectors, queries in the same coordinates, rows for ids."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.chunking import document_of
from nestvec.engine.collection import Collection
from nestvec.engine.coordinates import prepare_queries
from nestvec.engine.encoders import load_same
from nestvec.engine.snapshot import Delta, Snapshot
from nestvec.engine.storage import catalog
from nestvec.engine.storage.segment import Segment
from nestvec.errors import InvalidInput
from nestvec.train.ehi.pairs import Pairs

F32 = NDArray[np.float32]
_PAGE = 1000
_SAMPLE_RECORDS = 200


@dataclass(frozen=True, eq=False)
class Stored:
    """Records as they are stored: vectors f32 [n, dims] and, of queries, [q, dims] in the same coordinates; the pairs
    int64 [p, 2] (query, row) whose document is there, with their grades f32 [p]; `missing`: pairs whose is not.
    rotation: what stored vectors went through. adapted: whether an adapter was among that."""

    vectors: F32
    queries: F32
    pairs: NDArray[np.int64]
    grades: F32
    missing: int
    rotation: F32 | None
    adapted: bool


def read_stored(collection: Collection, pairs: Pairs, most: int, seed: int) -> Stored:
    """What the pairs name, and a seeded sample of all other records: at most `most` in all, unless pairs name more.

    With chunking, a pair's row is its document's chunk nearest to the query. Raises InvalidInput where queries do not
    fit the collection, and where it holds no document of the pairs.
    """
    queries = _queries(collection, pairs)
    with collection.part.keeper.current() as (connection, snapshot):
        seqs = snapshot.live_seqs()
        ids = catalog.read_ids(connection, seqs)
        turned: F32 = np.ascontiguousarray(snapshot.turn.queries(queries), np.float32)
        rows = _rows_of(ids, collection.config.chunking is not None)
        named = sorted({row for id in set(pairs.documents) for row in rows.get(id, ())})
        if not named:
            raise InvalidInput(
                f"collection {collection.name!r} holds none of the pairs' documents, such as {pairs.documents[0]!r}"
            )
        kept = _sampled(np.array(named, np.int64), len(seqs), most, seed)
        vectors = _stored_vectors(snapshot, seqs[kept], collection.config.dims)
        rotation, adapted = snapshot.turn.rotation, snapshot.turn.adapter is not None
    place = {int(row): at for at, row in enumerate(kept)}
    found, grades = [], []
    for query, document, grade in zip(pairs.query.tolist(), pairs.documents, pairs.grades.tolist(), strict=True):
        own = [place[row] for row in rows.get(document, ())]
        if own:
            nearest = own[int((vectors[own] @ turned[query]).argmax())]
            found.append((query, nearest))
            grades.append(grade)
    missing = len(pairs) - len(found)
    return Stored(vectors, turned, np.array(found, np.int64), np.array(grades, np.float32), missing, rotation, adapted)


def titled_pairs(collection: Collection, field: str) -> Pairs:
    """Each record's payload string `field` as a query for the record itself. Raises InvalidInput where none has it."""
    texts: list[str] = []
    documents: list[str] = []
    cursor: str | None = None
    while True:
        page = collection.scroll(cursor=cursor, limit=_PAGE, with_payload=[field])
        for record in page.records:
            title = (record.payload or {}).get(field)
            if isinstance(title, str) and title.strip():
                texts.append(title)
                documents.append(record.id if collection.config.chunking is None else document_of(record.id))
        cursor = page.cursor
        if cursor is None:
            break
    if not texts:
        raise InvalidInput(f"no record of collection {collection.name!r} has a text under {field!r} in its payload")
    names = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    query = np.array([names[text] for text in texts], np.int64)
    return Pairs(list(names), None, query, documents, np.ones(len(texts), np.float32))


def what_pairs(collection: Collection) -> str:
    """Which pairs this collection could give, for people who have none."""
    records = collection.scroll(limit=_SAMPLE_RECORDS).records
    fields: dict[str, int] = defaultdict(int)
    for record in records:
        for name, value in (record.payload or {}).items():
            if isinstance(value, str) and 2 <= len(value.split()) <= 30:
                fields[name] += 1
    ways = []
    if collection.config.encoder is not None:
        ways += [
            f"--titles {name}: the payload field {name!r} of each record as a query for it (a text in {count} of "
            f"{len(records)} records looked at)"
            for name, count in sorted(fields.items(), key=lambda each: -each[1])[:3]
            if count >= len(records) / 2
        ]
    if any(record.text for record in records):
        ways.append(
            "queries written by a language model for the stored texts: `nestvec train encoder generate`, whose table "
            "of pairs --pairs reads"
        )
    ways.append("a file of clicks or judgements: query, document id and perhaps a grade, as .tsv, .jsonl or .parquet")
    return "a tree is trained from pairs of a query and a document. There could be " + "; or ".join(ways)


def _queries(collection: Collection, pairs: Pairs) -> F32:
    """f32 [q, dims] of unit length under cosine, as users give them."""
    if pairs.vectors is not None:
        return prepare_queries(pairs.vectors, collection.config)
    if collection.config.encoder is None:
        raise InvalidInput(f"collection {collection.name!r} has no encoder: give pairs whose queries are vectors")
    encoder = load_same(collection.config.encoder, collection.config.encoder_fingerprint, collection.name)
    return prepare_queries(encoder.encode_queries(pairs.texts or []), collection.config)


def _rows_of(ids: list[str], chunked: bool) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, id in enumerate(ids):
        rows[document_of(id) if chunked else id].append(row)
    return rows


def _sampled(named: NDArray[np.int64], total: int, most: int, seed: int) -> NDArray[np.int64]:
    """The named rows and enough others, ascending."""
    others = np.setdiff1d(np.arange(total), named, assume_unique=True)
    room = max(0, min(most, total) - len(named))
    return np.sort(np.concatenate((named, np.random.default_rng(seed).choice(others, room, replace=False))))


def _stored_vectors(snapshot: Snapshot, seqs: NDArray[np.int64], dims: int) -> F32:
    vectors = np.empty((len(seqs), dims), np.float32)
    parts: list[Segment | Delta] = [*(view.segment for view in snapshot.segments), snapshot.delta]
    for part in parts:
        positions, rows = part.find(seqs)
        vectors[positions] = part.vectors[rows]
    return vectors
