"""One serving process: uvicorn around the application, its signals, and the order of its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nestvec.server.protocol import GuardedProtocol, guarded
from nestvec.server.service import Service
from nestvec.server.settings import Settings
from nestvec.server.waiting import BACKLOG

logger = logging.getLogger("nestvec.server")

_ACCEPTED_AT_ONCE = 16
"""Connections accepted in one turn of the event loop. uvloop accepts one for each listening descriptor, and under
overload, when a turn takes 10 ms, a new connection would wait behind hundreds of others for seconds."""
_SWITCH_SECONDS = 1e-3
"""For so long at most, in place of 5 ms, another thread's Python (a job's, a write's) keeps the event loop waiting."""

_LAST_TURNS, _TURN_SECONDS = 5, 0.02


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Answer on `listener` until SIGTERM or SIGINT, then let requests in flight finish.

    Raises what made the service fail, where it cannot become ready.
    """
    service: Service = app.state.service
    server = _Server(configuration(app, settings), service, settings.drain_seconds)

    # For signals before uvicorn listens to them; and it stops gracefully, then raises the signal again: with a handler
    # of ours that ends in exit status 0.
    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    sys.setswitchinterval(_SWITCH_SECONDS)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(descriptors(listener))  # uvicorn closes them all when it stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.failure is not None:
        raise service.failure


def descriptors(listener: socket.socket) -> list[socket.socket]:
    """The listening socket and its duplicates, never blocking, not for a moment.

    Whether it blocks is the open file's, shared by all duplicates in all processes. `dup` sets it as its own socket
    object believes it to be, and one made from an inherited descriptor believes that it blocks: another worker, woken
    for a connection that was taken meanwhile, then waited in `accept` with all that it served.
    """
    listener.setblocking(False)
    return [listener, *(listener.dup() for _ in range(_ACCEPTED_AT_ONCE - 1))]


class _Server(uvicorn.Server):
    """Says that it is not ready any more before it closes its socket."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain = service, drain_seconds
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stop_at is not None:  # the second signal: stop at once, and with SIGINT without waiting for requests
            super().handle_exit(sig, frame)
            return
        self._service.stopping = True
        self._captured_signals.append(sig)
        self._stop_at = time.monotonic() + self._drain
        if not self._drain:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Read what was sent already, and let each answer end its connection (protocol.py): when the others are closed
        they are idle, and no request is reset that a client sent in time."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol) and connection.working():
                connection.shutdown()
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(_TURN_SECONDS)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._service.failure is not None:
            return True
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return True
        return await super().on_tick(counter)


def configuration(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=guarded(settings.read_seconds, app.state.door, app.state.lane),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        backlog=BACKLOG,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
