"""What the routes share: the database, the settings, and the bounded threads in which the engine runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar, cast

import anyio
import anyio.to_thread
from fastapi import Depends, Path, Request

from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.errors import NotFound
from nestvec.server.settings import Settings

T = TypeVar("T")


class Service:
    """One open database behind one application; `ready` while it answers."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings, self.ready = database, settings, False
        # One thread per core: the engine's calls are bound by the processor, and more of them only wait longer.
        self._limiter = anyio.CapacityLimiter(settings.threads)

    def collection(self, name: str) -> Collection:
        """The collection, or a NotFound that does not show clients where the database lies."""
        try:
            return self.database.collection(name)
        except NotFound:
            raise no_collection(name) from None

    async def run(self, work: Callable[[], T]) -> T:
        """`work()` in one of the threads, never on the event loop."""
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


def no_collection(name: str) -> NotFound:
    """What a client hears about a collection that is not there."""
    return NotFound(f"there is no collection {name!r}")


# Async, because FastAPI would send plain functions to a thread pool of its own.
async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def _body(request: Request) -> bytes:
    return await request.body()


TheService = Annotated[Service, Depends(_service)]
RawBody = Annotated[bytes, Depends(_body)]
CollectionName = Annotated[
    str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", max_length=63, description="Name of the collection.")
]
