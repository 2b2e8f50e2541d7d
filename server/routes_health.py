"""Is it alive, is it ready, what is it, how is it doing."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, get_args

import anyio.to_thread
import apsw
from fastapi import FastAPI, Request, Response

from nestvec.engine.encoders import registry
from nestvec.engine.plan import Route
from nestvec.index import kernels
from nestvec.server.errors import RequestProblem
from nestvec.server.limits import FIXED
from nestvec.server.models import InfoReply, StatusReply
from nestvec.server.openapi import problems
from nestvec.server.scopes import visible
from nestvec.server.service import Service, TheService
from nestvec.server.settings import Settings

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def alive() -> StatusReply:
    """The process answers."""
    return StatusReply()


async def ready(service: TheService) -> StatusReply:
    """Every collection that can be opened is mapped and warm; 503 before that and once the service is stopping."""
    if service.failure is not None:
        raise RequestProblem(503, "not_ready", "the database cannot be served; the server log says why")
    if not service.ready:
        raise RequestProblem(503, "not_ready", "collections are being warmed, or the service is stopping",
                             headers={"Retry-After": "1"})  # fmt: skip
    return StatusReply(status="degraded" if service.database.damaged() else "ok")


async def info(service: TheService, request: Request) -> InfoReply:
    """Versions, the kernels in use, encoders and routes at hand, the bounds of requests, damaged collections."""
    return await service.run(lambda: _info(service.settings, _damaged(service, request)))


def _damaged(service: Service, request: Request) -> list[str]:
    """Those that the caller's key may touch."""
    names = (one.name for one in service.database.damaged())
    return sorted("?" if name is None else name for name in names if name is None or visible(request, name))


def _info(settings: Settings, damaged: list[str]) -> InfoReply:
    return InfoReply(
        name="nestvec",
        version=version("nestvec"),
        kernels=kernels.backend(),
        sqlite=apsw.sqlite_lib_version(),
        encoders=sorted(registry.names()),
        routes=list(get_args(Route)),
        workers=settings.workers,
        limits=settings.limits() | FIXED,
        damaged=damaged,
    )


async def metrics(service: TheService) -> Response:
    """Counters and histograms in Prometheus' text format, summed over all workers."""
    # not in the engine's threads: this must answer when they are all taken
    page = await anyio.to_thread.run_sync(service.metrics.page)
    return Response(page, media_type=_PROMETHEUS)


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    unready: dict[int | str, dict[str, Any]] = {503: problems(503)[503]}
    page: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    app.add_api_route("/healthz", alive, methods=["GET"], operation_id="health", tags=["service"])
    app.add_api_route("/livez", alive, methods=["GET"], operation_id="live", tags=["service"])
    app.add_api_route("/readyz", ready, methods=["GET"], operation_id="ready", tags=["service"], responses=unready)
    app.add_api_route("/metrics", metrics, methods=["GET"], operation_id="metrics", tags=["service"],
                      response_class=Response, responses={**page, **problems()})  # fmt: skip
    app.add_api_route("/v1/info", info, methods=["GET"], operation_id="info", tags=["service"], responses=problems())
