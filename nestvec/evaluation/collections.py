"""The collections that a judged set is searched in: the encoder's vectors once, then one collection per prefix.

The first collection keeps what has been encoded, committed batch by batch: stopped, the work goes on where it was. The
others are built from it, each in one piece. They are named by a digest of the corpus and of the encoder's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from nestvec.engine.calibration import run
from nestvec.engine.calibration.run import LEAST_QUERIES
from nestvec.engine.collection import Collection
from nestvec.engine.coordinates import F32
from nestvec.engine.database import Database
from nestvec.engine.encoders import Encoder
from nestvec.engine.intake import Batch
from nestvec.engine.progress import Progress
from nestvec.engine.record import Record
from nestvec.evaluation.files import documents

_ENCODED_AT_ONCE = 256
_PAGE = 1000


@dataclass(frozen=True)
class Corpus:
    """A set's documents with their vectors. `empty`: how many had no text to encode, and so can never be found."""

    encoded: Collection
    rows: int
    empty: int

    def prefix(self, database: Database, dims: int, encoder: Encoder, progress: Progress) -> Collection:
        """The collection of the first `dims` numbers of every vector, with its index, not calibrated, and its words.

        It may be there from an earlier call. Raises what building does.
        """
        granularities = [*(each for each in encoder.granularities if each < dims), dims]
        name = f"{self.encoded.name}-{dims}"
        made = database.create_collection(name, dims=dims, granularities=granularities, bm25=True, exist_ok=True)
        if made.count() < self.rows:  # a build publishes all rows or none
            made.build(_batches(self.encoded, dims), calibrate=False, progress=_told(progress, f"{dims} dims: "))
        made.warm()
        return made


def calibrate(made: Collection, queries: F32, encoder: Encoder, progress: Progress) -> None:
    """Measure the plans of a collection of a prefix, with `queries` f32 [b, encoder.dims] that are not to be asked.

    Fewer than a calibration takes stay out of it: as in any collection with an encoder, pieces of the documents are
    asked then. It is done anew at every call: what is kept may have been asked the queries of this one.
    """
    dims, told = made.config.dims, _told(progress, f"{made.config.dims} dims: ")
    if len(queries) >= LEAST_QUERIES:
        made.calibrate(queries[:, :dims], progress=told)
    else:  # the collection has no encoder of its own: a prefix is none of it
        run.calibrate(made.part, None, lambda texts: encoder.encode_queries(texts)[:, :dims], told)


def encode_corpus(database: Database, path: Path, name: str, encoder: Encoder, progress: Progress) -> Corpus:
    """Encode every document of the corpus file `path` that `database` does not hold from an earlier, stopped call.

    Raises InvalidInput for a bad file, Conflict where the encoder of that name has changed since.
    """
    kept = database.create_collection(_name(name, path, encoder.name), encoder=encoder.name, bm25=False, exist_ok=True)
    done, rows, empty = kept.count(), 0, 0
    batch: list[Record] = []
    for id, text in documents(path):
        if not text:
            empty += 1
            continue
        rows += 1
        if rows > done:
            batch.append(Record(id, text=text))
        if len(batch) == _ENCODED_AT_ONCE:
            kept.upsert(batch)
            batch = []
            progress("encode", rows, None)
    kept.upsert(batch)
    progress("encode", rows, rows)
    return Corpus(kept, rows, empty)


def _name(name: str, path: Path, encoder: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(encoder.encode())
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30]
    return f"{words or 'set'}-{digest.hexdigest()[:12]}"


def _batches(encoded: Collection, dims: int) -> Iterator[Batch]:
    start, cursor = 0, None
    while True:
        page = encoded.scroll(cursor=cursor, limit=_PAGE, with_vector=True)
        records = page.records
        if records:
            vectors = np.stack([record.vector for record in records if record.vector is not None])[:, :dims]
            yield Batch(start, [record.id for record in records], vectors, [record.text for record in records])
        start, cursor = start + len(records), page.cursor
        if cursor is None:
            return


def _told(progress: Progress, where: str) -> Progress:
    return lambda stage, done, total: progress(where + stage, done, total)


def encode_queries(encoder: Encoder, texts: Sequence[str], progress: Progress) -> F32:
    """Vectors f32 [len(texts), encoder.dims]."""
    waiting, found = iter(texts), [np.empty((0, encoder.dims), np.float32)]
    while batch := list(islice(waiting, _ENCODED_AT_ONCE)):
        found.append(encoder.encode_queries(batch))
        progress("encode queries", sum(map(len, found)), len(texts))
    return np.concatenate(found)
