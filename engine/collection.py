"""A collection: the verbs of its records, over one directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from nestvec.engine import documents, paging, removal, writer
from nestvec.engine.answers import WithPayload, collection_info, user_vectors
from nestvec.engine.asking import Asked, Asking
from nestvec.engine.coordinates import F32, prepare_queries
from nestvec.engine.explain import Explanation
from nestvec.engine.filters.tree import FilterLike, as_filter
from nestvec.engine.fusion import Fusion
from nestvec.engine.keeper import SnapshotKeeper
from nestvec.engine.lexical import WordSearch
from nestvec.engine.maintenance import Part
from nestvec.engine.monitor import DEFAULT_SHARE, LiveRecall, Told, Watch
from nestvec.engine.plan import Plan
from nestvec.engine.planner import NO_GOAL, Goal
from nestvec.engine.ranking import Rank
from nestvec.engine.reader import Reader
from nestvec.engine.record import (
    CollectionInfo,
    Hits,
    Page,
    Record,
    UpsertResult,
    payload_of,
)
from nestvec.engine.schema import CollectionConfig, check_id, check_text
from nestvec.engine.storage import catalog
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.records import RecordMemory
from nestvec.engine.upkeep import Upkeep
from nestvec.errors import Busy, InvalidInput

if TYPE_CHECKING:
    from nestvec.engine.encoders.protocol import Encoder


class Collection(Upkeep):
    """A named set of records with one dims, metric and encoder. Safe to use from many threads and processes.

    Get one from `Database.collection` or `Database.create_collection`. A write that returned is durable, and every
    search that begins afterwards, in any process, sees it.
    """

    def __init__(self, directory: Path) -> None:
        layout = Layout(directory)
        held = catalog.Catalog(layout.catalog)
        try:
            self._open(layout, held)
        except BaseException:
            held.close()
            raise

    def _open(self, layout: Layout, held: catalog.Catalog) -> None:
        with held.read() as connection:
            self.name: str = str(catalog.meta_value(connection, "name"))
            self._identity = f"{self.name}/{catalog.meta_value(connection, 'identity')}"
        self.config = CollectionConfig.from_json(json.loads(held.config))
        self._part = Part(layout, held, SnapshotKeeper(layout, held, self.config), self.config)
        self._encoder: Encoder | None = None
        self._words, self._records = WordSearch(), RecordMemory()
        self._watch: Watch | None = None
        with self._part.keeper.current() as (connection, snapshot):
            catalog.check_alive(connection, snapshot.live_seqs())
        # Only what was found whole may say which files nobody needs.
        lock = layout.maintenance_lock()
        if lock.try_acquire():
            try:
                layout.sweep(held)
            finally:
                lock.release()

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, dims={self.config.dims}, metric={self.config.metric!r})"

    @property
    def part(self) -> Part:
        """The working parts, for the engine's own modules."""
        return self._part

    @property
    def deleted(self) -> bool:
        """True when the collection's directory is gone, or is another collection's by now."""
        return self._part.catalog.replaced

    @property
    def fresh(self) -> bool:
        """True when a search that begins now finds in memory what it needs to see, but for a few rows (5 µs)."""
        return self._part.keeper.fresh

    def close(self) -> None:
        """Close the files; the collection cannot be used afterwards."""
        if self._watch is not None:
            self._watch.close()
        self._part.catalog.close()
        self._part.keeper.forget()

    def info(self) -> CollectionInfo:
        """Facts at this instant."""
        self._reconfigure()
        with self._part.keeper.current() as (_, snapshot):
            return collection_info(self.name, self.config, snapshot)

    def count(self, *, filter: FilterLike | None = None) -> int:
        """Live records, or those that match; with chunking, documents."""
        wanted = None if filter is None else as_filter(filter)
        with self._part.keeper.current() as (connection, snapshot):
            seen = snapshot if wanted is None else snapshot.matching(connection, wanted)
            if self.config.chunking is None:
                return seen.rows
            return documents.count_documents(connection, None if wanted is None else seen.live_seqs())

    def upsert(self, records: Sequence[Record]) -> UpsertResult:
        """Insert or replace records by id: all of them or, with InvalidRecord, none. Durable on return.

        A record without vector needs text and a collection with an encoder. With chunking each record is a document:
        its chunks replace all that it had. Raises InvalidRecord, Busy, OutcomeUnknown.
        """
        while True:
            try:
                if self.config.chunking is not None:
                    return documents.upsert(self._part.catalog, records, self.config, self._encode_documents)
                rows, vectors = writer.check_records(records, self.config, self._encode_documents)
                return writer.upsert(self._part.catalog, rows, vectors)
            except writer.Reconfigured:
                self._reconfigure()

    def begin_upsert(self, records: Sequence[Record]) -> Callable[[], UpsertResult] | None:
        """`upsert` for an event loop: all but the commit, which waits for the disk and is returned, to be called once,
        soon, in any thread. None, and nothing done, where there is more to wait for: another writer, an encoder."""
        if self.config.chunking is not None or any(record.vector is None for record in records):
            return None
        try:
            rows, vectors = writer.check_records(records, self.config, self._encode_documents)
            return writer.begin_upsert(self._part.catalog, rows, vectors, wait=False)
        except (Busy, writer.Reconfigured):
            return None

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike | None = None) -> int:
        """Delete by id (with chunking, a document's), or what matches when the delete is committed: one or the other.

        Returns how many existed. Durable on return. Raises Busy, OutcomeUnknown.
        """
        if (ids is None) == (filter is None):
            raise InvalidInput("delete takes either ids or a filter: give exactly one of them")
        if ids is None:
            return removal.delete_matching(self._part, as_filter(cast(FilterLike, filter)))
        if self.config.chunking is not None:
            return writer.delete_documents(self._part.catalog, [check_id(id) for id in ids])
        return writer.delete(self._part.catalog, [check_id(id) for id in ids])

    def get(self, ids: Sequence[str], *, with_vector: bool = False) -> list[Record]:
        """The records that exist among `ids`, in that order; vectors are f32 in the user's coordinates and scale.
        Of a collection that is `adapted` (see `info`) they are what its adapter made of them.

        With chunking `ids` are documents, and the records all their chunks, in order.
        """
        checked = [check_id(id) for id in ids]
        with self._part.keeper.current() as (connection, snapshot):
            found = []
            if self.config.chunking is not None:
                checked = [id for document in checked for id in catalog.chunk_ids(connection, document)]
            for id in checked:
                seq = connection.execute("SELECT seq FROM record WHERE id=?", (id,)).get
                if seq is not None:
                    found.append(seq)
            seqs = np.array(found, np.int64)
            vectors = user_vectors(snapshot, self.config, seqs) if with_vector else None
            return [
                Record(id, None if vectors is None else vectors[i], payload_of(payload), text)
                for i, (id, payload, text) in enumerate(catalog.read_records(connection, found))
            ]

    def scroll(
        self,
        *,
        cursor: str | None = None,
        limit: int = 100,
        filter: FilterLike | None = None,
        with_payload: WithPayload = True,
        with_vector: bool = False,
    ) -> Page:
        """Up to `limit` (at most 1000) records in the order of their writing; `cursor` is that of the page before.

        Every record that stays from the first page to the last is returned, whatever is written, sealed or compacted
        meanwhile; one that is replaced meanwhile comes (again) in its new version. Cursors outlive restarts. Raises
        InvalidInput for a cursor of another collection or filter.
        """
        return paging.scroll(
            self._part,
            self._identity,
            cursor=cursor,
            limit=limit,
            filter=None if filter is None else as_filter(filter),
            with_payload=with_payload,
            with_vector=with_vector,
        )

    def search(
        self,
        vector: ArrayLike | None = None,
        *,
        text: str | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        recall: float | None = None,
        budget_ms: float | None = None,
        budget_bytes: float | None = None,
        plan: Plan | None = None,
        exact: bool = False,
        rank: Rank = "dense",
        fusion: Fusion | None = None,
        with_payload: WithPayload = True,
        with_vector: bool = False,
    ) -> Hits:
        """The k best records for one vector [dims] or one text; always min(k, count) hits.

        `recall` asks for a mean share of the true k best, such as .95; `budget_ms` and `budget_bytes` for the best that
        a query of that mean cost can give. The cheapest plan that calibration says will do it is chosen, and the reply
        says what it rests on. `exact` scans everything; `plan` says how to search. Give one of the five, or none for
        recall .95.

        `rank` "bm25" ranks by the text's words instead of vectors, and finds only records that hold one of them;
        "hybrid" by both, as `fusion` says; its dense side is the vector where one comes with the text. `filter` leaves
        only the records that match it: then always min(k, matching) hits, and the reply says how many matched.
        """
        if vector is not None and np.ndim(vector) != 1:
            raise InvalidInput(f"a query is one vector of {self.config.dims} numbers, got shape {np.shape(vector)}")
        vectors = None if vector is None else np.asarray(vector)[None]
        texts = None if text is None else [text]
        return self.search_batch(
            vectors,
            texts=texts,
            k=k,
            filter=filter,
            recall=recall,
            budget_ms=budget_ms,
            budget_bytes=budget_bytes,
            plan=plan,
            exact=exact,
            rank=rank,
            fusion=fusion,
            with_payload=with_payload,
            with_vector=with_vector,
        )[0]

    def search_batch(
        self,
        vectors: ArrayLike | None = None,
        *,
        texts: Sequence[str] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        recall: float | None = None,
        budget_ms: float | None = None,
        budget_bytes: float | None = None,
        plan: Plan | None = None,
        exact: bool = False,
        rank: Rank = "dense",
        fusion: Fusion | None = None,
        with_payload: WithPayload = True,
        with_vector: bool = False,
    ) -> list[Hits]:
        """`search` for many vectors [b, dims] or many texts, all at one instant."""
        wanted = None if filter is None else as_filter(filter)
        unasked = recall is None and budget_ms is None and budget_bytes is None
        goal = NO_GOAL if unasked else Goal(recall, budget_ms, budget_bytes)
        asked = Asked(k, wanted, goal, plan, exact, rank, fusion, with_payload, with_vector)
        asked.check(vectors, texts, self.config)
        beside = rank == "hybrid" and vectors is not None
        start = perf_counter()
        queries = None if rank == "bm25" else self._queries(vectors, None if beside else texts)
        encoding = 0.0 if queries is None or vectors is not None else (perf_counter() - start) * 1e6
        return self._asking.search(queries, texts, asked, encoding)

    def explain(
        self,
        vector: ArrayLike | None = None,
        *,
        text: str | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        recall: float | None = None,
        budget_ms: float | None = None,
        budget_bytes: float | None = None,
        plan: Plan | None = None,
        exact: bool = False,
    ) -> Explanation:
        """How a search by vectors with these options runs, and why. With a vector or text it is run as well, and what
        each step did is told; without, the plan alone."""
        goal = Goal(recall, budget_ms, budget_bytes)
        asked = Asked(k, None if filter is None else as_filter(filter), goal, plan, exact, with_payload=False)
        asked.check(None, None, self.config)
        texts = None if text is None else [text]
        given = vector is not None or text is not None
        query = self._queries(None if vector is None else np.asarray(vector)[None], texts) if given else None
        return self._asking.explain(query, asked)

    @property
    def _asking(self) -> Asking:
        return Asking(self._part, self._words, self._records, self._watch.monitor if self._watch else None)

    def watch(self, share: float = DEFAULT_SHARE, *, recalibrate: bool = False, told: Told | None = None) -> None:
        """Answer this share of the coming searches exactly as well, in the background, within 2 % of one core's time.

        `live_recall` says what was found. Where a promise turns out broken, the calibration is marked stale, and with
        `recalibrate` made again from the newest queries. `told` hears of every comparison. In this process only, until
        `close`.
        """
        if self._watch is not None:
            self._watch.close()
        self._watch = Watch(self._part, share, recalibrate, told)

    @property
    def watched(self) -> bool:
        """Whether `watch` was called."""
        return self._watch is not None

    def live_recall(self) -> list[LiveRecall]:
        """Recall of the searches that `watch` compared, by k and selectivity; empty where nothing was."""
        return [] if self._watch is None else self._watch.monitor.report()

    def measure_recall(
        self,
        queries: ArrayLike | None = None,
        *,
        texts: Sequence[str] | None = None,
        k: int = 10,
        filter: FilterLike | None = None,
        recall: float | None = None,
        plan: Plan | None = None,
    ) -> LiveRecall:
        """The mean recall@k of these queries [b, dims] or texts now, and its 95 % interval: all are answered exactly
        too."""
        asked = Asked(k, None if filter is None else as_filter(filter), Goal(recall), plan)
        asked.check(None, None, self.config)
        return self._asking.measure_recall(self._queries(queries, texts), asked)

    def reader(self) -> Reader:
        """The collection pinned at this instant, for hot loops: arrays in, arrays out. Close it after use.

        The first one copies the stored vectors into memory, as `warm` does.
        """
        self._part.keeper.warm()
        return Reader(self._part)

    def warm(self) -> None:
        """Load what searches would have to wait for: the newest snapshot, the columns of declared fields, the stored
        vectors, while index and vectors take at most a quarter of the machine's memory, and last the encoder, if there
        is one: where that fails, searches by vector are warm."""
        self._part.keeper.warm()
        with self._part.keeper.current() as (connection, snapshot):
            _ = snapshot.sealed.searcher
            for view in snapshot.segments:
                view.columns.load(connection, snapshot.state, self.config.fields)
        if self.config.encoder is not None:
            self._load_encoder().encode_queries(["warm"])

    def _queries(self, vectors: ArrayLike | None, texts: Sequence[str] | None) -> F32:
        if vectors is not None and texts is None:
            return prepare_queries(vectors, self.config)
        if vectors is not None or texts is None:
            raise InvalidInput("a query is either a vector or a text: give exactly one of them")
        for text in texts:
            check_text(text)
        encoder = self._load_encoder()
        return prepare_queries(encoder.encode_queries(list(texts)), self.config)

    def _reconfigure(self) -> None:
        """Take over what another process changed in the configuration."""
        if self._part.catalog.reread_config():
            self.config = CollectionConfig.from_json(json.loads(self._part.catalog.config))
            self._part = replace(self._part, config=self.config)

    def _encode_documents(self, texts: Sequence[str]) -> F32:
        return self._load_encoder().encode_documents(texts)

    def _encode_queries(self, texts: Sequence[str]) -> F32:
        return self._load_encoder().encode_queries(texts)

    def _load_encoder(self) -> Encoder:
        """The collection's encoder, checked to be the one that its vectors were made with."""
        if self._encoder is None:
            if self.config.encoder is None:
                raise InvalidInput(f"collection {self.name!r} has no encoder: send vectors instead of text")
            from nestvec.engine.encoders import load_same

            self._encoder = load_same(self.config.encoder, self.config.encoder_fingerprint, self.name)
        return self._encoder
