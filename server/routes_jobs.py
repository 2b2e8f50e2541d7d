"""Submit, list, show and cancel jobs; fetch their files. Also the one way in which routes answer with a job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request, Response

from nestvec.engine import tasks
from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.engine.filters.tree import as_filter
from nestvec.engine.jobs import KEPT_JOBS, Job, Work
from nestvec.engine.spool import export_file
from nestvec.errors import Conflict, NotFound
from nestvec.server.codec import calibration_queries
from nestvec.server.exchange import EXCHANGE, Exchange
from nestvec.server.files import download, spooled
from nestvec.server.formats import unsupported
from nestvec.server.models_admin import (
    BuildJob,
    CalibrateJob,
    CompactJob,
    ExportJob,
    JobBody,
    JobReply,
    JobsReply,
    SnapshotJob,
)
from nestvec.server.openapi import problems
from nestvec.server.scopes import check_visible, visible
from nestvec.server.service import CollectionName, Service, TheService

PARQUET, JSONL, NDJSON = "application/vnd.apache.parquet", "application/jsonl", "application/x-ndjson"
_IMPORTS = {PARQUET: "parquet", JSONL: "jsonl", NDJSON: "jsonl"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}

JobId = Annotated[int, Path(ge=1, le=2**63 - 1, description="Number of the job.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=128,
        description="The same key with the same request finds the same job; with another one it is a 409.",
    ),
]


async def submitted(
    service: Service,
    request: Request,
    response: Response,
    kind: tasks.Kind,
    collection: str | None,
    work: Work,
    key: str | None,
    digest: bytes,
    release: Callable[[], None] | None = None,
) -> JobReply:
    """Submit work and answer 202 with the job, and where it will be found."""
    exchange: Exchange = request.scope[EXCHANGE]
    if key is not None:  # whoever sends it: keys of two callers never meet
        key = f"{exchange.identity.name if exchange.identity else ''}:{key}"
        digest = hashlib.blake2b(f"{request.method} {request.url.path}\n".encode() + digest, digest_size=32).digest()
    job = await service.run(
        lambda: service.database.jobs.submit(
            kind, collection, work, request_key=key, request_digest=digest, release=release
        )
    )
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return JobReply.of(job)


async def create_job(
    service: TheService,
    request: Request,
    response: Response,
    name: CollectionName,
    body: JobBody,
    idempotency_key: IdempotencyKey = None,
) -> JobReply:
    """Start long work on a collection; the reply says where it can be followed."""
    collection = await service.run(lambda: service.collection(name))
    work = _work(service.database, collection, body)
    digest = json.dumps(body.model_dump(), sort_keys=True).encode()
    return await submitted(service, request, response, body.kind, collection.name, work, idempotency_key, digest)


def _work(database: Database, collection: Collection, body: JobBody) -> Work:
    if isinstance(body, ExportJob):
        if body.filter is not None:
            as_filter(body.filter)  # refused now, not when the job begins
        return tasks.export(database, collection, body.format, body.filter)
    if isinstance(body, CalibrateJob):
        return tasks.calibrate(collection, calibration_queries(body, collection.config.dims), body.texts)
    if isinstance(body, CompactJob):
        return tasks.compact(collection, retrain=body.retrain)
    if isinstance(body, SnapshotJob):
        return tasks.snapshot(database, collection)
    return tasks.build(collection) if isinstance(body, BuildJob) else tasks.seal(collection)


async def import_records(
    service: TheService,
    request: Request,
    response: Response,
    name: CollectionName,
    idempotency_key: IdempotencyKey = None,
) -> JobReply:
    """Upsert the rows of a file, which is the body; existing ids are replaced. Columns are named as an export's."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _IMPORTS:
        raise unsupported(*_IMPORTS)
    collection = await service.run(lambda: service.collection(name))
    spool, digest = await spooled(service, request, _IMPORTS[kind])
    work = tasks.import_spooled(collection, spool)
    return await submitted(
        service, request, response, "import", collection.name, work, idempotency_key, digest, spool.close
    )


async def list_jobs(
    service: TheService,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=KEPT_JOBS, description="How many of the newest jobs to look at.")] = 100,
) -> JobsReply:
    """The newest jobs on collections that the caller's key may touch, of all workers, newest first."""
    found = await service.run(lambda: service.database.jobs.list(limit))
    return JobsReply(jobs=[JobReply.of(job) for job in found if visible(request, job.collection or "")])


async def get_job(service: TheService, request: Request, job: JobId) -> JobReply:
    """One job."""
    return JobReply.of(await _found(service, request, job))


async def cancel_job(service: TheService, request: Request, job: JobId) -> JobReply:
    """Ask a job to stop: one that waits stops at once, one that runs soon; one that has ended stays as it is."""
    await _found(service, request, job)
    return JobReply.of(await service.run(lambda: service.database.jobs.cancel(job)))


async def get_job_result(service: TheService, request: Request, job: JobId) -> Response:
    """The file of an export that is done."""
    found = await _found(service, request, job)
    if found.kind != "export":
        raise NotFound(f"job {job} is no export and has no file: its result is in GET /v1/jobs/{job}")
    result = found.result
    if result is None:
        raise Conflict(f"job {job} is {found.state}: an export's file is there once it is done")
    path = await service.run(lambda: export_file(service.database.path, result["file"]))
    kind = {"parquet": PARQUET, "jsonl": JSONL}.get(result["format"], "application/octet-stream")
    return download(path, f"{found.collection}.{result['format']}", kind)


async def _found(service: Service, request: Request, id: int) -> Job:
    job = await service.run(lambda: service.database.jobs.get(id))
    check_visible(request, job.collection)
    return job


def accepted(*statuses: int) -> dict[str, Any]:
    """What `add_api_route` is told of a route that answers with a job."""
    location = {"Location": {"description": "Where the job can be followed.", "schema": {"type": "string"}}}
    replies: dict[int | str, dict[str, Any]] = {202: {"description": "The job is queued", "headers": location}}
    return {"status_code": 202, "responses": {**replies, **problems(400, 404, 409, 422, *statuses)}}


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    tags, one = ["jobs"], "/v1/jobs/{job}"
    body = {"required": True, "content": dict.fromkeys(_IMPORTS, _BINARY)}
    files: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "The file",
            "content": dict.fromkeys((PARQUET, JSONL, "application/octet-stream"), _BINARY),
        }
    }
    app.add_api_route("/v1/collections/{name}/jobs", create_job, methods=["POST"], operation_id="create_job",
                      tags=[*tags], **accepted())  # fmt: skip
    app.add_api_route("/v1/collections/{name}/import", import_records, methods=["POST"],
                      operation_id="import_records", tags=[*tags], openapi_extra={"requestBody": body},
                      **accepted())  # fmt: skip
    app.add_api_route("/v1/jobs", list_jobs, methods=["GET"], operation_id="list_jobs", tags=[*tags],
                      responses=problems(422))  # fmt: skip
    app.add_api_route(one, get_job, methods=["GET"], operation_id="get_job", tags=[*tags],
                      responses=problems(404, 422))  # fmt: skip
    app.add_api_route(one, cancel_job, methods=["DELETE"], operation_id="cancel_job", tags=[*tags],
                      responses=problems(404, 422))  # fmt: skip
    app.add_api_route(one + "/result", get_job_result, methods=["GET"], operation_id="get_job_result", tags=[*tags],
                      response_class=Response, responses={**files, **problems(404, 409, 422)})  # fmt: skip
