"""The verbs of one collection over REST, each written once: see `steps` for how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from numpy.typing import ArrayLike

from nestvec.client import job_verbs, wire
from nestvec.client.problems import with_record
from nestvec.client.steps import Item, Operation, Stream, Target
from nestvec.client.wire import call, decode, hot
from nestvec.engine.answers import WithPayload
from nestvec.engine.filters.declared import Fields
from nestvec.engine.filters.tree import FilterLike
from nestvec.engine.fusion import Fusion
from nestvec.engine.plan import Plan
from nestvec.engine.progress import Progress
from nestvec.engine.ranking import Rank
from nestvec.engine.record import CollectionInfo, CompactResult, Hits, Page, Record, SealResult, UpsertResult
from nestvec.errors import InvalidInput, InvalidRecord

_BATCH_BYTES = 8 << 20  # of encoded records: far below the service's bound on a body, and enough to be quick


class CollectionTarget(Target):
    """One collection of a service."""

    name: str

    @property
    def _path(self) -> str:
        return f"/v1/collections/{self.name}"


def info(self: CollectionTarget) -> Operation[CollectionInfo]:
    """Facts at this instant."""
    return wire.info_in(decode((yield from self.ask(call("GET", self._path, repeatable=True)))))


def count(self: CollectionTarget, *, filter: FilterLike | None = None) -> Operation[int]:
    """Live records, or those that match; with chunking, documents."""
    body = {} if filter is None else {"filter": wire.tree_out(filter)}
    return int(decode((yield from self.ask(hot("POST", f"{self._path}/records/count", body))))["count"])


def upsert(self: CollectionTarget, records: Sequence[Record]) -> Operation[UpsertResult]:
    """Insert or replace records by id: all of them or, with InvalidRecord, none. Durable on return.

    It is one request, of as many records as the service takes in one; `upsert_many` takes any number.
    """
    packed = [msgspec.Raw(wire.pack(wire.record_out(record))) for record in records]
    return (yield from _put(self, packed, [record.id for record in records], 0))


def upsert_many(
    self: CollectionTarget, records: Iterable[Record], *, batch: int = 500, progress: Progress | None = None
) -> Operation[UpsertResult]:
    """`upsert` for any number of records, at most `batch` per request and in bounded memory; `count` is of them all.

    When one batch fails, those before it stay written; an InvalidRecord's `position` counts from the first record of
    all. `progress("upsert", done, None)` is called after each batch.
    """
    if batch < 1:
        raise InvalidInput(f"a batch holds at least 1 record, got {batch}")
    done, seq = 0, 0
    for packed, ids in _batches(records, batch):
        result = yield from _put(self, packed, ids, done)
        done, seq = done + result.count, result.seq
        if progress is not None:
            progress("upsert", done, None)
    return UpsertResult(done, seq)


def _batches(records: Iterable[Record], most: int) -> Iterator[tuple[list[msgspec.Raw], list[str]]]:
    packed: list[msgspec.Raw] = []
    ids: list[str] = []
    size = 0
    for record in records:
        one = wire.pack(wire.record_out(record))
        if packed and (len(packed) == most or size + len(one) > _BATCH_BYTES):
            yield packed, ids
            packed, ids, size = [], [], 0
        packed.append(msgspec.Raw(one))
        ids.append(record.id)
        size += len(one)
    if packed:
        yield packed, ids


def _put(self: CollectionTarget, packed: list[msgspec.Raw], ids: list[str], start: int) -> Operation[UpsertResult]:
    """One request; written twice it leaves the same records, so it may be repeated."""
    try:
        reply = yield from self.ask(hot("PUT", f"{self._path}/records", {"records": packed}))
    except InvalidRecord as error:
        raise with_record(error, ids, start) from None
    return wire.known(UpsertResult, decode(reply))


def get(self: CollectionTarget, ids: Sequence[str], *, with_vector: bool = False) -> Operation[list[Record]]:
    """The records that exist among `ids`, in that order; vectors are f32 in the user's coordinates and scale.

    With chunking `ids` are documents, and the records all their chunks, in order.
    """
    body = {"ids": list(ids), "with_vector": with_vector}
    reply = yield from self.ask(hot("POST", f"{self._path}/records/get", body))
    return [wire.record_in(record) for record in decode(reply)["records"]]


def delete(
    self: CollectionTarget, ids: Sequence[str] | None = None, *, filter: FilterLike | None = None
) -> Operation[int]:
    """Delete by id (with chunking, a document's), or what matches when the delete is committed: one or the other.

    Returns how many existed. Durable on return. By id it is asked again after a lost answer, and what the first request
    deleted is no longer counted; by filter it is not, as that could delete what was written since.
    """
    if (ids is None) == (filter is None):
        raise InvalidInput("delete takes either ids or a filter: give exactly one of them")
    body = {"filter": wire.tree_out(filter)} if filter is not None else {"ids": list(ids or ())}
    request = replace(hot("POST", f"{self._path}/records/delete", body), repeatable=filter is None)
    return int(decode((yield from self.ask(request)))["deleted"])


def scroll(
    self: CollectionTarget,
    *,
    cursor: str | None = None,
    limit: int = 100,
    filter: FilterLike | None = None,
    with_payload: WithPayload = True,
    with_vector: bool = False,
) -> Operation[Page]:
    """Up to `limit` (at most 1000) records in the order of their writing; `cursor` is that of the page before.

    Every record that stays from the first page to the last is returned, whatever is written, sealed or compacted
    meanwhile; one that is replaced meanwhile comes (again) in its new version. Cursors outlive restarts. Raises
    InvalidInput for a cursor of another collection or filter.
    """
    body: dict[str, Any] = {"limit": limit, "with_payload": with_payload, "with_vector": with_vector}
    if cursor is not None:
        body["cursor"] = cursor
    if filter is not None:
        body["filter"] = wire.tree_out(filter)
    data = decode((yield from self.ask(hot("POST", f"{self._path}/records/scroll", body))))
    return Page([wire.record_in(record) for record in data["records"]], data["cursor"])


def records(
    self: CollectionTarget,
    *,
    filter: FilterLike | None = None,
    with_payload: WithPayload = True,
    with_vector: bool = False,
    page: int = 500,
) -> Stream[Record]:
    """All records, or those that match, one by one; `scroll` in pages of `page`."""
    cursor = None
    while True:
        found = yield from scroll(
            self, cursor=cursor, limit=page, filter=filter, with_payload=with_payload, with_vector=with_vector
        )
        for record in found.records:
            yield Item(record)
        cursor = found.cursor
        if cursor is None:
            return


def search(
    self: CollectionTarget,
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
) -> Operation[Hits]:
    """The k best records for one vector [dims] or one text; always min(k, count) hits.

    `recall` asks for a mean share of the true k best, such as .95; `budget_ms` and `budget_bytes` for the best that
    a query of that mean cost can give. The cheapest plan that calibration says will do it is chosen, and the reply
    says what it rests on. `exact` scans everything; `plan` says how to search. Give one of the five, or none for
    recall .95.

    `rank` "bm25" ranks by the text's words instead of vectors, and finds only records that hold one of them;
    "hybrid" by both, as `fusion` says; its dense side is the vector where one comes with the text. `filter` leaves
    only the records that match it: then always min(k, matching) hits, and the reply says how many matched.
    """
    body = wire.query_out(
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
    )
    if vector is not None:
        body["vector"] = wire.vector_out(vector)
    if text is not None:
        body["text"] = text
    return wire.hits_in(decode((yield from self.ask(hot("POST", f"{self._path}/query", body)))))


def search_batch(
    self: CollectionTarget,
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
) -> Operation[list[Hits]]:
    """`search` for many vectors [b, dims] or many texts (for a hybrid search, both), in one request."""
    inputs = _inputs(None if vectors is None else wire.vectors_out(vectors), texts)
    options = wire.query_out(
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
    )
    if not inputs:
        return []
    body = {"queries": [{**options, **each} for each in inputs]}
    reply = yield from self.ask(hot("POST", f"{self._path}/query/batch", body))
    return [wire.hits_in(result) for result in decode(reply)["results"]]


def _inputs(vectors: list[bytes] | None, texts: Sequence[str] | None) -> list[dict[str, bytes | str]]:
    """What each query of a batch is about."""
    if vectors is None and texts is None:
        raise InvalidInput("a query is a vector or a text: give vectors or texts")
    if vectors is None:
        return [{"text": text} for text in texts or ()]
    if texts is None:
        return [{"vector": vector} for vector in vectors]
    if len(vectors) != len(texts):
        raise InvalidInput(f"expected a text for each of {len(vectors)} vectors, got {len(texts)}")
    return [{"vector": vector, "text": text} for vector, text in zip(vectors, texts, strict=True)]


def declare(self: CollectionTarget, fields: Fields, *, expected: str | None = None) -> Operation[None]:
    """Declare the types of more payload fields: what is stored must fit, and every write is held to them from now.

    `expected`: the `config_version` that the change is meant for. Raises Conflict, InvalidInput.
    """
    version = {"If-Match": "*" if expected is None else f'"{expected}"'}
    request = call("PATCH", self._path, {"fields": fields}, repeatable=expected is None, headers=version)
    yield from self.ask(request)


def seal(self: CollectionTarget, *, progress: Progress | None = None) -> Operation[SealResult]:
    """Move the growing rows into a segment; the first seal over 1000 rows also trains a generation."""
    _, result = yield from job_verbs.run(self, call("POST", f"{self._path}/jobs", {"kind": "seal"}), progress)
    return wire.known(SealResult, result)


def compact(
    self: CollectionTarget, *, retrain: bool = False, progress: Progress | None = None
) -> Operation[CompactResult]:
    """Merge all segments into one without dead rows; `retrain` trains a new generation on it."""
    body = {"kind": "compact", "retrain": retrain}
    _, result = yield from job_verbs.run(self, call("POST", f"{self._path}/jobs", body), progress)
    return wire.known(CompactResult, result)
