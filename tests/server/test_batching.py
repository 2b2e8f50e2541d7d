"""Queries that share a batch get what they would get alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.engine.record import Hits, Record
from nestvec.errors import InvalidInput, NestvecError
from nestvec.server import batching
from nestvec.server.app import create_app
from nestvec.server.batching import INLINE_SECONDS, MOST_QUERIES, Batcher
from nestvec.server.codec import Input, Options
from nestvec.server.settings import Settings
from tests.server.conftest import DIMS, vectors

PLAIN = Options("vector", 5, None, "dense", None, None, False, True, False)
QUERIES = vectors(100)[20:]


class Watched:
    """A collection whose batches are seen, and can be held up at a gate."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.sizes: list[int] = []
        self.threads: list[threading.Thread] = []
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the collection has
        return getattr(self._collection, name)

    def search_batch(self, vectors: np.ndarray, **arguments: object) -> list[Hits]:
        self.sizes.append(len(vectors))
        self.threads.append(threading.current_thread())
        self.entered.set()
        assert self.gate.wait(30)
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return self._collection.search_batch(vectors, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database.collection("docs"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the searches are, none of them runs on the loop."""
    monkeypatch.setattr(batching, "INLINE_SECONDS", 0.0)


def ask(batcher: Batcher, watched: Watched, query: np.ndarray, options: Options = PLAIN) -> asyncio.Task[Hits]:
    return asyncio.ensure_future(batcher.search(watched, options, Input(query, None)))  # type: ignore[arg-type]


def ids(hits: Hits) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


def known_as_fast(batcher: Batcher) -> None:
    """As if the searches so far had taken a microsecond each."""
    batcher.seconds = dict.fromkeys(batcher.seconds, 1e-6)


async def held(batcher: Batcher, watched: Watched) -> asyncio.Task[Hits]:
    """A query that keeps the only thread busy until the gate opens."""
    watched.gate.clear()
    first = ask(batcher, watched, QUERIES[0])
    while not watched.entered.is_set():
        await asyncio.sleep(0.001)
    return first


@pytest.mark.usefixtures("in_threads")
def test_queries_that_wait_share_a_batch_and_get_their_own_answers(watched: Watched, pool: ThreadPoolExecutor) -> None:
    async def run() -> list[Hits]:
        batcher = Batcher(pool, threads=1)
        first = await held(batcher, watched)
        waiting = [ask(batcher, watched, query) for query in QUERIES[1:]]
        await asyncio.sleep(0.01)
        watched.gate.set()
        return await asyncio.gather(first, *waiting)

    found = asyncio.run(run())
    assert watched.sizes[:3] == [1, MOST_QUERIES, MOST_QUERIES]
    assert sum(watched.sizes) == len(QUERIES)
    for query, hits in zip(QUERIES, found, strict=True):
        assert ids(hits) == ids(watched.search(query, k=5))


def test_a_query_alone_waits_for_nobody(watched: Watched, pool: ThreadPoolExecutor) -> None:
    async def run() -> None:
        batcher = Batcher(pool, threads=1)
        watched.gate.clear()
        alone = ask(batcher, watched, QUERIES[0])
        for _ in range(3):  # turns of the loop: the task begins, the batch starts
            await asyncio.sleep(0)
        assert watched.entered.wait(10)
        watched.gate.set()
        await alone

    asyncio.run(run())
    assert watched.sizes == [1]


@pytest.mark.usefixtures("in_threads")
def test_waiting_queries_are_shared_out_among_free_threads(watched: Watched, pool: ThreadPoolExecutor) -> None:
    async def run() -> None:
        batcher = Batcher(pool, threads=4)
        await asyncio.gather(*(ask(batcher, watched, query) for query in QUERIES[:20]))

    asyncio.run(run())
    assert watched.sizes == [5, 5, 5, 5]


@pytest.mark.usefixtures("in_threads")
def test_a_fault_of_one_is_not_its_neighbours(watched: Watched, pool: ThreadPoolExecutor) -> None:
    zero = np.zeros(DIMS, np.float32)  # has no direction, so no cosine

    async def run() -> list[Hits | BaseException]:
        batcher = Batcher(pool, threads=1)
        first = await held(batcher, watched)
        waiting = [ask(batcher, watched, query) for query in (QUERIES[1], zero, QUERIES[2])]
        await asyncio.sleep(0.01)
        watched.gate.set()
        await first
        return await asyncio.gather(*waiting, return_exceptions=True)

    before, fault, after = asyncio.run(run())
    assert watched.sizes == [1, 3, 1, 1, 1]
    assert isinstance(fault, InvalidInput)
    for query, hits in ((QUERIES[1], before), (QUERIES[2], after)):
        assert isinstance(hits, Hits)
        assert ids(hits) == ids(watched.search(query, k=5))


@pytest.mark.usefixtures("in_threads")
def test_who_leaves_takes_nothing_from_the_others(watched: Watched, pool: ThreadPoolExecutor) -> None:
    async def run() -> list[Hits | BaseException]:
        batcher = Batcher(pool, threads=1)
        first = await held(batcher, watched)
        waiting = [ask(batcher, watched, query) for query in QUERIES[1:5]]
        await asyncio.sleep(0.01)
        waiting[1].cancel()  # still waits: is not searched
        first.cancel()  # is being searched: its answer is dropped
        await asyncio.sleep(0.01)
        watched.gate.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    gone, *found = asyncio.run(run())
    assert watched.sizes == [1, 3]
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(found.pop(1), asyncio.CancelledError)
    for query, hits in zip((QUERIES[1], QUERIES[3], QUERIES[4]), found, strict=True):
        assert isinstance(hits, Hits)
        assert ids(hits) == ids(watched.search(query, k=5))


@pytest.mark.usefixtures("in_threads")
def test_other_options_are_another_batch(watched: Watched, pool: ThreadPoolExecutor) -> None:
    async def run() -> list[Hits]:
        batcher = Batcher(pool, threads=1)
        first = await held(batcher, watched)
        few = PLAIN._replace(k=2)
        waiting = [ask(batcher, watched, query, few if i % 2 else PLAIN) for i, query in enumerate(QUERIES[1:7])]
        await asyncio.sleep(0.01)
        watched.gate.set()
        await first
        return await asyncio.gather(*waiting)

    found = asyncio.run(run())
    assert watched.sizes == [1, 3, 3]
    assert [len(hits) for hits in found] == [5, 2, 5, 2, 5, 2]


def test_short_searches_run_on_the_loop_and_others_never(watched: Watched, pool: ThreadPoolExecutor) -> None:
    own = threading.main_thread()

    async def run() -> None:
        batcher = Batcher(pool, threads=1)

        async def inline() -> bool:
            await ask(batcher, watched, QUERIES[0])
            return watched.threads[-1] is own

        assert not await inline(), "nothing is known of this search yet"
        known_as_fast(batcher)
        assert await inline()
        watched.upsert([Record("new", QUERIES[0])])
        known_as_fast(batcher)
        assert await inline(), "a row or two are no work"
        watched.upsert([Record(f"new {i}", QUERIES[0]) for i in range(100)])
        assert not watched.fresh
        known_as_fast(batcher)
        assert not await inline(), "the first search after such a write has much to read"
        known_as_fast(batcher)
        watched.seconds = 20 * INLINE_SECONDS
        assert await inline()
        assert not await inline(), "it has become slow"
        assert not await inline()

    asyncio.run(run())


def test_a_collection_deleted_meanwhile_is_an_answer_too(
    database: Database, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    async def run() -> list[Hits | BaseException]:
        batcher = Batcher(pool, threads=1)
        await ask(batcher, watched, QUERIES[0])
        known_as_fast(batcher)
        database.delete_collection("docs")
        return await asyncio.gather(*(ask(batcher, watched, query) for query in QUERIES[:2]), return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(run())] == [NestvecError, NestvecError]


def test_many_connections_get_their_own_answers(
    database: Database, settings: Settings, served: Callable[[FastAPI], AbstractContextManager[str]]
) -> None:
    async def run(url: str) -> None:
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

            async def one(i: int) -> None:
                # every seventh cannot be answered, and every fifth client leaves at once
                vector = [0.0] * DIMS if i % 7 == 0 else QUERIES[i % 80].tolist()
                query = client.post("/v1/collections/docs/query", json={"vector": vector, "k": 3})
                if i % 5 == 0:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(query, 1e-6)
                    return
                reply = await query
                if i % 7 == 0:
                    assert reply.status_code == 422, reply.text
                    return
                wanted = database.collection("docs").search(QUERIES[i % 80], k=3)
                assert [(hit["id"], hit["score"]) for hit in reply.json()["hits"]] == ids(wanted)

            await asyncio.gather(*(one(i) for i in range(300)))

    with served(create_app(database, settings)) as url:
        while httpx.get(url + "/readyz").status_code != 200:
            time.sleep(0.01)
        asyncio.run(run(url))


def test_a_query_past_its_timeout_is_504_and_its_neighbours_are_answered(
    database: Database,
    settings: Settings,
    served: Callable[[FastAPI], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection = database.collection("docs")
    search, gate = collection.search_batch, threading.Event()

    def slow(vectors: np.ndarray, **arguments: object) -> list[Hits]:
        assert gate.wait(30)
        return search(vectors, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(collection, "search_batch", slow)
    one_thread = settings.model_copy(update={"threads": 1})
    body = {"vector": QUERIES[0].tolist(), "k": 3}

    async def run(url: str) -> tuple[httpx.Response, list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            path = "/v1/collections/docs/query"
            others = [asyncio.ensure_future(client.post(path, json=body)) for _ in range(3)]
            await asyncio.sleep(0.2)
            late = await client.post(path, json={**body, "timeout_ms": 50})
            gate.set()
            return late, await asyncio.gather(*others)

    with served(create_app(database, one_thread)) as url:
        while httpx.get(url + "/readyz").status_code != 200:
            time.sleep(0.01)
        late, others = asyncio.run(run(url))
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert "50 ms" in late.json()["detail"]
    wanted = [hit.id for hit in search(QUERIES[:1], k=3)[0]]
    assert [[hit["id"] for hit in reply.json()["hits"]] for reply in others] == [wanted] * 3
