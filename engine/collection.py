"""A collection: the verbs of its records, over one directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import apsw
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestvec.engine import build as building
from nestvec.engine import compaction, writer
from nestvec.engine.build import BuildReport
from nestvec.engine.coordinates import F32, prepare_queries, to_user
from nestvec.engine.execute import EXACT, Found, execute
from nestvec.engine.intake import Batch
from nestvec.engine.keeper import SnapshotKeeper
from nestvec.engine.maintenance import Part
from nestvec.engine.plan import Plan, check_k, check_plan
from nestvec.engine.progress import Progress
from nestvec.engine.reader import Reader
from nestvec.engine.record import CollectionInfo, CompactResult, Hit, Hits, Record, SealResult, UpsertResult
from nestvec.engine.schema import CollectionConfig, check_id, check_text
from nestvec.engine.snapshot import Delta, Snapshot
from nestvec.engine.storage import catalog, files, generation, segment
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.segment import Segment
from nestvec.errors import Damaged, EncoderMismatch, InvalidInput

if TYPE_CHECKING:
    from nestvec.engine.encoders.protocol import Encoder


_READ_ROWS = 1000


class Collection:
    """A named set of records with one dims, metric and encoder. Safe to use from many threads and processes.

    Get one from `Database.collection` or `Database.create_collection`. A write that returned is durable, and every
    search that begins afterwards, in any process, sees it.
    """

    def __init__(self, directory: Path) -> None:
        layout = Layout(directory)
        held = catalog.Catalog(layout.catalog)
        with held.read() as connection:
            self.name: str = str(catalog.meta_value(connection, "name"))
            stored = json.loads(catalog.meta_value(connection, "config"))
        self.config = CollectionConfig.from_json(stored)
        self._part = Part(layout, held, SnapshotKeeper(layout, held, self.config), self.config)
        self._encoder: Encoder | None = None
        lock = layout.maintenance_lock()
        if lock.try_acquire():
            try:
                layout.sweep(held)
            finally:
                lock.release()
        with self._part.keeper.current():
            pass

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, dims={self.config.dims}, metric={self.config.metric!r})"

    @property
    def deleted(self) -> bool:
        """True when the collection's directory is gone, or is another collection's by now."""
        return self._part.catalog.replaced

    def close(self) -> None:
        """Close the files; the collection cannot be used afterwards."""
        self._part.catalog.close()
        self._part.keeper.forget()

    def info(self) -> CollectionInfo:
        """Facts at this instant."""
        with self._part.keeper.current() as (_, snapshot):
            views, growing = snapshot.segments, snapshot.delta.live_rows
            number = snapshot.generation.number if snapshot.generation else None
            index_bytes = sum(view.first.resident_bytes for view in views if view.first)
            return CollectionInfo(
                self.name, self.config, snapshot.rows, growing, snapshot.rows - growing, len(views), number, index_bytes
            )

    def count(self) -> int:
        """Live records."""
        with self._part.keeper.current() as (_, snapshot):
            return snapshot.rows

    def upsert(self, records: Sequence[Record]) -> UpsertResult:
        """Insert or replace records by id: all of them or, with InvalidRecord, none. Durable on return.

        A record without vector needs text and a collection with an encoder. Raises InvalidRecord, Busy, OutcomeUnknown.
        """
        rows, vectors = writer.check_records(records, self.config, self._encode_documents)
        return writer.upsert(self._part.catalog, rows, vectors)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete by id; returns how many existed. Durable on return."""
        return writer.delete(self._part.catalog, [check_id(id) for id in ids])

    def get(self, ids: Sequence[str], *, with_vector: bool = False) -> list[Record]:
        """The records that exist among `ids`, in that order; vectors are f32 in the user's coordinates and scale."""
        checked = [check_id(id) for id in ids]
        with self._part.keeper.current() as (connection, snapshot):
            found = []
            for id in checked:
                seq = connection.execute("SELECT seq FROM record WHERE id=?", (id,)).get
                if seq is not None:
                    found.append(seq)
            seqs = np.array(found, np.int64)
            vectors = self._vectors(snapshot, seqs) if with_vector else None
            return [
                Record(id, None if vectors is None else vectors[i], _payload(payload), text)
                for i, (id, payload, text) in enumerate(_read(connection, found))
            ]

    def search(
        self,
        vector: ArrayLike | None = None,
        *,
        text: str | None = None,
        k: int = 10,
        plan: Plan | None = None,
        exact: bool = False,
        with_payload: bool = True,
        with_vector: bool = False,
    ) -> Hits:
        """The k best records for one vector [dims] or one text; always min(k, count) hits.

        `exact` scans everything; `plan` says how to search; without either a plan is chosen, and is in the reply.
        """
        if vector is not None and np.ndim(vector) != 1:
            raise InvalidInput(f"a query is one vector of {self.config.dims} numbers, got shape {np.shape(vector)}")
        vectors = None if vector is None else np.asarray(vector)[None]
        texts = None if text is None else [text]
        return self.search_batch(
            vectors, texts=texts, k=k, plan=plan, exact=exact, with_payload=with_payload, with_vector=with_vector
        )[0]

    def search_batch(
        self,
        vectors: ArrayLike | None = None,
        *,
        texts: Sequence[str] | None = None,
        k: int = 10,
        plan: Plan | None = None,
        exact: bool = False,
        with_payload: bool = True,
        with_vector: bool = False,
    ) -> list[Hits]:
        """`search` for many vectors [b, dims] or many texts, all at one instant."""
        check_k(k)
        if plan is not None and exact:
            raise InvalidInput("give a plan or exact=True, not both")
        if plan is not None:
            check_plan(plan, self.config, k)
        queries = self._queries(vectors, texts)
        with self._part.keeper.current() as (connection, snapshot):
            chosen = EXACT if exact else plan or snapshot.default_plan(self.config, k)
            answers = execute(snapshot, self.config, queries, k, chosen)
            return [self._hits(connection, snapshot, found, with_payload, with_vector) for found in answers]

    def reader(self) -> Reader:
        """The collection pinned at this instant, for hot loops: arrays in, arrays out. Close it after use.

        The first one copies the stored vectors into memory, as `warm` does.
        """
        self._part.keeper.warm()
        return Reader(self._part)

    def warm(self) -> None:
        """Load what searches would have to wait for: the encoder, if there is one, the newest snapshot, and the
        stored vectors, while index and vectors take at most a quarter of the machine's memory."""
        if self.config.encoder is not None:
            self._load_encoder().encode_queries(["warm"])
        self._part.keeper.warm()
        with self._part.keeper.current() as (_, snapshot):
            _ = snapshot.sealed.searcher

    def seal(self) -> SealResult:
        """Move the growing rows into a segment; the first seal over 1000 rows also trains a generation."""
        return compaction.seal(self._part)

    def compact(self, *, retrain: bool = False) -> CompactResult:
        """Merge all segments into one without dead rows; `retrain` trains a new generation on it."""
        return compaction.compact(self._part, retrain=retrain)

    def build(
        self,
        batches: Iterable[Batch],
        *,
        rotate: str = "auto",
        rejects: Path | None = None,
        progress: Progress | None = None,
        partitions: int | None = None,
        soar: bool = True,
        rescore: bool = True,
    ) -> BuildReport:
        """Stream new records into one segment, in bounded memory; they appear together, at the end.

        `rotate`: "auto" measures whether a PCA rotation makes short prefixes better and uses it then; "pca" always;
        "none" never. It is fixed by a collection's first build; later ones inherit it. `rejects`: bad rows are written
        there as JSON lines and skipped, instead of stopping the build with InvalidRecord. `progress(stage, done,
        total)` is called often. `partitions`: posting lists of a new generation. `rescore=False`: a new generation
        keeps no int8 rows, for a smaller index and slower searches. `soar=False` trains nothing.
        """
        return building.build(
            self._part,
            batches,
            rotate=rotate,
            rejects=rejects,
            progress=progress,
            partitions=partitions,
            soar=soar,
            rescore=rescore,
            encode=self._encode_documents,
        )

    def verify(self) -> None:
        """Read every stored byte and compare it with its checksum. Raises Damaged naming the first bad file."""
        layout = self._part.layout
        with self._part.keeper.current() as (connection, _):
            for number, crc in catalog.rows_of(connection, "SELECT segment, manifest_crc FROM segment"):
                segment.verify_segment(layout.segment(number), crc)
            for number, crc in catalog.rows_of(connection, "SELECT generation, manifest_crc FROM generation"):
                files.verify_directory(layout.generation(number), generation.KIND, crc)
            for owner, number, crc in catalog.rows_of(connection, "SELECT * FROM postings"):
                files.verify_directory(layout.posting_lists(owner, number), generation.POSTINGS_KIND, crc)
            seqs = [seq for (seq,) in catalog.rows_of(connection, "SELECT seq FROM record")]
            for _ in _read(connection, seqs):
                pass
            for _ in catalog.growing_after(connection, 0, self.config.dims, 4096):
                pass
            report = connection.execute("PRAGMA quick_check").get
            if report != "ok":
                raise Damaged(str(layout.catalog), f"SQLite's quick_check says {report}")

    def _hits(
        self, connection: apsw.Connection, snapshot: Snapshot, found: Found, with_payload: bool, with_vector: bool
    ) -> Hits:
        records = catalog.read_records(connection, found.seqs.tolist())
        scores = found.scores.tolist()
        if with_payload:
            hits = [
                Hit(id, score, _payload(payload), text)
                for (id, payload, text), score in zip(records, scores, strict=True)
            ]
        else:
            hits = [Hit(record[0], score) for record, score in zip(records, scores, strict=True)]
        if with_vector:
            for hit, vector in zip(hits, self._vectors(snapshot, found.seqs), strict=True):
                hit.vector = vector
        return Hits(hits, found.plan, found.work, snapshot.generation.number if snapshot.generation else None)

    def _vectors(self, snapshot: Snapshot, seqs: NDArray[np.int64]) -> F32:
        """The user's vectors of live rows, wherever they are."""
        vectors = np.empty((len(seqs), self.config.dims), np.float32)
        parts: list[Segment | Delta] = [*(view.segment for view in snapshot.segments), snapshot.delta]
        for part in parts:
            positions, rows = part.find(seqs)
            norms = None if part.norms is None else part.norms[rows]
            vectors[positions] = to_user(part.vectors[rows], norms, snapshot.rotation)
        return vectors

    def _queries(self, vectors: ArrayLike | None, texts: Sequence[str] | None) -> F32:
        if vectors is not None and texts is None:
            return prepare_queries(vectors, self.config)
        if vectors is not None or texts is None:
            raise InvalidInput("a query is either a vector or a text: give exactly one of them")
        for text in texts:
            check_text(text)
        encoder = self._load_encoder()
        return prepare_queries(encoder.encode_queries(list(texts)), self.config)

    def _encode_documents(self, texts: Sequence[str]) -> F32:
        return self._load_encoder().encode_documents(texts)

    def _load_encoder(self) -> Encoder:
        """The collection's encoder, checked to be the one that its vectors were made with."""
        if self._encoder is None:
            if self.config.encoder is None:
                raise InvalidInput(f"collection {self.name!r} has no encoder: send vectors instead of text")
            from nestvec.engine.encoders.registry import load_encoder

            encoder = load_encoder(self.config.encoder)
            if encoder.fingerprint != self.config.encoder_fingerprint:
                raise EncoderMismatch(
                    f"collection {self.name!r} was made with encoder {self.config.encoder!r} "
                    f"{self.config.encoder_fingerprint}; installed is {encoder.name!r} {encoder.fingerprint}"
                )
            self._encoder = encoder
        return self._encoder


def _read(connection: apsw.Connection, seqs: Sequence[int]) -> Iterator[tuple[str, bytes, str | None]]:
    """`catalog.read_records` for any number of records."""
    for start in range(0, len(seqs), _READ_ROWS):
        yield from catalog.read_records(connection, seqs[start : start + _READ_ROWS])


def _payload(stored: bytes) -> dict[str, Any] | None:
    return None if stored == b"null" else cast("dict[str, Any]", json.loads(stored.decode()))
