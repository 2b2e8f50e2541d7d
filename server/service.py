"""What the routes share: the database, the settings, the metrics, and the bounded threads in which the engine runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Path, Request

from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.engine.jobs import Jobs
from nestvec.engine.record import Hits
from nestvec.errors import NotFound
from nestvec.server.admission import Admission
from nestvec.server.auth import Auth
from nestvec.server.batching import Batcher
from nestvec.server.metrics import Metrics
from nestvec.server.settings import Settings
from nestvec.server.tracing import Tracing

T = TypeVar("T")


class Service:
    """One open database behind one application.

    warm: every collection is mapped, and in memory as far as it is to be. stopping: it is to end. failure: why it never
    will be ready.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self.warm, self.stopping, self.failure = False, False, cast("Exception | None", None)
        self.metrics, self.tracing = Metrics(database), Tracing()
        self.admission = Admission(settings, self.metrics.refused)
        self.auth = Auth(database, settings)
        self.jobs = Jobs(database.ledger)
        self._watching = threading.Lock()
        # One thread per core: the engine's calls are bound by the processor, and more of them only wait longer.
        self._threads = ThreadPoolExecutor(settings.threads, "nestvec-engine")
        self.batcher = Batcher(self._threads, settings.threads)
        self._committing = ThreadPoolExecutor(1, "nestvec-commit")  # which waits for nothing but the disk

    @property
    def ready(self) -> bool:
        """Whether requests should come here."""
        return self.warm and not self.stopping

    def collection(self, name: str) -> Collection:
        """The collection, or a NotFound that does not show clients where the database lies."""
        try:
            return self._watched(self.database.collection(name))
        except NotFound:
            raise no_collection(name) from None

    def at_hand(self, name: str) -> Collection | None:
        """The collection if this process has it open: `collection` without waiting for the disk or for others."""
        known = self.database.opened(name)
        return None if known is None else self._watched(known)

    async def opened(self, name: str) -> Collection:
        """`collection`, for the event loop: in a thread where that may have to wait."""
        known = self.at_hand(name)
        return await self.run(lambda: self.collection(name)) if known is None else known

    def _watched(self, collection: Collection) -> Collection:
        """The same; its live recall is measured from now on, unless the settings say otherwise."""
        share = self.settings.recall_share
        if share and not collection.watched:
            with self._watching:
                if not collection.watched:
                    told = partial(self.metrics.compared, collection.name)
                    collection.watch(share, recalibrate=self.settings.recalibrate, told=told)
        return collection

    async def run(self, work: Callable[[], T]) -> T:
        """`work()` in one of the threads, never on the event loop.

        Cancelled while it waits for a thread (the deadline passed, the client left), it never starts; once it runs it
        goes on to its end, and keeps its thread for so long.
        """
        context, waiting = contextvars.copy_context(), self.metrics.waiting
        waiting.inc()

        def start() -> T:
            waiting.dec()
            return context.run(work)

        future = self._threads.submit(start)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled():
                waiting.dec()
            raise

    async def commit(self, commit: Callable[[], T]) -> T:
        """`commit()`, of a write that was begun: it is always called, whoever stops waiting for it."""
        return await asyncio.shield(asyncio.wrap_future(self._committing.submit(commit)))

    def searched(self, answers: Iterable[Hits]) -> None:
        """Count the work of answered queries, and note it in the request's trace. To be called once per request."""
        works = [hits.work for hits in answers]
        self.metrics.searched(works)
        self.tracing.searched(works)

    async def close(self) -> None:
        """Ask jobs to stop, and wait for them and the engine's threads; the database may be closed afterwards."""
        await asyncio.to_thread(self.jobs.close)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._committing.shutdown)


def no_collection(name: str) -> NotFound:
    """What a client hears about a collection that is not there."""
    return NotFound(f"there is no collection {name!r}")


# Async, because FastAPI would send plain functions to a thread pool of its own.
async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


TheService = Annotated[Service, Depends(_service)]
CollectionName = Annotated[
    str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", max_length=63, description="Name of the collection.")
]
