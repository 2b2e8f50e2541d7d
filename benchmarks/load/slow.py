"""L7: clients that send ten bytes a second. They are cut, and nobody else sees them."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass

from nestvec.benchmarks.load.subject import COLLECTION
from nestvec.benchmarks.load.suite import Runner

SLOW, PER_SECOND = 200, 10
_SLACK = 5.0


@dataclass
class _Slow:
    wire: socket.socket
    text: bytes
    sent: int = 0


class SlowClients(threading.Thread):
    """Half of them take their time over the head, half over the body. `lived`: seconds until each was cut."""

    def __init__(self, port: int, seconds: float) -> None:
        super().__init__()
        self._port, self._seconds = port, seconds
        self.lived: list[float] = []
        self.begun = threading.Event()

    def run(self) -> None:
        """Connect, send a byte to each ten times a second, note who is closed."""
        head = f"POST /v1/collections/{COLLECTION}/query HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
        body = head + b"Content-Type: application/json\r\nContent-Length: 10000\r\n\r\n"
        selector, started = selectors.DefaultSelector(), time.monotonic()
        for i in range(SLOW):
            wire = socket.create_connection(("127.0.0.1", self._port))
            if i % 2:
                wire.sendall(body)
            wire.setblocking(False)
            text = b" " * 10_000 if i % 2 else head + b"X-Slow: " + b"x" * 10_000
            selector.register(wire, selectors.EVENT_READ, _Slow(wire, text))
        self.begun.set()
        while selector.get_map() and time.monotonic() - started < self._seconds:
            self._turn(selector, started)
        for key in list(selector.get_map().values()):
            key.data.wire.close()
        selector.close()

    def _turn(self, selector: selectors.BaseSelector, started: float) -> None:
        for key, _ in selector.select(1 / PER_SECOND):
            self._hear(selector, key.data, started)
        for key in list(selector.get_map().values()):
            slow: _Slow = key.data
            if slow.sent < (time.monotonic() - started) * PER_SECOND:
                try:
                    slow.sent += slow.wire.send(slow.text[slow.sent : slow.sent + 1])
                except OSError:
                    self._end(selector, slow, started)

    def _hear(self, selector: selectors.BaseSelector, slow: _Slow, started: float) -> None:
        try:
            if slow.wire.recv(65536):
                return  # a 408 comes before the end
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(selector, slow, started)

    def _end(self, selector: selectors.BaseSelector, slow: _Slow, started: float) -> None:
        selector.unregister(slow.wire)
        slow.wire.close()
        self.lived.append(time.monotonic() - started)


def beside_slow_clients(runner: Runner) -> None:
    """L7."""
    spans, report = runner.spans, runner.report
    rate, seconds = runner.half, max(spans.slow, spans.slow_cut + _SLACK + 1)
    alone = runner.open("L7", rate, seconds / 2).percentile(99)
    slow = SlowClients(runner.service.port, seconds)
    slow.start()
    slow.begun.wait(30)
    beside = runner.open("L7", rate, spans.slow_cut)
    slow.join()
    report.none("L7", "errors beside slow clients", int((beside.status != 200).sum()))
    report.most("L7", "p99 beside 200 slow clients, ms", beside.percentile(99) * 1000, 1500 * alone, time=True)
    report.least("L7", "slow clients cut", len(slow.lived), SLOW)
    report.most("L7", "the last of them after, s", max(slow.lived, default=float("inf")), spans.slow_cut + _SLACK)
    report.least("L7", "the first of them after, s", min(slow.lived, default=0.0), spans.slow_cut - 1)
