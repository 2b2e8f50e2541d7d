"""Admission control: how many requests, and how many bytes of their bodies, one process holds at a time.

What is refused is refused before its body is read, so that an overload costs little. Who refuses some for longer than a
second keeps the queue of the others short: no more are held than were answered in a tenth of that second, but enough to
keep the threads busy. Quick searches wait for 255 others; slow ones would for seconds. Only the event loop calls this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic

from nestvec.server.errors import RequestProblem
from nestvec.server.settings import Settings

_PER_THREAD = 8  # requests that are held for each thread at least: enough for full batches
_CROWDED_SECONDS = 1.0
_WAIT_SECONDS = 0.1


class Admission:
    """Counts the requests held. `working`: body in, being answered; `uploading`: body on its way; `coming`: let in at
    the door (door.py), not at the gate yet.

    The two are bounded apart: clients who send slowly must not shut out those who send at once.
    """

    def __init__(self, settings: Settings, refused: Callable[[str], None]) -> None:
        """`refused` is told the reason of every refusal."""
        self._refused = refused
        self._most_working, self._most_uploading = settings.max_in_flight, settings.max_uploads
        self._most_bytes = settings.max_in_flight_mb * 1024 * 1024
        self._most_per_key = settings.max_in_flight_per_key
        self._steady = self._most_working  # of `working` and `coming`, while it is crowded
        self._least = min(self._most_working, _PER_THREAD * settings.threads)
        self._crowded_until, self._counted_from, self._answered = 0.0, 0.0, 0
        self.working, self.uploading, self.coming, self.bytes = 0, 0, 0, 0
        self._by_key: Counter[str] = Counter()

    def start_upload(self) -> None:
        """Count a request whose body is on its way; 503 where there is no room for one more."""
        self._check_work()
        if self.uploading >= self._most_uploading:
            raise self._refusal("busy", f"{self.uploading} bodies are on their way; try again")
        self.uploading += 1

    def start_work(self) -> None:
        """Count a request whose body is in; 503 where there is no room, or too many were let in at once."""
        self._check_work()
        self.working += 1

    def end_work(self) -> None:
        """Uncount what `start_work` counted."""
        self.working -= 1
        self._answered += 1

    @property
    def full(self) -> bool:
        """Whether one request more would be refused."""
        held = self.working + self.coming
        return held >= self._most_working or (held >= self._steady and monotonic() < self._crowded_until)

    def refuse(self) -> RequestProblem:
        """The problem of a request that finds it full; noted as one refused."""
        now = monotonic()
        if now >= self._crowded_until:
            self._steady, self._counted_from, self._answered = self._most_working, now, 0
        elif now - self._counted_from >= _CROWDED_SECONDS:
            share = int(self._answered * _WAIT_SECONDS / (now - self._counted_from))
            self._steady = min(self._most_working, max(self._least, share))
            self._counted_from, self._answered = now, 0
        self._crowded_until = now + _CROWDED_SECONDS
        return self._refusal("busy", f"{self.working} requests are being answered; try again")

    def _check_work(self) -> None:
        if self.full:
            raise self.refuse()

    def add_bytes(self, count: int) -> None:
        """Hold `count` more bytes; 503 where there is no room. Alone, one body is always let in."""
        if self.bytes and self.bytes + count > self._most_bytes:
            raise self._refusal("bytes", f"{self.bytes} bytes of request bodies are held; try again")
        self.bytes += count

    def crowded(self, key: str) -> bool:
        """Whether an API key has as many requests in flight as it may."""
        return self._most_per_key is not None and self._by_key[key] >= self._most_per_key

    def enter_key(self, key: str) -> None:
        """Count a request of an API key; 429 where the key has too many."""
        if self.crowded(key):
            raise self._refusal("key", f"this key has {self._by_key[key]} requests in flight; try again")
        self._by_key[key] += 1

    def _refusal(self, reason: str, detail: str) -> RequestProblem:
        self._refused(reason)
        status, code = (429, "too_many_requests") if reason == "key" else (503, "busy")
        return RequestProblem(status, code, detail, headers={"Retry-After": "1"})

    def leave_key(self, key: str) -> None:
        """Uncount what `enter_key` counted."""
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]
