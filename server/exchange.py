"""One request on its way through the gate: its id, its body as it comes in, its answer as it goes out."""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Literal

from starlette.types import Message, Receive, Scope, Send

from nestvec.server.admission import Admission
from nestvec.server.errors import REQUEST_ID, RequestProblem, invalid
from nestvec.server.settings import Settings

if TYPE_CHECKING:
    from nestvec.server.auth import Identity

EXCHANGE = "nestvec.exchange"  # key in the ASGI scope
LET_IN = "nestvec.let_in"  # key in the ASGI scope: the door has counted it as coming
NO_ROUTE = "none"
SLOWEST = 64 * 1024
"""Bytes per second that a body must come in with, once `read_seconds` are over."""

_RUN = secrets.token_hex(8)  # of this process: with a number behind it, an id that no other process gives out
_IDS = (f"{_RUN}{number:010x}" for number in count(1))
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_COLLECTION = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SMALL = 64 * 1024  # what is left of a refused body this small is read over, so that the connection can be used again

_LINGER_SECONDS, _IDLE_SECONDS = 2.0, 0.25


class Exchange:
    """What is known of one request. `receive` and `send` stand between the server and the application."""

    __slots__ = (
        "_admission", "_declared", "_held", "_loop", "_place", "_receive", "_seconds", "_send", "_settings", "_since",
        "_timed", "bytes_in", "bytes_out", "clock", "collection", "headers", "id", "identity", "limit", "method",
        "reading", "route", "scope", "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, admission: Admission) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self._settings, self._admission = settings, admission
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.method: str = scope["method"]
        given = self.headers.get(b"x-request-id", b"")
        self.id = id_of(given)
        scope[EXCHANGE], scope[REQUEST_ID] = self, self.id
        self.identity: Identity | None = None
        self.route, self.collection = NO_ROUTE, ""
        self.status, self.bytes_in, self.bytes_out = 0, 0, 0
        if scope.pop(LET_IN, False):
            admission.coming -= 1
        self._place: Literal["", "uploading", "working"] = ""
        self._held, self._timed = 0, True
        self.limit, self._seconds = settings.max_body_bytes, settings.request_seconds
        self.clock: asyncio.Timeout | None = None
        self._declared = _length(self.headers)
        self.reading = self._declared != 0

    def admit(self) -> None:
        """Take a place. 503 where there is none."""
        if self.reading:
            self._admission.start_upload()
            self._place = "uploading"
            self._hold(min(self._declared or 0, self.limit))
        else:
            self._start_work()

    def start(self, clock: asyncio.Timeout) -> None:
        """Hold it to a clock that has just been entered."""
        self.clock = clock
        self._set_clock()

    def check_head(self) -> None:
        """Judge the request by its headers: 415 for a compressed body, 422 for a wrong X-Timeout-Ms."""
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise RequestProblem(415, "unsupported_encoding", "send the body as it is, without Content-Encoding")
        wanted = self.headers.get(b"x-timeout-ms")
        if wanted is not None:
            if not (wanted.isdigit() and len(wanted) <= 9 and int(wanted)):
                raise invalid("header X-Timeout-Ms: expected a whole number of milliseconds, 1 or more")
            self.shorten(int(wanted))

    def enter(self, route: str, collection: str | None, *, timed: bool, streamed: bool) -> None:
        """Say which route it is for: the bound of its body, and whether a deadline ends it, depend on that. 413."""
        self.route, self._timed = route, timed
        if collection is not None and _COLLECTION.fullmatch(collection):
            self.collection = collection
        if streamed:
            self.limit = self._settings.max_upload_bytes
            self._release_bytes()  # what is read in pieces is never held together
        self._check_size(self._declared or 0)
        if not timed:
            self._set_clock()

    def shorten(self, milliseconds: int) -> None:
        """End it this long after its body is in, if that is sooner than it would end anyway."""
        self._seconds = min(self._seconds, milliseconds / 1000)
        self._set_clock()

    async def receive(self) -> Message:
        """The next piece of the body, counted. 413, 503."""
        message = await self._receive()
        if self.reading and message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.bytes_in += size
            self._check_size(self.bytes_in)
            if self._declared is None and self.limit == self._settings.max_body_bytes:
                self._hold(size)
            if not message.get("more_body", False):
                self._body_is_in()
            self._set_clock()
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the request id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._answer_begins()
            added = [(b"x-request-id", self.id.encode())]
            if self._much_is_left():
                added.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", ()), *added]
        else:
            self.bytes_out += len(message.get("body", b""))
            if self._much_is_left() and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def leave(self) -> None:
        """Give everything back."""
        self._release_bytes()
        if self._place == "working":
            self._admission.end_work()
        elif self._place == "uploading":
            self._admission.uploading -= 1
        self._place = ""

    @property
    def seconds(self) -> float:
        """How long it may take, from the end of its body."""
        return self._seconds

    def _body_is_in(self) -> None:
        self.reading = False
        self._since = self._loop.time()
        if self._place == "uploading":
            self._admission.uploading -= 1
            self._place = ""
            self._start_work()

    def _start_work(self) -> None:
        self._admission.start_work()
        self._place = "working"

    def _answer_begins(self) -> None:
        """From now on it may take as long as a body: the deadline was kept, and half an answer is of no use.

        A problem may be told after the clock has ended, and is short.
        """
        clock = self.clock if self._timed and not self.reading and self.status < 400 else None
        if clock is not None and not clock.expired():
            clock.reschedule(self._loop.time() + max(self._seconds, self._settings.read_seconds))

    def _much_is_left(self) -> bool:
        """Whether so much of the body is still to come that the connection is better closed than read on."""
        left = _SMALL + 1 if self._declared is None else self._declared - self.bytes_in
        return self.reading and left > _SMALL

    async def _linger(self) -> None:
        """Read over what is still being sent, for a moment. A connection that is closed on unread bytes is reset, and
        who is busy sending may never see why."""
        end = self._loop.time() + _LINGER_SECONDS
        with suppress(TimeoutError):
            while self._loop.time() < end:
                async with asyncio.timeout(_IDLE_SECONDS):
                    message = await self._receive()
                if not message.get("more_body", False):
                    return

    def _check_size(self, size: int) -> None:
        if size > self.limit:
            detail = f"the body is larger than {self.limit} bytes; send less in one request"
            raise RequestProblem(413, "body_too_large", detail)

    def _hold(self, size: int) -> None:
        self._admission.add_bytes(size)
        self._held += size

    def _release_bytes(self) -> None:
        self._admission.bytes -= self._held
        self._held = 0

    def _set_clock(self) -> None:
        """Slow bodies are cut; then the deadline counts, for routes that have one."""
        if self.clock is None:
            return
        if self.reading:
            self.clock.reschedule(self._since + self._settings.read_seconds + self.bytes_in / SLOWEST)
        else:
            self.clock.reschedule(self._since + self._seconds if self._timed else None)


def shorten(scope: Scope, milliseconds: int) -> None:
    """Let a route shorten the deadline of its request: `timeout_ms` of a query."""
    exchange: Exchange = scope[EXCHANGE]
    exchange.shorten(milliseconds)


def id_of(given: bytes) -> str:
    """A request's id: what its X-Request-Id says where that is one, else a new one."""
    return given.decode() if _REQUEST_ID.fullmatch(given) else next(_IDS)


def _length(headers: dict[bytes, bytes]) -> int | None:
    """Bytes that the body is said to have, None where it comes in chunks."""
    if b"transfer-encoding" in headers:
        return None
    declared = headers.get(b"content-length", b"0")
    return int(declared[:20]) if declared.isdigit() else None
