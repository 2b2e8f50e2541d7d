"""HTTP/1.1 for uvicorn, with what it lacks: a bound on the time that a request's head may take, and a door that
refuses before anything is made for a request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from nestvec.server.exchange import LET_IN

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Protocol
except ImportError:  # no wheel of httptools for this platform: no door, the gate alone
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Protocol  # type: ignore[assignment]

if TYPE_CHECKING:
    from nestvec.server.door import Door


class GuardedProtocol(_Protocol):
    """Closes a connection whose first or next request is not wholly there, head at least, after `head_seconds`; asks
    the door about each request whose head is there."""

    head_seconds = 30.0
    door: Door | None = None
    _timer: asyncio.TimerHandle | None = None
    _refused, _between = False, False  # the request whose body comes in was refused; it is all in, and no next began

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as in the base class
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._between = False
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.door is None or self.working() or not self.parser.should_keep_alive():
            super().on_headers_complete()
            return
        answer = self.door.refusal(self.url, self.headers)
        if answer is not None:
            self._refused = True
            self.transport.write(answer)
            return
        super().on_headers_complete()
        if self.working():  # its task begins in the loop's next turn; until then it must not be forgotten
            self.door.enter()
            cast("dict[str, Any]", self.scope)[LET_IN] = True
            if self.door.closing:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()
            return
        self._refused, self._between = False, True
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        if self.door is not None and cast("dict[str, Any]", self.cycle.scope).pop(LET_IN, False):
            self.door.leave()  # something before the gate failed
        super().on_response_complete()

    def working(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """The clock runs while bytes came of a request that is not a request yet."""
        if self.working() or self._between:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._cut)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self) -> None:
        self._timer = None
        if not self.working() and not self.transport.is_closing():
            self.transport.close()


def guarded(head_seconds: float, door: Door) -> type[asyncio.Protocol]:
    """The protocol with its bound and its door."""
    return type("Protocol", (GuardedProtocol,), {"head_seconds": head_seconds, "door": door})
