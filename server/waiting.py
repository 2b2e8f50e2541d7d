"""The socket before there is a service: it is open, and somebody answers, while modules are imported and the database
is opened. A million rows that are not in memory take seconds to open, and whoever starts processes wants to know
meanwhile that this one lives."""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import threading
from time import monotonic
from types import TracebackType

from nestvec.server.settings import Settings

BACKLOG = 2048
_MOST_GUESTS = 256  # more wait in the socket's queue, for the service
_LONGEST_HEAD = 64 * 1024
_LAST_SECONDS = 0.2  # who is inside when it closes is answered, or the connection would be reset
_LIVE = ("/livez", "/healthz")


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


class WaitingRoom:
    """A context in which a thread answers on `listener`: it lives (200), and is not ready for anything else (503).

    One request per connection. Leave it before somebody else accepts there.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._woken, self._wakes = socket.socketpair()
        self._heads: dict[socket.socket, bytes | None] = {}
        self._thread = threading.Thread(target=self._run, name="nestvec-waiting", daemon=True)

    def __enter__(self) -> WaitingRoom:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._wakes.send(b".")
        self._thread.join()
        self._selector.close()
        for guest in (*self._heads, self._woken, self._wakes):
            guest.close()

    def _run(self) -> None:
        """Until woken; then only who is inside is heard to the end."""
        until = float("inf")
        while monotonic() < until and (until == float("inf") or any(head is not None for head in self._heads.values())):
            for key, _ in self._selector.select(None if until == float("inf") else _LAST_SECONDS):
                if key.fileobj is self._woken:
                    until = monotonic() + _LAST_SECONDS
                    self._selector.unregister(self._woken)
                    if self._listener in self._selector.get_map():
                        self._selector.unregister(self._listener)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._hear(key.fileobj)

    def _accept(self) -> None:
        try:
            guest, _ = self._listener.accept()
        except OSError:
            return
        guest.setblocking(False)
        self._heads[guest] = b""
        self._selector.register(guest, selectors.EVENT_READ)
        if len(self._heads) >= _MOST_GUESTS:
            self._selector.unregister(self._listener)

    def _hear(self, guest: socket.socket) -> None:
        """Answer once the head is there; then only wait for the other side to close, so that nothing is reset."""
        try:
            piece = guest.recv(65536)
            known = self._heads[guest]
            if piece and known is not None:
                head = self._heads[guest] = known + piece
                if b"\r\n\r\n" in head or len(head) > _LONGEST_HEAD:
                    self._heads[guest] = None
                    guest.send(answer_to(head))
                    guest.shutdown(socket.SHUT_WR)
        except OSError:
            piece = b""
        if not piece:
            self._leave(guest)

    def _leave(self, guest: socket.socket) -> None:
        if len(self._heads) >= _MOST_GUESTS and self._woken in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.unregister(guest)
        del self._heads[guest]
        guest.close()


def answer_to(head: bytes) -> bytes:
    """What a request with this head is told."""
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    path = words[1].partition("?")[0] if len(words) > 1 else ""
    id = secrets.token_hex(13)
    if path in _LIVE:
        return _written("200 OK", "application/json", {"status": "ok"}, id)
    problem = {
        "type": "urn:nestvec:error:not_ready",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "the database is being opened; try again",
        "code": "not_ready",
        "instance": id,
        "errors": [],
    }
    return _written("503 Service Unavailable", "application/problem+json", problem, id)


def _written(status: str, kind: str, body: dict[str, object], id: str) -> bytes:
    text = json.dumps(body, separators=(",", ":"))
    wait = "retry-after: 1\r\n" if status.startswith("503") else ""
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(text)}\r\n{wait}"
        f"x-request-id: {id}\r\nconnection: close\r\n\r\n{text}"
    ).encode()
