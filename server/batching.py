"""Queries that wait share a batch: those that came while others were searched are searched in one call.

A query that finds a free thread waits for nothing. Queries share a call only if they are of one collection and have
equal options, and each gets the answer, or the error, that it would get alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from time import perf_counter, thread_time
from typing import NamedTuple

import numpy as np

from nestvec.engine.collection import Collection
from nestvec.engine.record import Hits
from nestvec.errors import NestvecError
from nestvec.server.codec import F32, Input, Options

MOST_QUERIES = 32
INLINE_SECONDS = 1e-3
"""Queries that take less run on the event loop. To wake a thread takes less than that, but then the two pass Python's
lock to and fro: measured with queries of .8 ms, two threads answered half as many as the loop alone (LOG.md)."""
HELD_SECONDS = 1e-3
"""For so long at most, about, the queries of one batch hold the loop."""

_MOST_TIMES = 1024
_SLOW = 10


class Group(NamedTuple):
    """Queries that may share a call."""

    collection: Collection
    options: Options


class _Waiting(NamedTuple):
    """A query and who waits for its hits."""

    query: Input
    answer: asyncio.Future[Hits]


class Batcher:
    """Searches collections for one event loop, in `threads` threads of `pool`.

    `seconds` is what a query of a group takes, by group.
    """

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool, self._free = pool, threads
        self._waiting: dict[Group, list[_Waiting]] = {}
        self.seconds: dict[Group, float] = {}
        self._scheduled = False

    async def search(self, collection: Collection, options: Options, query: Input) -> Hits:
        """The hits of one query: what it looks for was checked. Raises what the search raises.

        Cancelling this takes the query out of its batch, or drops its answer, and touches no other.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(query, loop.create_future())
        self._waiting.setdefault(Group(collection, options), []).append(waiting)
        self._schedule()
        return await waiting.answer

    def _schedule(self) -> None:
        """Not at once: requests that came in the same turn of the loop join, and nobody waits for others."""
        if self._waiting and self._free and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        """Search for whoever waits, oldest group first, while there are threads."""
        self._scheduled = False
        while self._waiting and self._free:
            group = next(iter(self._waiting))
            waiting = [each for each in self._waiting.pop(group) if not each.answer.done()]
            known = self.seconds.get(group, INLINE_SECONDS)
            if waiting and known < INLINE_SECONDS and is_fresh(group.collection):
                # On the loop, which is held for a bounded time; then others have their turn.
                share = min(MOST_QUERIES, max(1, int(HELD_SECONDS / known)))
                self._give(group, waiting[:share], _answers(group, _queries(waiting[:share]), perf_counter))
                if len(waiting) > share:
                    self._waiting[group] = waiting[share:]
                self._schedule()
                return
            # Each free thread gets a share: what one of them would do alone, several do in less time.
            share = min(MOST_QUERIES, ceil(len(waiting) / self._free))
            if len(waiting) > share:
                self._waiting[group] = waiting[share:]
            if waiting:
                self._run(group, waiting[:share])

    def _run(self, group: Group, batch: list[_Waiting]) -> None:
        self._free -= 1
        work = asyncio.get_running_loop().run_in_executor(self._pool, _answers, group, _queries(batch), thread_time)
        work.add_done_callback(lambda done: self._come_back(group, batch, done))

    def _come_back(self, group: Group, batch: list[_Waiting], work: asyncio.Future[_Answers]) -> None:
        self._free += 1
        if error := work.exception():
            self._give(group, batch, _Answers([error] * len(batch), 0.0))
        else:
            self._give(group, batch, work.result())
        self._start()

    def _give(self, group: Group, batch: list[_Waiting], answers: _Answers) -> None:
        for waiting, found in zip(batch, answers.found, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(found, BaseException):
                waiting.answer.set_exception(found)
            else:
                waiting.answer.set_result(found)
        self.remember(group, answers.seconds / len(batch))

    def remember(self, group: Group, seconds: float) -> None:
        """Note how long a query of a group took: as fast as it has lately been, so that a busy machine does not send
        the next ones to a thread; but a really slow one does."""
        if len(self.seconds) >= _MOST_TIMES:
            self.seconds.clear()
        known = self.seconds.get(group, seconds)
        self.seconds[group] = seconds if seconds > _SLOW * INLINE_SECONDS else min(seconds, 1.05 * known)


def is_fresh(collection: Collection) -> bool:
    """Whether a search has nothing to load first; not where that cannot be told, which the search itself will."""
    try:
        return collection.fresh
    except NestvecError:
        return False


def _queries(batch: Sequence[_Waiting]) -> list[Input]:
    return [each.query for each in batch]


class _Answers(NamedTuple):
    """What a call found for each query, and how long it took."""

    found: Sequence[Hits | BaseException]
    seconds: float


def _answers(group: Group, queries: Sequence[Input], clock: Callable[[], float]) -> _Answers:
    start = clock()
    found: Sequence[Hits | BaseException]
    try:
        found = search_batch(group.collection, group.options, queries)
    except Exception as error:
        # The fault may be one query's alone: none of the others is answered with it.
        found = [error] if len(queries) == 1 else [_answer(group, query) for query in queries]
    return _Answers(found, clock() - start)


def _answer(group: Group, query: Input) -> Hits | BaseException:
    try:
        return search_batch(group.collection, group.options, [query])[0]
    except Exception as error:
        return error


def search_batch(collection: Collection, options: Options, queries: Sequence[Input]) -> list[Hits]:
    """One call of the engine for queries with the same options."""
    given = [query.vector for query in queries if query.vector is not None]
    texts = None if options.inputs == "vector" else [query.text or "" for query in queries]
    return search_vectors(collection, options, None if options.inputs == "text" else given, texts)


def search_vectors(
    collection: Collection, options: Options, vectors: Sequence[F32] | None, texts: Sequence[str] | None = None
) -> list[Hits]:
    """The same for vectors f32 [dims] each, all checked to be of that size, and texts."""
    arguments = options._asdict()
    del arguments["inputs"]
    together = None if vectors is None else np.concatenate(vectors).reshape(len(vectors), -1)
    return collection.search_batch(together, texts=texts, **arguments)
