"""The application, and the service that runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from structlog.typing import FilteringBoundLogger

from nestvec.engine.database import Database
from nestvec.engine.database import open as open_database
from nestvec.engine.jobs import fail_interrupted
from nestvec.engine.storage.generation import share_files
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
from nestvec.server.gate import Gate
from nestvec.server.hot import HotLane
from nestvec.server.logs import access_log, configure
from nestvec.server.process import listen, run
from nestvec.server.scopes import guard
from nestvec.server.service import Service
from nestvec.server.settings import Settings, check_bind

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


def create_app(database: Database, settings: Settings, requests: FilteringBoundLogger | None = None) -> FastAPI:
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
    app.state.service = service
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


def serve(path: Path | str, settings: Settings) -> None:
    """Serve the database directory at `path` until SIGTERM or SIGINT; requests in flight are finished.

    With `settings.workers` over 1 this process only watches over as many others. Raises InvalidInput for an address
    that needs an API key, DatabaseLocked if another service owns the directory, OSError for an address in use.
    """
    configure(settings.log_level)
    if settings.workers > 1:
        share_files()
    with open_database(path) as database:
        stored_keys = bool(database.keys())
        check_bind(settings, stored_keys=stored_keys)
        database.acquire_service_lock()
        fail_interrupted(database.ledger)
        guarded = stored_keys or settings.api_key is not None
        with listen(settings) as listener:
            host, port = listener.getsockname()[:2]
            access = "API key required" if guarded else "no API key, so loopback only"
            logger.info("serving %s on http://%s:%d (%s)", path, f"[{host}]" if ":" in host else host, port, access)
            if settings.workers > 1:
                from nestvec.server.workers import supervise

                supervise(database, settings, listener)
            else:
                run(create_app(database, settings, access_log(settings.log_level)), settings, listener)
