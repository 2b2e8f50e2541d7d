"""HTTP/1.1 for uvicorn, with what it lacks: a bound on the time that a request's head may take, and a door that
refuses before anything is made for a request, and a lane for those that need nothing made."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from nestvec.server.exchange import LET_IN

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Protocol
except ImportError:  # no wheel of httptools for this platform: no door, the gate alone
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Protocol  # type: ignore[assignment]

if TYPE_CHECKING:
    from nestvec.server.door import Door
    from nestvec.server.lane import Head, Lane


class GuardedProtocol(_Protocol):
    """Closes a connection whose first or next request is not wholly there, head at least, after `head_seconds`; asks
    the door about each request whose head is there, and the lane about each that is there as a whole."""

    head_seconds = 30.0
    door: Door
    lane: Lane
    _timer: asyncio.TimerHandle | None = None
    _refused, _between = False, False  # the request whose body comes in was refused; it is all in, and no next began
    _head: Head | None = None  # of a request that the lane may answer
    _kept = b""  # its body
    _whole, _in_lane = False, False  # that body is all in; the lane has taken it
    _clean = True  # the parser is between two requests
    _unparsed = b""  # all of the request that the lane has taken, where the parser has not seen it
    _plain = False  # neither door nor lane are to be asked about the next request
    _active = 0.0  # when the last answer was written here, by the loop's clock

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as in the base class
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._between = False
        if self._in_lane:  # the client does not wait for its answers; they still come in order
            self.lane.finish_all()
        clean = self._clean and not self.working()
        if not (clean and self._met_before(data)):
            super().data_received(data)
            if self._head is not None:
                self._offer(self._head)
                if clean and self._in_lane:
                    self.lane.remember(data, self._head, len(self._kept))
        self._watch()

    def _met_before(self, data: bytes) -> bool:
        """Answer a whole request, or let it in, whose head came before, byte for byte, on whatever connection: what the
        parser would say of it is known."""
        end = data.find(b"\r\n\r\n") + 4
        head = self.lane.known(data[:end], len(data) - end)
        if head is None or self.transport.is_closing():
            return False
        answer = self.door.refusal_of(head.headers)
        if answer is not None:
            self._between = True
            self._refuse(answer)
            self._keep_alive()
            return True
        self._plain = not self.lane.take(self, head, data[end:])
        if self._plain:
            return False
        self._head, self._unparsed, self._in_lane = head, data, True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._in_lane:
            self.lane.finish_all()
        super().shutdown()

    def on_message_begin(self) -> None:
        self._between, self._clean = False, False
        if self._head is not None:  # and the next one is here already
            self.go_ordinary_way()
        # The base class makes the ASGI scope here, which only requests on the ordinary way need.
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        plain, self._plain = self._plain, False
        if self.working() or not self.parser.should_keep_alive():
            self._begin()
            return
        if plain:
            self._enter()
            return
        answer = self.door.refusal(self.url, self.headers)
        if answer is not None:
            self._refused = True
            self._refuse(answer)
            return
        if self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1":
            self._head, self._kept, self._whole = self.lane.head(self.url, self.headers), b"", False
        if self._head is None:
            self._enter()

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        if self.flow.write_paused:  # 64 KiB of refusals are not read: more would only take memory
            self.transport.abort()

    def _enter(self) -> None:
        """Begin the ordinary way of a request that the door has let in."""
        self._begin()
        if self.working():  # its task begins in the loop's next turn; until then it must not be forgotten
            self.door.enter()
            cast("dict[str, Any]", self.scope)[LET_IN] = True
            if self.door.closing:
                self.cycle.keep_alive = False

    def _begin(self) -> None:
        url, headers, waits = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, waits
        self.scope["headers"] = headers
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._head is not None:
            self._kept += body
        elif not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._clean = True
        if self._head is not None:
            self._whole = True
        elif self._refused:
            self._refused, self._between = False, True
            self._keep_alive()
        else:
            super().on_message_complete()

    def _offer(self, head: Head) -> None:
        """Hand what came to the lane, if it is a whole request and the lane wants it."""
        if self._whole and not self.transport.is_closing() and self.lane.take(self, head, self._kept):
            self._in_lane = True
        else:
            self.go_ordinary_way()

    def go_ordinary_way(self) -> None:
        """Begin the request that was kept for the lane as if there were none."""
        body, self._head, self._kept, self._in_lane = self._kept, None, b"", False
        unparsed, self._unparsed = self._unparsed, b""
        if self.transport.is_closing():
            return
        if unparsed:
            self._plain = True
            super().data_received(unparsed)
            return
        self._enter()
        if body:
            super().on_body(body)
        if self._whole:
            super().on_message_complete()

    def answered_in_lane(self, head: bytes, body: bytes) -> None:
        """Answer the request that the lane has taken with a 200; `head` holds its last headers and the empty line."""
        self._head, self._kept, self._unparsed, self._in_lane, self._between = None, b"", b"", False, True
        if self.transport.is_closing():
            return
        self.transport.write(b"".join((_first_lines(tuple(self.server_state.default_headers)), head, body)))
        self.server_state.total_requests += 1
        self._keep_alive()

    def _keep_alive(self) -> None:
        """From now on the connection is idle. Its clock goes on where there is one: to set it anew for every answer
        took a quarter of a refusal."""
        self._active = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wake_in(self.timeout_keep_alive)

    def _wake_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        left = self._active + self.timeout_keep_alive - self.loop.time()
        if self.working():
            return  # its answer sets the clock
        if left > 0:
            self._wake_in(left)
        else:
            super().timeout_keep_alive_handler()

    def on_response_complete(self) -> None:
        if cast("dict[str, Any]", self.cycle.scope).pop(LET_IN, False):
            self.door.leave()  # something before the gate failed
        super().on_response_complete()

    def working(self) -> bool:
        """Whether a request is being answered."""
        return self._head is not None or (self.cycle is not None and not self.cycle.response_complete)

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


@lru_cache(maxsize=4)
def _first_lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """How a 200 begins; the date among the headers changes once a second."""
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%s: %s\r\n" % header for header in headers)


def guarded(head_seconds: float, door: Door, lane: Lane) -> type[asyncio.Protocol]:
    """The protocol with its bound, its door and its lane."""
    return type("Protocol", (GuardedProtocol,), {"head_seconds": head_seconds, "door": door, "lane": lane})
