"""The application over an open database; start.py opens one and serves it."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from nestvec.engine.database import Database
from nestvec.errors import Damaged, EncoderUnavailable, InvalidInput, MissingDependency, NotFound
from nestvec.server import (
    errors,
    openapi,
    routes_aliases,
    routes_collections,
    routes_embeddings,
    routes_health,
    routes_jobs,
    routes_keys,
    routes_query,
    routes_recall,
    routes_records,
    routes_snapshots,
)
from nestvec.server.door import Door
from nestvec.server.gate import Gate
from nestvec.server.hot import HotLane
from nestvec.server.lane import Lane
from nestvec.server.logs import RequestLog
from nestvec.server.scopes import guard
from nestvec.server.service import Service
from nestvec.server.settings import Settings

logger = logging.getLogger("nestvec.server")

_ABOUT = (
    "Adaptive-retrieval vector search. Every error is application/problem+json. The header X-Timeout-Ms ends a request "
    "with 504 after so many milliseconds, at most the service's own bound."
)
_ROUTES = (
    routes_health,
    routes_keys,
    routes_collections,
    routes_records,
    routes_query,
    routes_recall,
    routes_embeddings,
    routes_aliases,
    routes_jobs,
    routes_snapshots,
)


def create_app(database: Database, settings: Settings, requests: RequestLog | None = None) -> FastAPI:
    """The application over an open database. The caller closes the database after the application has stopped.

    `requests` gets a line per request.
    """
    service = Service(database, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The socket answers meanwhile: /livez says yes, /readyz not yet.
        warming = asyncio.create_task(_warm(service))
        yield
        service.stopping = True
        await warming
        await service.close()

    app = FastAPI(
        title="nestvec",
        version=version("nestvec"),
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # FastAPI's own would show bodies' faults, and stands outside the gate; see tracing.py
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.service, app.state.door, app.state.lane = service, Door(service, requests), Lane(service, requests)
    app.add_middleware(HotLane)
    app.add_middleware(Gate, service=service, requests=requests)
    errors.install(app)
    for routes in _ROUTES:
        routes.add_routes(app)
    guard(app, database)
    openapi.install(app, settings, lambda: service.auth.needed)
    return app


async def _warm(service: Service) -> None:
    """Become ready; a database that cannot be read stops the start, not the first user."""
    try:
        await asyncio.to_thread(_warm_collections, service.database)
        gc.collect()
        gc.freeze()  # what is there now stays: a full collection need not look at it, and hold up everybody, again
        service.warm = True
    except Exception as error:
        logger.error("the database cannot be served: %s", error)
        service.failure = error


def _warm_collections(database: Database) -> None:
    """A missing encoder stops only text, a damaged collection only itself."""
    for info in database.collections():
        try:
            database.collection(info.name).warm()
        except Damaged as error:
            logger.error("%s cannot be served: %s", info.name, error)
        except (InvalidInput, NotFound, MissingDependency, EncoderUnavailable) as error:
            logger.warning("%s answers vectors only: %s", info.name, error)
