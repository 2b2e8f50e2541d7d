"""The gate: what every request passes before a route sees it. Id, admission, key, head; then the route's scope, and the
body as the route reads it; last resort, log and metrics on the way out.

Before it there is only the door (door.py), which refuses small requests more cheaply while there is no room. Pure ASGI,
outermost, and closed by default: a route added tomorrow needs a key without anybody remembering it.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from nestvec.server.errors import RequestProblem, reply
from nestvec.server.exchange import NO_ROUTE, Exchange
from nestvec.server.logs import Line, RequestLog
from nestvec.server.service import Service

logger = logging.getLogger("nestvec.server")

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/docs", "/openapi.json"})
ALWAYS_ANSWERED = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})
_CLIENT_LEFT = 499


class Gate:
    """Middleware that lets a request in, or answers it with a problem."""

    def __init__(self, app: ASGIApp, service: Service, requests: RequestLog | None = None) -> None:
        """`requests`: where one line per request goes."""
        self.app, self._service, self._requests = app, service, requests
        self.admission = service.admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one ASGI connection on; only HTTP is gated (there are no websockets)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = Exchange(scope, receive, send, self._service.settings, self.admission)
        self._service.metrics.in_flight.inc()
        try:
            if self._service.tracing.on:
                await self._traced(exchange)
            else:
                await self._held(exchange)
        finally:
            self._service.metrics.in_flight.dec()
            self._note(exchange, time.perf_counter() - start)

    async def _traced(self, exchange: Exchange) -> None:
        tracing = self._service.tracing
        with tracing.request(exchange.method, exchange.headers) as span:
            await self._held(exchange)
            tracing.finish(span, exchange.method, exchange.route, exchange.status, exchange.id)

    async def _held(self, exchange: Exchange) -> None:
        """Hold the request to its clock, and turn whatever goes wrong into an answer."""
        try:
            async with asyncio.timeout(None) as clock:
                exchange.start(clock)
                await self._pass(exchange)
        except RequestProblem as problem:
            await _answer(exchange, problem)
        except ClientDisconnect:
            exchange.status = exchange.status or _CLIENT_LEFT
        except TimeoutError as error:
            if exchange.clock is not None and exchange.clock.expired():
                await self._late(exchange)
            else:
                await _unexpected(exchange, error)
        except Exception as error:
            await _unexpected(exchange, error)
        finally:
            exchange.leave()

    async def _pass(self, exchange: Exchange) -> None:
        scope = exchange.scope
        path: str = scope["path"]
        if path not in ALWAYS_ANSWERED:
            exchange.admit()
        if path in OPEN_PATHS:
            await self.app(scope, exchange.receive, exchange.send)
            return
        key = self._identify(exchange)
        exchange.check_head()
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            if key is not None:
                self.admission.leave_key(key)

    def _identify(self, exchange: Exchange) -> str | None:
        """Find out whose request it is; the name of the key that it was counted for."""
        scope = exchange.scope
        client, server = scope.get("client") or ("", 0), scope.get("server") or ("", 0)
        try:
            exchange.identity = self._service.auth.identify(exchange.headers, client[0], server[0])
        except RequestProblem as problem:
            self._service.metrics.refused("host" if problem.status == 403 else "auth")
            raise
        if exchange.identity is None:
            return None
        self.admission.enter_key(exchange.identity.name)
        return exchange.identity.name

    async def _late(self, exchange: Exchange) -> None:
        if exchange.reading:
            detail = "the body came in too slowly; send it at once, in smaller requests"
            await _answer(exchange, RequestProblem(408, "body_timeout", detail, headers={"Connection": "close"}))
            return
        unsure = "" if exchange.method == "GET" else "; if it writes, the outcome is unknown: read before you repeat it"
        detail = f"not done within its deadline of {exchange.seconds * 1000:g} ms{unsure}"
        await _answer(exchange, RequestProblem(504, "deadline_exceeded", detail))

    def _note(self, exchange: Exchange, seconds: float) -> None:
        method = exchange.method if exchange.route != NO_ROUTE else "any"  # a client may invent methods
        self._service.metrics.answered(exchange.route, method, exchange.status, seconds)
        if self._requests is None:
            return
        milliseconds = round(seconds * 1000, 3)
        self._requests.note([Line(exchange.id, method, exchange.route, exchange.status, milliseconds, exchange.bytes_in,
                                  exchange.bytes_out, exchange.collection)])  # fmt: skip


async def _answer(exchange: Exchange, problem: RequestProblem) -> None:
    """Answer with a problem, unless an answer has begun: that one is cut off."""
    if not exchange.status:
        await reply(problem, exchange.id)(exchange.scope, exchange.receive, exchange.send)


async def _unexpected(exchange: Exchange, error: Exception) -> None:
    logger.error("request %s failed", exchange.id, exc_info=error)
    if exchange.status:
        raise error
    hidden = RequestProblem(500, "internal", "unexpected error; the server log has it under this instance")
    await _answer(exchange, hidden)
