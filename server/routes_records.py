"""Write, read, scroll, delete and count records. Hot: msgspec in, bytes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from nestvec.engine.collection import Collection
from nestvec.engine.record import Record, UpsertResult
from nestvec.errors import InvalidRecord
from nestvec.server import wire
from nestvec.server.codec import check_batch, to_filter
from nestvec.server.codec_records import record_problem, record_reply, to_records
from nestvec.server.errors import invalid
from nestvec.server.formats import ARROW, JSON, MSGPACK, unsupported
from nestvec.server.hot import Call, add_hot_route
from nestvec.server.models import CountReply
from nestvec.server.openapi import problems
from nestvec.server.service import CollectionName, TheService

_SMALL = 64 * 1024
"""Bytes of the body of a write that may begin on the event loop."""

_PATH = "/v1/collections/{name}/records"
_ARROW = """Columns id (string), vector (fixed-size list or list of floats), text (string), payload (JSON string or
struct); buffers without compression, no dictionaries."""


async def upsert(call: Call, name: str) -> bytes:
    """Write records, all or none: durable and searchable when this answers."""
    commit = _begun(call, name) if len(call.body) <= _SMALL else None
    if commit is not None:
        return _written(call, await call.service.commit(commit))
    return await call.service.run(lambda: _upsert(call, name))


def _upsert(call: Call, name: str) -> bytes:
    collection = call.service.collection(name)
    with _decoded(call, collection) as records:
        return _written(call, collection.upsert(records))


def _begun(call: Call, name: str) -> Callable[[], UpsertResult] | None:
    """A small write but for its commit, on the event loop: a thread would pass Python's lock to and fro for each of its
    statements, which took longer than they do. None, and nothing done, where it would have to wait."""
    collection = call.service.at_hand(name)
    if collection is None:
        return None
    with _decoded(call, collection) as records:
        return collection.begin_upsert(records)


@contextmanager
def _decoded(call: Call, collection: Collection) -> Iterator[list[Record]]:
    """The records of the body; what the engine refuses of them is told with a pointer into it."""
    limit = call.service.settings.max_batch
    request, places = _records(call, limit)
    try:
        yield to_records(request, collection.config.dims, limit)
    except InvalidRecord as error:
        raise record_problem(error, places) from None


def _written(call: Call, result: UpsertResult) -> bytes:
    return call.reply(wire.UpsertReply(result.count, result.seq))


def _records(call: Call, limit: int) -> tuple[wire.UpsertBody, str]:
    """(the records as sent, the pointer to the array that numbers them)."""
    if call.formats.body == "arrow":
        from nestvec.server.arrow import decode_stream

        return decode_stream(call.body, limit), "/ids"
    if call.formats.body is None:
        raise unsupported(JSON, MSGPACK, ARROW)
    request = call.decode(wire.UpsertBody)
    return request, "/records" if isinstance(request.records, list) else "/ids"


async def get(call: Call, name: str) -> bytes:
    """Read records by id; ids that do not exist are left out."""
    return await call.service.run(lambda: _get(call, name))


def _get(call: Call, name: str) -> bytes:
    request = call.decode(wire.GetBody)
    check_batch(request.ids, call.service.settings.max_batch, "ids")
    records = call.service.collection(name).get(request.ids, with_vector=request.with_vector)
    kind, encoding = call.formats.reply, request.vector_encoding
    return call.reply(wire.GetReply([record_reply(r, request.with_vector, encoding, kind) for r in records]))


async def scroll(call: Call, name: str) -> bytes:
    """A page of records in the order of their writing; its cursor asks for the next page."""
    return await call.service.run(lambda: _scroll(call, name))


def _scroll(call: Call, name: str) -> bytes:
    request = call.decode(wire.ScrollBody)
    page = call.service.collection(name).scroll(
        cursor=request.cursor,
        limit=request.limit,
        filter=to_filter(request.filter, call.service.settings, "/filter"),
        with_payload=request.with_payload,
        with_vector=request.with_vector,
    )
    kind, encoding = call.formats.reply, request.vector_encoding
    records = [record_reply(record, request.with_vector, encoding, kind) for record in page.records]
    return call.reply(wire.ScrollReply(records, page.cursor))


async def delete(call: Call, name: str) -> bytes:
    """Delete records by id or by filter; ids that do not exist are left out of the count."""
    return await call.service.run(lambda: _delete(call, name))


def _delete(call: Call, name: str) -> bytes:
    request = call.decode(wire.DeleteBody)
    if (request.ids is None) == (request.filter is None):
        raise invalid("expected exactly one of ids and filter")
    filter = to_filter(request.filter, call.service.settings, "/filter")
    if request.ids is not None:
        check_batch(request.ids, call.service.settings.max_batch, "ids")
    return call.reply(wire.DeleteReply(call.service.collection(name).delete(request.ids, filter=filter)))


async def count_matching(call: Call, name: str) -> bytes:
    """Number of live records that match a filter."""
    return await call.service.run(lambda: _count(call, name))


def _count(call: Call, name: str) -> bytes:
    filter = to_filter(call.decode(wire.CountBody).filter, call.service.settings, "/filter")
    return call.reply(wire.CountReply(call.service.collection(name).count(filter=filter)))


async def count(service: TheService, name: CollectionName) -> CountReply:
    """Number of live records."""
    return CountReply(count=await service.run(lambda: service.collection(name).count()))


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    add_hot_route(app, "PUT", "records", upsert, wire.UpsertBody, wire.UpsertReply, operation="upsert_records",
                  tag="records", arrow=_ARROW)  # fmt: skip
    for path, handler, body, reply, operation in (
        ("/get", get, wire.GetBody, wire.GetReply, "get_records"),
        ("/scroll", scroll, wire.ScrollBody, wire.ScrollReply, "scroll_records"),
        ("/delete", delete, wire.DeleteBody, wire.DeleteReply, "delete_records"),
        ("/count", count_matching, wire.CountBody, wire.CountReply, "count_matching_records"),
    ):
        add_hot_route(app, "POST", "records" + path, handler, body, reply, operation=operation, tag="records")
    app.add_api_route(_PATH + "/count", count, methods=["GET"], operation_id="count_records", tags=["records"],
                      responses=problems(404, 422))  # fmt: skip
