"""Create, list, describe, maintain and delete collections."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response

from nestvec.engine.chunking import Chunking
from nestvec.engine.reconfigure import Outdated, config_version
from nestvec.engine.record import CollectionInfo
from nestvec.errors import Conflict, InvalidInput, NotFound
from nestvec.server.errors import RequestProblem
from nestvec.server.models import (
    CollectionBody,
    CollectionReply,
    CollectionsReply,
    CompactBody,
    CompactReply,
    SealReply,
)
from nestvec.server.models_admin import ConfigPatch
from nestvec.server.openapi import problems
from nestvec.server.scopes import visible
from nestvec.server.service import CollectionName, Service, TheService, no_collection

_PATH = "/v1/collections/{name}"


async def list_collections(service: TheService, request: Request) -> CollectionsReply:
    """All collections that the caller's key may touch."""
    infos = await service.run(service.database.collections)
    return CollectionsReply(collections=[CollectionReply.of(info) for info in infos if visible(request, info.name)])


async def put_collection(
    service: TheService, name: CollectionName, body: CollectionBody, response: Response
) -> CollectionReply:
    """Create a collection (201), or find it there with the same configuration (200)."""
    created, reply = await service.run(lambda: _put(service, name, body))
    response.status_code = 201 if created else 200
    return reply


def _put(service: Service, name: str, body: CollectionBody) -> tuple[bool, CollectionReply]:
    database = service.database
    _check_encoder(service, body.encoder)
    wanted = body.model_dump()
    wanted["chunking"] = None if body.chunking is None else Chunking(**body.chunking.model_dump())
    wanted["granularities"] = None if body.granularities is None else tuple(body.granularities)
    try:
        return True, CollectionReply.of(database.create_collection(name, **wanted).info())
    except Conflict:  # it exists; the same call refuses it once more if it differs
        return False, CollectionReply.of(database.create_collection(name, **wanted, exist_ok=True).info())


def _check_encoder(service: Service, encoder: str | None) -> None:
    """Refuse names that hold a path or an address, unless the operator or a collection has them: no client may have
    this service read a folder, or send its key to a host, of the client's choice."""
    if encoder is None or ":" not in encoder or encoder in service.settings.encoders.split():
        return
    if all(info.config.encoder != encoder for info in service.database.collections()):
        raise InvalidInput("encoder: this service takes names with an address or a path only from its operator, who "
                           "lists them in NESTVEC_ENCODERS")  # fmt: skip


async def get_collection(service: TheService, name: CollectionName, response: Response) -> CollectionReply:
    """One collection. The ETag is the version of its configuration."""
    return _tagged(await service.run(lambda: service.collection(name).info()), response)


async def patch_collection(
    service: TheService,
    name: CollectionName,
    body: ConfigPatch,
    response: Response,
    if_match: Annotated[str | None, Header(description="The ETag of the configuration that is to be changed.")] = None,
) -> CollectionReply:
    """Declare more fields of payloads: what is stored must fit, and every write is held to them from now on."""
    if if_match is None:
        detail = "send 'If-Match: ETAG' with the ETag of GET, so that no change of somebody else's is lost"
        raise RequestProblem(428, "precondition_required", detail)
    try:
        info = await service.run(lambda: _declare(service, name, body, _version(if_match)))
    except Outdated as error:
        raise RequestProblem(412, "precondition_failed", str(error)) from None
    return _tagged(info, response)


def _declare(service: Service, name: str, body: ConfigPatch, expected: str | None) -> CollectionInfo:
    collection = service.collection(name)
    collection.declare(body.fields, expected=expected)
    return collection.info()


def _version(if_match: str) -> str | None:
    """The version between the quotes; None for *, which any configuration matches."""
    tag = if_match.strip()
    return None if tag == "*" else tag.removeprefix('"').removesuffix('"')


def _tagged(info: CollectionInfo, response: Response) -> CollectionReply:
    response.headers["ETag"] = f'"{config_version(info.config)}"'
    return CollectionReply.of(info)


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
                      responses={**created, **problems(400, 404, 409, 422, 501, 502)})  # fmt: skip
    app.add_api_route(_PATH, get_collection, methods=["GET"], operation_id="get_collection", tags=[*tags],
                      responses=one)  # fmt: skip
    app.add_api_route(_PATH, patch_collection, methods=["PATCH"], operation_id="patch_collection", tags=[*tags],
                      responses=problems(400, 404, 409, 412, 422, 428))  # fmt: skip
    app.add_api_route(_PATH, delete_collection, methods=["DELETE"], operation_id="delete_collection", tags=[*tags],
                      status_code=204, responses=one)  # fmt: skip
    app.add_api_route(_PATH + "/seal", seal, methods=["POST"], operation_id="seal", tags=[*tags], responses=one)
    app.add_api_route(_PATH + "/compact", compact, methods=["POST"], operation_id="compact", tags=[*tags],
                      responses=problems(400, 404, 422))  # fmt: skip
