"""A closed loop of HTTP requests over keep-alive connections: the least Python that can count answers and time them."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PIECE = 1 << 18


@dataclass(frozen=True)
class Figures:
    """Of one cell: requests per second, and the median and 99th percentile of their times in milliseconds."""

    per_second: float
    p50: float
    p99: float


class _Connection:
    """One keep-alive connection: sends the next of its requests as soon as the last is answered."""

    def __init__(self, port: int, requests: Sequence[bytes], first: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests, self._next = requests, first
        self._held = b""
        self.began = 0.0

    def send(self) -> None:
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Read what is there; whether the answer is whole. Raises RuntimeError for any status but 200."""
        piece = self.socket.recv(_PIECE)
        if not piece:
            raise RuntimeError("the server closed the connection")
        self._held += piece
        head, separator, body = self._held.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"expected 200, got {self._held[:500]!r}")
        self._held = b""
        return True


def _length(head: bytes) -> int:
    place = head.lower().index(b"content-length:") + 15
    return int(head[place:].split(b"\r\n", 1)[0])


def measure(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Figures:
    """Send `requests` over and over on so many connections for so long; each connection waits for its answer."""
    selector = selectors.DefaultSelector()
    opened = [_Connection(port, requests, 37 * i) for i in range(connections)]
    for connection in opened:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send()
    times: list[float] = []
    start = time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(1):
            connection = key.data
            if connection.answered():
                times.append(time.perf_counter() - connection.began)
                connection.send()
    for connection in opened:
        connection.socket.close()
    selector.close()
    middle, late = np.percentile(times, [50, 99]) * 1000
    return Figures(len(times) / (now - start), float(middle), float(late))


def request(path: str, body: bytes, content_type: str, accept: str) -> bytes:
    """A whole POST as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
