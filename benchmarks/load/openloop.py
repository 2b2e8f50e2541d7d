"""An open loop of HTTP requests: they are sent when they are due, answered or not, and timed from when they were due.

A closed loop waits for an answer before it asks again, so a service that stalls is asked less and its stall is seen
once; here every request that was due meanwhile sees it (coordinated omission). Arrivals are a Poisson process, the same
for the same seed.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_CONNECTIONS = 750
"""select(2), which alone wakes to the microsecond, takes descriptors below 1,024. What finds none free waits, and its
time counts."""
LOST, LATE = 0, -1
"""In place of a status: the connection broke; no answer came in time."""
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Arrivals:
    """When requests are due, in seconds from the start [n], and which of them [n] each is."""

    due: NDArray[np.float64]
    which: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.due)


def poisson(rate: float, seconds: float, kinds: Sequence[tuple[float, int, int]], seed: int) -> Arrivals:
    """Arrivals at `rate` per second. `kinds`: (share, first request, number of requests): of which are how many."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.2) + 100))
    due = due[due < seconds]
    shares, first, count = zip(*kinds, strict=True)
    kind = rng.choice(len(kinds), len(due), p=np.array(shares) / sum(shares))
    which = np.array(first)[kind] + rng.integers(0, 1 << 30, len(due)) % np.array(count)[kind]
    return Arrivals(due, which)


@dataclass
class Answers:
    """What came of each arrival [n]: its status (or LOST, LATE), seconds since it was due, the answer's Retry-After
    (-1 where there was none), how late it was sent (infinite: never), and where bodies are kept
    those of all, by the number of their arrival."""

    due: NDArray[np.float64]
    which: NDArray[np.int64]
    status: NDArray[np.int16]
    seconds: NDArray[np.float64]
    retry_after: NDArray[np.int16]
    lag: NDArray[np.float64]
    bodies: dict[int, bytes] = field(default_factory=dict)

    def of(self, chosen: NDArray[np.bool_]) -> Answers:
        """Only those."""
        return Answers(
            self.due[chosen],
            self.which[chosen],
            self.status[chosen],
            self.seconds[chosen],
            self.retry_after[chosen],
            self.lag[chosen],
            self.bodies,
        )

    def percentile(self, q: float) -> float:
        """Seconds within which q % were answered; infinite where nothing was."""
        return float(np.percentile(self.seconds, q)) if len(self.seconds) else float("inf")


class _Connection(asyncio.Protocol):
    """One kept connection; `arrival` is the request that it waits for, -1 while it is idle."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._held = b""
        self.arrival = -1
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        held = self._held + data if self._held else data
        end = held.find(b"\r\n\r\n")
        if end < 0:
            self._held = held
            return
        head = held[:end].lower()
        if len(held) < end + 4 + (_number(head, b"\r\ncontent-length:") or 0):
            self._held = held
            return
        self._held = b""
        self._loop.answered(self, head, held[end + 4 :])

    def end(self) -> None:
        """Close it; what is still to be sent is dropped."""
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._loop.lost(self)


class _Loop:
    """One run: the arrivals, the pool of connections, what came of each."""

    def __init__(
        self, port: int, requests: Sequence[bytes], arrivals: Arrivals, keep: bool, enough: threading.Event
    ) -> None:
        self._port, self._requests, self._keep, self._enough = port, requests, keep, enough
        n = len(arrivals)
        self.answers = Answers(
            arrivals.due,
            arrivals.which,
            np.full(n, LATE, np.int16),
            np.full(n, np.inf),
            np.full(n, -1, np.int16),
            np.full(n, np.inf),
        )
        self._which, self._due = arrivals.which.tolist(), arrivals.due.tolist()
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening = 0
        self._waiting: deque[int] = deque()
        self._left = n
        self._done = asyncio.Event()
        self._zero = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, connections: int) -> Answers:
        await asyncio.gather(*(self._connect() for _ in range(connections)))
        self._zero = time.perf_counter()
        for arrival, when in enumerate(self._due):
            if self._enough.is_set():
                return await self._end(arrival)
            while (wait := self._zero + when - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self._ask(arrival)
            if arrival % 16 == 15:  # late already: let answers in between
                await asyncio.sleep(0)
        return await self._end(len(self._due))

    async def _end(self, sent: int) -> Answers:
        """Wait for the answers of the first `sent` arrivals; what came of them."""
        self._left -= len(self._due) - sent
        if self._left:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._done.wait(), _PATIENCE_SECONDS)
        for connection in list(self._all):
            connection.end()
        await asyncio.sleep(0)
        return self.answers.of(np.arange(len(self._due)) < sent)

    def _ask(self, arrival: int) -> None:
        if self._idle:
            self._send(self._idle.pop(), arrival)
            return
        self._waiting.append(arrival)
        if len(self._all) + self._opening < MOST_CONNECTIONS and self._opening < len(self._waiting):
            self._opening += 1
            task = asyncio.get_running_loop().create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            await self._connect()
        except OSError:
            if self._waiting:
                self._note(self._waiting.popleft(), LOST)
        finally:
            self._opening -= 1

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        self._all.add(connection)
        self._free(connection)

    def _send(self, connection: _Connection, arrival: int) -> None:
        assert connection.transport is not None
        connection.arrival = arrival
        self.answers.lag[arrival] = time.perf_counter() - self._zero - self._due[arrival]
        connection.transport.write(self._requests[self._which[arrival]])

    def _free(self, connection: _Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: _Connection, head: bytes, body: bytes) -> None:
        """A whole answer came in."""
        arrival, connection.arrival = connection.arrival, -1
        if arrival < 0:  # what nobody asked for: the connection is of no use any more
            connection.end()
            return
        status = int(head[9:12])
        if status in (429, 503):
            after = _number(head, b"\r\nretry-after:")
            self.answers.retry_after[arrival] = -1 if after is None else after
        if self._keep:
            self.answers.bodies[arrival] = body
        self._note(arrival, status)
        if b"\r\nconnection: close" in head:
            connection.end()
        else:
            self._free(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection ended: whoever waited for it has no answer."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.arrival >= 0:
            self._note(connection.arrival, LOST)
            connection.arrival = -1

    def _note(self, arrival: int, status: int) -> None:
        self.answers.status[arrival] = status
        self.answers.seconds[arrival] = time.perf_counter() - self._zero - self._due[arrival]
        self._left -= 1
        if self._left <= 0:
            self._done.set()


def _number(head: bytes, name: bytes) -> int | None:
    place = head.find(name)
    return None if place < 0 else int(head[place + len(name) :].split(b"\r\n", 1)[0])


def send(
    port: int,
    requests: Sequence[bytes],
    arrivals: Arrivals,
    *,
    connections: int = 16,
    keep: bool = False,
    enough: threading.Event | None = None,
) -> Answers:
    """Send each request when it is due, over kept connections (`connections` are there at the start, more are opened
    when all are busy). Blocks until all are answered, at most 30 s after the last was due; what is due once `enough`
    is set is not sent, and left out of the answers."""

    async def run() -> Answers:
        return await _Loop(port, requests, arrivals, keep, enough or threading.Event()).run(connections)

    gc.collect()
    gc.disable()  # a pause here would be taken for one of the service
    try:
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            return runner.run(run())
    finally:
        gc.enable()


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes to the microsecond; epoll rounds up to milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
