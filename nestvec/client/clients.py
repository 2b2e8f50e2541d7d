"""The two clients: every verb is named once for each, and written in neither."""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar

from nestvec.client import collection_verbs as on_collection
from nestvec.client import file_verbs as on_files
from nestvec.client import job_verbs as on_jobs
from nestvec.client import recall_verbs as on_recall
from nestvec.client import service_verbs as on_service
from nestvec.client.collection_verbs import CollectionTarget
from nestvec.client.runners import (
    AsyncRunner,
    BlockingRunner,
    async_iterated,
    awaitable,
    blocking,
    iterated,
    returning,
)
from nestvec.client.steps import Options, Target
from nestvec.engine.schema import check_name
from nestvec.errors import InvalidInput

DEFAULT_URL = "http://127.0.0.1:8765"


class _Collection(CollectionTarget):
    """A handle: making one asks the service nothing."""

    def __init__(self, client: _Client, name: str) -> None:
        self.name, self._options, self._runner = check_name(name), client._options, client._runner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class RemoteCollection(_Collection):
    """A collection of a service, with the verbs of `nestvec.Collection`. Safe to use from many threads."""

    info = blocking(on_collection.info)
    count = blocking(on_collection.count)
    upsert = blocking(on_collection.upsert)
    upsert_many = blocking(on_collection.upsert_many)
    get = blocking(on_collection.get)
    delete = blocking(on_collection.delete)
    scroll = blocking(on_collection.scroll)
    records = iterated(on_collection.records)
    search = blocking(on_collection.search)
    search_batch = blocking(on_collection.search_batch)
    declare = blocking(on_collection.declare)
    seal = blocking(on_collection.seal)
    compact = blocking(on_collection.compact)
    explain = blocking(on_recall.explain)
    calibration = blocking(on_recall.calibration)
    calibrate = blocking(on_recall.calibrate)
    live_recall = blocking(on_recall.live_recall)
    measure_recall = blocking(on_recall.measure_recall)
    export = blocking(on_files.export)
    import_file = blocking(on_files.import_file)


class AsyncRemoteCollection(_Collection):
    """A collection of a service, with the verbs of `nestvec.Collection`, for asyncio."""

    info = awaitable(on_collection.info)
    count = awaitable(on_collection.count)
    upsert = awaitable(on_collection.upsert)
    upsert_many = awaitable(on_collection.upsert_many)
    get = awaitable(on_collection.get)
    delete = awaitable(on_collection.delete)
    scroll = awaitable(on_collection.scroll)
    records = async_iterated(on_collection.records)
    search = awaitable(on_collection.search)
    search_batch = awaitable(on_collection.search_batch)
    declare = awaitable(on_collection.declare)
    seal = awaitable(on_collection.seal)
    compact = awaitable(on_collection.compact)
    explain = awaitable(on_recall.explain)
    calibration = awaitable(on_recall.calibration)
    calibrate = awaitable(on_recall.calibrate)
    live_recall = awaitable(on_recall.live_recall)
    measure_recall = awaitable(on_recall.measure_recall)
    export = awaitable(on_files.export)
    import_file = awaitable(on_files.import_file)


class _Client(Target):
    """What the two clients share."""

    _make_runner: ClassVar[type[BlockingRunner] | type[AsyncRunner]]

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 30.0,
        retries: int = 4,
    ) -> None:
        """A client of the service at `url`; it connects at the first call.

        `timeout`: seconds for a call, its further attempts included (None: no limit); `within` sets another for some
        calls. `retries`: further attempts, with back-off, after a refused connection, a 429, or, where the call may be
        repeated, a 503 or a lost answer. Raises InvalidInput for an address or a key that can be none.
        """
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("an API key has printable ASCII characters only; the key given has others")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.url, self._options = url, Options(retries, timeout)
        self._runner = self._make_runner(url, headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class Client(_Client):
    """A service over REST, with the verbs of `nestvec.Database`. Safe to use from many threads; close it after use."""

    _make_runner = BlockingRunner

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._runner.close()

    def collection(self, name: str) -> RemoteCollection:
        """A handle on a collection; whether it exists is seen at the first call."""
        return RemoteCollection(self, name)

    create_collection = blocking(returning(on_service.create_collection, RemoteCollection))
    delete_collection = blocking(on_service.delete_collection)
    collections = blocking(on_service.collections)
    aliases = blocking(on_service.aliases)
    switch_aliases = blocking(on_service.switch_aliases)
    snapshot = blocking(on_files.snapshot)
    snapshots = blocking(on_files.snapshots)
    download_snapshot = blocking(on_files.download_snapshot)
    upload_snapshot = blocking(on_files.upload_snapshot)
    delete_snapshot = blocking(on_files.delete_snapshot)
    restore = blocking(returning(on_files.restore, RemoteCollection))
    create_key = blocking(on_service.create_key)
    keys = blocking(on_service.keys)
    revoke_key = blocking(on_service.revoke_key)
    jobs = blocking(on_jobs.jobs)
    job = blocking(on_jobs.job)
    wait = blocking(on_jobs.wait)
    cancel_job = blocking(on_jobs.cancel_job)
    info = blocking(on_service.info)
    healthy = blocking(on_service.healthy)


class AsyncClient(_Client):
    """A service over REST, with the verbs of `nestvec.Database`, for asyncio; close it after use."""

    _make_runner = AsyncRunner

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._runner.close()

    def collection(self, name: str) -> AsyncRemoteCollection:
        """A handle on a collection; whether it exists is seen at the first call."""
        return AsyncRemoteCollection(self, name)

    create_collection = awaitable(returning(on_service.create_collection, AsyncRemoteCollection))
    delete_collection = awaitable(on_service.delete_collection)
    collections = awaitable(on_service.collections)
    aliases = awaitable(on_service.aliases)
    switch_aliases = awaitable(on_service.switch_aliases)
    snapshot = awaitable(on_files.snapshot)
    snapshots = awaitable(on_files.snapshots)
    download_snapshot = awaitable(on_files.download_snapshot)
    upload_snapshot = awaitable(on_files.upload_snapshot)
    delete_snapshot = awaitable(on_files.delete_snapshot)
    restore = awaitable(returning(on_files.restore, AsyncRemoteCollection))
    create_key = awaitable(on_service.create_key)
    keys = awaitable(on_service.keys)
    revoke_key = awaitable(on_service.revoke_key)
    jobs = awaitable(on_jobs.jobs)
    job = awaitable(on_jobs.job)
    wait = awaitable(on_jobs.wait)
    cancel_job = awaitable(on_jobs.cancel_job)
    info = awaitable(on_service.info)
    healthy = awaitable(on_service.healthy)
