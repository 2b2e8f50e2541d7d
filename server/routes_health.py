"""Is it alive, is it ready, what is it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import apsw
from fastapi import FastAPI

from nestvec.engine.encoders import registry
from nestvec.index import kernels
from nestvec.server.errors import RequestProblem
from nestvec.server.models import InfoReply, StatusReply
from nestvec.server.openapi import problems
from nestvec.server.service import TheService


async def alive() -> StatusReply:
    """The process answers."""
    return StatusReply()


async def ready(service: TheService) -> StatusReply:
    """The database is open and was read; 503 before that and once the service is stopping."""
    if not service.ready:
        raise RequestProblem(503, "not_ready", "the database is not open", headers={"Retry-After": "1"})
    return StatusReply()


async def info(service: TheService) -> InfoReply:
    """Versions, the kernels in use and the encoders at hand."""
    return await service.run(_info)


def _info() -> InfoReply:
    return InfoReply(
        name="nestvec",
        version=version("nestvec"),
        kernels=kernels.backend(),
        sqlite=apsw.sqlite_lib_version(),
        encoders=sorted(registry.names()),
    )


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    unready: dict[int | str, dict[str, Any]] = {503: problems(503)[503]}
    app.add_api_route("/healthz", alive, methods=["GET"], operation_id="health", tags=["service"])
    app.add_api_route("/livez", alive, methods=["GET"], operation_id="live", tags=["service"])
    app.add_api_route("/readyz", ready, methods=["GET"], operation_id="ready", tags=["service"], responses=unready)
    app.add_api_route("/v1/info", info, methods=["GET"], operation_id="info", tags=["service"], responses=problems())
