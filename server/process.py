"""One serving process: uvicorn around the application, its signals, and the order of its end."""

from __future__ import annotations

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nestvec.server.protocol import bounded_head
from nestvec.server.service import Service
from nestvec.server.settings import Settings

logger = logging.getLogger("nestvec.server")

BACKLOG = 2048


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Answer on `listener` until SIGTERM or SIGINT, then let requests in flight finish.

    Raises what made the service fail, where it cannot become ready.
    """
    service: Service = app.state.service
    server = _Server(configuration(app, settings), service, settings.drain_seconds)

    # uvicorn stops gracefully, then raises the signal again; with a handler of ours that ends in exit status 0.
    def ignore(_: int, __: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.failure is not None:
        raise service.failure


def listen(settings: Settings) -> socket.socket:
    """A listening socket at the address of the settings. Raises OSError where it is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}"
        raise OSError(error.errno, reason) from None
    return listener


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
        http=bounded_head(settings.read_seconds),
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
