"""List, download, upload, restore and delete snapshots. A job of kind "snapshot" makes one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response

from nestvec.engine import tasks
from nestvec.server.files import download, spooled
from nestvec.server.formats import unsupported
from nestvec.server.models_admin import JobReply, RestoreBody, SnapshotReply, SnapshotsReply
from nestvec.server.openapi import problems
from nestvec.server.routes_jobs import IdempotencyKey, accepted, submitted
from nestvec.server.scopes import check_visible, visible
from nestvec.server.service import TheService

OCTETS = "application/octet-stream"
_BINARY = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}

SnapshotName = Annotated[
    str,
    Path(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}-[0-9]{8}T[0-9]{9}Z$",
        description="Name of the snapshot: its collection, and when it was made.",
    ),
]


async def list_snapshots(service: TheService, request: Request) -> SnapshotsReply:
    """All snapshots of collections that the caller's key may touch."""
    found = await service.run(service.database.snapshots)
    return SnapshotsReply(snapshots=[SnapshotReply.of(info) for info in found if visible(request, info.collection)])


async def upload_snapshot(service: TheService, request: Request, response: Response) -> SnapshotReply:
    """Keep a snapshot that was downloaded before, here or elsewhere. Every byte of it is checked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != OCTETS:
        raise unsupported(OCTETS)
    spool, _ = await spooled(service, request, "nvs")
    try:
        info = await service.run(lambda: service.database.add_snapshot(spool.pieces()))
    finally:
        await service.run(spool.close)
    response.headers["Location"] = f"/v1/snapshots/{info.name}"
    return SnapshotReply.of(info)


async def download_snapshot(service: TheService, request: Request, snapshot: SnapshotName) -> Response:
    """A snapshot's file."""
    check_visible(request, snapshot.rpartition("-")[0])
    path = await service.run(lambda: service.database.snapshot_file(snapshot))
    return download(path, path.name, OCTETS)


async def delete_snapshot(service: TheService, snapshot: SnapshotName) -> None:
    """Delete a snapshot."""
    await service.run(lambda: service.database.delete_snapshot(snapshot))


async def restore_snapshot(
    service: TheService,
    request: Request,
    response: Response,
    snapshot: SnapshotName,
    body: RestoreBody,
    idempotency_key: IdempotencyKey = None,
) -> JobReply:
    """Make a new collection from a snapshot, in a job; its name must be free."""
    database = service.database
    await service.run(lambda: database.snapshot_file(snapshot))
    work = tasks.restore(database, snapshot, body.name)
    digest = body.name.encode()
    return await submitted(service, request, response, "restore", body.name, work, idempotency_key, digest)


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    path, one, tags = "/v1/snapshots", "/v1/snapshots/{snapshot}", ["snapshots"]
    made = {"Location": {"description": "Where it can be downloaded.", "schema": {"type": "string"}}}
    created: dict[int | str, dict[str, Any]] = {201: {"description": "Kept", "headers": made}}
    file: dict[int | str, dict[str, Any]] = {200: {"description": "The file", "content": _BINARY}}
    body = {"requestBody": {"required": True, "content": _BINARY}}
    app.add_api_route(path, list_snapshots, methods=["GET"], operation_id="list_snapshots", tags=[*tags],
                      responses=problems())  # fmt: skip
    app.add_api_route(path, upload_snapshot, methods=["PUT"], operation_id="upload_snapshot", tags=[*tags],
                      status_code=201, openapi_extra=body, responses={**created, **problems(422)})  # fmt: skip
    app.add_api_route(one, download_snapshot, methods=["GET"], operation_id="download_snapshot", tags=[*tags],
                      response_class=Response, responses={**file, **problems(404, 422)})  # fmt: skip
    app.add_api_route(one, delete_snapshot, methods=["DELETE"], operation_id="delete_snapshot", tags=[*tags],
                      status_code=204, responses=problems(404, 422))  # fmt: skip
    app.add_api_route(one + "/restore", restore_snapshot, methods=["POST"], operation_id="restore_snapshot",
                      tags=[*tags], **accepted())  # fmt: skip
