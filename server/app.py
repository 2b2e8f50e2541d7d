"""The application, and the process that serves it."""

from __future__ import annotations

import copy
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvicorn.config
from fastapi import FastAPI

from nestvec.engine.database import Database
from nestvec.engine.database import open as open_database
from nestvec.errors import EncoderMismatch, NotFound
from nestvec.server import errors, openapi, routes_collections, routes_health, routes_query, routes_records
from nestvec.server.gate import Gate
from nestvec.server.service import Service
from nestvec.server.settings import Settings, check_bind

logger = logging.getLogger("nestvec.server")

_ABOUT = "Adaptive-retrieval vector search. Every error is application/problem+json."


def create_app(database: Database, settings: Settings) -> FastAPI:
    """The application over an open database. The caller closes the database after the application has stopped."""
    service = Service(database, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.run(lambda: _warm(database))
        service.ready = True
        yield
        service.ready = False

    app = FastAPI(
        title="nestvec",
        version=version("nestvec"),
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    app.add_middleware(Gate, settings=settings)
    errors.install(app)
    for routes in (routes_health, routes_collections, routes_records, routes_query):
        routes.add_routes(app)
    openapi.install(app, settings)
    return app


def _warm(database: Database) -> None:
    """A database that cannot be read stops the start, not the first user; a missing encoder stops only text."""
    for info in database.collections():
        try:
            database.collection(info.name).warm()
        except (EncoderMismatch, NotFound) as error:
            logger.warning("%s answers vectors only: %s", info.name, error)


def serve(path: Path | str, settings: Settings) -> None:
    """Serve the database directory at `path` until SIGTERM or SIGINT; requests in flight are finished.

    Raises InvalidInput for an address that needs an API key, DatabaseLocked if another service owns the directory.
    """
    check_bind(settings)
    with open_database(path) as database:
        database.acquire_service_lock()
        _run(create_app(database, settings), path, settings)


def _run(app: FastAPI, path: Path | str, settings: Settings) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=_logging(),
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn stops gracefully, then raises the signal again; with a handler of ours that ends in exit status 0.
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        guard = "API key required" if settings.api_key is not None else "no API key, so loopback only"
        logger.info("serving %s (%s)", path, guard)
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _logging() -> dict[str, Any]:
    """uvicorn's logging, and ours beside it: all on standard error."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["nestvec"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config
