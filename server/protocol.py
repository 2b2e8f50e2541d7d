"""HTTP/1.1 for uvicorn, with the one bound that it lacks: how long a request's head may take."""

from __future__ import annotations

import asyncio
from typing import Any

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Protocol
except ImportError:  # no wheel of httptools for this platform
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Protocol  # type: ignore[assignment]


class BoundedHeadProtocol(_Protocol):
    """Closes a connection whose first or next request is not wholly there, head at least, after `head_seconds`."""

    head_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as in the base class
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The clock runs while bytes came of a request that is not a request yet."""
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._cut)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self) -> None:
        self._timer = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


def bounded_head(seconds: float) -> type[asyncio.Protocol]:
    """The protocol with its bound."""
    return type("Protocol", (BoundedHeadProtocol,), {"head_seconds": seconds})
