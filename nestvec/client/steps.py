"""Operations without input or output: each says what to send, and is told what came back.

An operation is a generator. It yields steps (a `Call` to send, a `Pause` to make, for streams an `Item` to hand out)
and returns its result. Two small runners carry the steps out, one blocking and one for asyncio: what an operation does,
its retries included, is written once.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from nestvec.client.problems import error_of
from nestvec.errors import NoAnswer

T = TypeVar("T")

_FIRST_DELAY_S, _LONGEST_DELAY_S, _LONGEST_RETRY_AFTER_S = 0.1, 5.0, 60.0


@dataclass(frozen=True)
class Call:
    """One request.

    `repeatable`: sending it twice does the same as sending it once, so it is sent again when its answer is lost.
    `content` is the body, or makes its pieces anew for each attempt. `save_to`: where the body of a good answer goes,
    instead of into memory. `timeout`: seconds without an answer, or without a further piece of it.
    """

    method: str
    path: str
    content: bytes | Callable[[], Iterator[bytes]] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False
    save_to: Path | None = None
    timeout: float | None = None

    def keyed(self, key: str) -> Call:
        """The same with an idempotency key: the service does it once however often it is sent."""
        return replace(self, headers={**self.headers, "Idempotency-Key": key}, repeatable=True)


@dataclass(frozen=True)
class Reply:
    """What came back: any status."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Lost:
    """No answer came; `sent`: the request may have arrived all the same. `late`: the time was up."""

    reason: str
    sent: bool
    late: bool = False


@dataclass(frozen=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True)
class Item(Generic[T]):
    """One value of a stream, for the caller."""

    value: T


Answer = Reply | Lost | None
Operation = Generator[Call | Pause, Answer, T]
Stream = Generator[Call | Pause | Item[T], Answer, None]


@dataclass(frozen=True)
class Options:
    """How calls are made: at most `retries` more attempts, all within `timeout` seconds (None: no limit)."""

    retries: int = 4
    timeout: float | None = 30.0


class Target:
    """What operations are about: the service, or one of its collections. The runner decides whether they block."""

    _options: Options
    _runner: Any

    def within(self, seconds: float | None) -> Self:
        """The same, with another time limit for its calls (None: no limit)."""
        other = copy.copy(self)
        other._options = replace(self._options, timeout=seconds)
        return other

    def ask(self, call: Call) -> Operation[Reply]:
        """The good answer to `call`, after as many attempts as are safe and allowed; else the error it stands for."""
        deadline = time.monotonic() + (math.inf if self._options.timeout is None else self._options.timeout)
        delay = _FIRST_DELAY_S
        for left in range(self._options.retries, -1, -1):
            answer = yield replace(call, timeout=_until(deadline))
            if answer is None or left == 0 or not _try_again(call, answer):
                break
            # Half of the delay is chance, so that clients refused together do not come back together.
            pause = max(_retry_after(answer), delay * random.uniform(0.5, 1.0))
            if time.monotonic() + pause >= deadline:
                break
            yield Pause(pause)
            delay = min(2 * delay, _LONGEST_DELAY_S)
        assert answer is not None, "a runner answers every call"
        if isinstance(answer, Lost):
            raise NoAnswer(f"{call.method} {call.path}: {answer.reason}", sent=answer.sent)
        if answer.status >= 400:
            raise error_of(answer.status, answer.content)
        return answer


def _until(deadline: float) -> float | None:
    return None if math.isinf(deadline) else max(0.001, deadline - time.monotonic())


def _try_again(call: Call, answer: Reply | Lost) -> bool:
    """429 and a failed connection mean that nothing was done; a 503 or a lost answer does not."""
    if isinstance(answer, Lost):
        return not answer.late and (call.repeatable or not answer.sent)
    return answer.status == 429 or (answer.status == 503 and call.repeatable)


def _retry_after(answer: Reply | Lost) -> float:
    """Seconds that the service asks for; 0 where it does not say. (It never sends the date form.)"""
    asked = answer.headers.get("retry-after", "") if isinstance(answer, Reply) else ""
    return min(float(asked), _LONGEST_RETRY_AFTER_S) if asked.isdecimal() else 0.0
