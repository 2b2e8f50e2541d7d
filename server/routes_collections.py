"""Create, list, describe, maintain and delete collections."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Response

from nestvec.engine.database import Database
from nestvec.errors import Conflict, NotFound
from nestvec.server.models import (
    CollectionBody,
    CollectionReply,
    CollectionsReply,
    CompactBody,
    CompactReply,
    SealReply,
)
from nestvec.server.openapi import problems
from nestvec.server.service import CollectionName, TheService, no_collection

_PATH = "/v1/collections/{name}"


async def list_collections(service: TheService) -> CollectionsReply:
    """All collections."""
    infos = await service.run(service.database.collections)
    return CollectionsReply(collections=[CollectionReply.of(info) for info in infos])


async def put_collection(
    service: TheService, name: CollectionName, body: CollectionBody, response: Response
) -> CollectionReply:
    """Create a collection (201), or find it there with the same configuration (200)."""
    created, reply = await service.run(lambda: _put(service.database, name, body))
    response.status_code = 201 if created else 200
    return reply


def _put(database: Database, name: str, body: CollectionBody) -> tuple[bool, CollectionReply]:
    wanted = body.model_dump()
    wanted["granularities"] = None if body.granularities is None else tuple(body.granularities)
    try:
        return True, CollectionReply.of(database.create_collection(name, **wanted).info())
    except Conflict:  # it exists; the same call refuses it once more if it differs
        return False, CollectionReply.of(database.create_collection(name, **wanted, exist_ok=True).info())


async def get_collection(service: TheService, name: CollectionName) -> CollectionReply:
    """One collection."""
    return await service.run(lambda: CollectionReply.of(service.collection(name).info()))


async def delete_collection(service: TheService, name: CollectionName) -> None:
    """Delete a collection with all its records."""
    try:
        await service.run(lambda: service.database.delete_collection(name))
    except NotFound:
        raise no_collection(name) from None


async def seal(service: TheService, name: CollectionName) -> SealReply:
    """Write the growing rows out into a segment."""
    return await service.run(lambda: SealReply(**asdict(service.collection(name).seal())))


async def compact(service: TheService, name: CollectionName, body: CompactBody | None = None) -> CompactReply:
    """Merge the segments and drop dead rows."""
    retrain = body is not None and body.retrain
    return await service.run(lambda: CompactReply(**asdict(service.collection(name).compact(retrain=retrain))))


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    one, tags = problems(404, 422), ["collections"]
    created: dict[int | str, dict[str, Any]] = {201: {"model": CollectionReply, "description": "Created"}}
    app.add_api_route("/v1/collections", list_collections, methods=["GET"], operation_id="list_collections",
                      tags=[*tags], responses=problems())  # fmt: skip
    app.add_api_route(_PATH, put_collection, methods=["PUT"], operation_id="put_collection", tags=[*tags],
                      responses={**created, **problems(400, 404, 409, 422, 501)})  # fmt: skip
    app.add_api_route(_PATH, get_collection, methods=["GET"], operation_id="get_collection", tags=[*tags],
                      responses=one)  # fmt: skip
    app.add_api_route(_PATH, delete_collection, methods=["DELETE"], operation_id="delete_collection", tags=[*tags],
                      status_code=204, responses=one)  # fmt: skip
    app.add_api_route(_PATH + "/seal", seal, methods=["POST"], operation_id="seal", tags=[*tags], responses=one)
    app.add_api_route(_PATH + "/compact", compact, methods=["POST"], operation_id="compact", tags=[*tags],
                      responses=problems(400, 404, 422))  # fmt: skip
