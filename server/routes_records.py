"""Write, read, delete and count records. Hot: msgspec in, msgspec out."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import FastAPI, Response

from nestvec.server import wire
from nestvec.server.codec import check_batch, decode, encode, record_reply, to_record
from nestvec.server.models import CountReply
from nestvec.server.openapi import json_body, json_reply, problems
from nestvec.server.service import CollectionName, RawBody, Service, TheService

_PATH = "/v1/collections/{name}/records"


async def upsert(service: TheService, name: CollectionName, body: RawBody) -> Response:
    """Write records, all or none: durable and searchable when this answers."""
    return await service.run(lambda: _upsert(service, name, body))


def _upsert(service: Service, name: str, body: bytes) -> Response:
    request = decode(body, wire.UpsertBody)
    check_batch(request.records, service.settings.max_batch, "records")
    collection = service.collection(name)
    dims = collection.config.dims
    result = collection.upsert([to_record(record, i, dims) for i, record in enumerate(request.records)])
    return encode(wire.UpsertReply(result.count, result.seq))


async def get(service: TheService, name: CollectionName, body: RawBody) -> Response:
    """Read records by id; ids that do not exist are left out."""
    return await service.run(lambda: _get(service, name, body))


def _get(service: Service, name: str, body: bytes) -> Response:
    request = decode(body, wire.GetBody)
    check_batch(request.ids, service.settings.max_batch, "ids")
    records = service.collection(name).get(request.ids, with_vector=request.with_vector)
    return encode(wire.GetReply([record_reply(record, request.with_vector) for record in records]))


async def delete(service: TheService, name: CollectionName, body: RawBody) -> Response:
    """Delete records by id; ids that do not exist are left out of the count."""
    return await service.run(lambda: _delete(service, name, body))


def _delete(service: Service, name: str, body: bytes) -> Response:
    request = decode(body, wire.DeleteBody)
    check_batch(request.ids, service.settings.max_batch, "ids")
    return encode(wire.DeleteReply(service.collection(name).delete(request.ids)))


async def count(service: TheService, name: CollectionName) -> CountReply:
    """Number of live records."""
    return CountReply(count=await service.run(lambda: service.collection(name).count()))


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""

    def hot(
        path: str, route: Callable[..., object], method: str, body: type[msgspec.Struct], reply: type[msgspec.Struct]
    ) -> None:
        responses = {**json_reply(reply, "Done"), **problems(400, 404, 409, 422, 501)}
        app.add_api_route(_PATH + path, route, methods=[method], operation_id=f"{route.__name__}_records",
                          tags=["records"], response_class=Response, openapi_extra=json_body(body),
                          responses=responses)  # fmt: skip

    hot("", upsert, "PUT", wire.UpsertBody, wire.UpsertReply)
    hot("/get", get, "POST", wire.GetBody, wire.GetReply)
    hot("/delete", delete, "POST", wire.DeleteBody, wire.DeleteReply)
    app.add_api_route(_PATH + "/count", count, methods=["GET"], operation_id="count_records", tags=["records"],
                      responses=problems(404, 422))  # fmt: skip
