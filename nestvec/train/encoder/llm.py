"""An LLM behind an OpenAI-compatible endpoint: paced, asked by several threads, and never asked the same thing twice.

Named `openai:URL#MODEL[?options]` as encoders are; URL ends before `/chat/completions`. Options: `timeout`, seconds of
one try, and `deadline`, of a request with all its tries. The key is read from NESTVEC_OPENAI_API_KEY; OPENAI_API_KEY
goes to OpenAI only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nestvec.engine.encoders.openai import KIND, MAX_SECONDS, check_url, key_for
from nestvec.engine.encoders.openai_http import Api, NoJson
from nestvec.engine.encoders.options import Options
from nestvec.errors import InvalidInput
from nestvec.train.files import Journal, digest_of_json

CHAT, COMPLETIONS = "/chat/completions", "/completions"
OPTIONS = ("timeout", "deadline")
_TIMEOUT, _DEADLINE = 120.0, 600.0
_MOST_REFUSED = 5  # before any answer: then it is not the texts
_TRIES = 3  # of an answer that cannot be used
_ANOTHER = 1_000_003  # added to the seed for another try
_OLDER, _NEWER = "max_tokens", "max_completion_tokens"
_BYTES_PER_TOKEN = 4  # of English text, about; only for the estimate

T = TypeVar("T")


class Unusable(Exception):
    """An answer that came whole and does not hold what was asked for."""


@dataclass(frozen=True)
class Request(Generic[T]):
    """A body for `path`, and how its answer is read: `read` gives what is kept (JSON) or raises Unusable."""

    path: str
    body: Mapping[str, Any]
    read: Callable[[Any], T]


@dataclass
class Usage:
    """What an endpoint was asked in this run; tokens as the server counts them, 0 where it does not say."""

    requests: int = 0
    answered_before: int = 0
    unusable: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        """By name."""
        return dict(vars(self))


class Pace:
    """Lets requests pass evenly, at most so many a minute, and none in a pause that the server asked for."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def pass_one(self) -> float:
        """Wait for this request's turn. Returns the seconds that took."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)
        return turn - now

    def hold(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Llm(Api):
    """One model behind one endpoint, with the journal of its answers."""

    def __init__(self, name: str, journal: Journal, per_minute: float | None = None) -> None:
        """`name`: `openai:URL#MODEL[?options]`. Raises InvalidInput for a name that cannot be used."""
        kind, _, spec = name.partition(":")
        url, _, rest = spec.partition("#")
        model, _, text = rest.partition("?")
        if kind != KIND or not model:
            raise InvalidInput(f"expected {KIND}:URL#MODEL, as in {KIND}:http://127.0.0.1:8000/v1#model; got {name!r}")
        check_url(url)
        options = Options.parse(text, OPTIONS)
        super().__init__(url.rstrip("/"), model, key_for(url), options.number("timeout", _TIMEOUT, MAX_SECONDS))
        self.model, self.usage = model, Usage()
        self._deadline = options.number("deadline", _DEADLINE, MAX_SECONDS)
        self._journal, self._pace, self._lock = journal, Pace(per_minute), threading.Lock()
        self._newer = False

    def ask(self, request: Request[T], what: str) -> T | None:
        """The answer, from the journal if it was given before; None where the model gave nothing usable in three tries,
        or refuses this request (too long, a forbidden word). A refusal is kept, as answers are, once others came.

        Raises InvalidInput where it refuses the first five, EncoderUnavailable where it does not answer at all.
        """
        key = self.key_of(request)
        if key in self._journal.known:
            self._count(answered_before=1)
            kept: T | None = self._journal.known[key]
            return kept
        try:
            answer = self._answer(request, what)
        except InvalidInput:
            self._count(refused=1)
            if not self.usage.requests:  # it may be our settings that it refuses
                if self.usage.refused >= _MOST_REFUSED and not self.usage.answered_before:
                    raise
                return None
            answer = None
        self._journal.put(key, answer)
        return answer

    def known(self, request: Request[Any]) -> bool:
        """Whether this was answered before."""
        return self.key_of(request) in self._journal.known

    def key_of(self, request: Request[Any]) -> str:
        """What an answer depends on, in 24 digits: the address, the path and the body."""
        return digest_of_json([str(self), request.path, request.body])

    def _answer(self, request: Request[T], what: str) -> T | None:
        for attempt in range(_TRIES):
            # Another seed, or a server that caches gives the same unusable answer again.
            body = {"model": self.model, **request.body}
            if attempt:
                body["seed"] = request.body.get("seed", 0) + _ANOTHER * attempt
            try:
                reply = self._limited(request.path, body, f"{self}: {what}")
                self._count(requests=1, **_tokens(reply))
                return request.read(reply)
            except (NoJson, Unusable):
                self._count(unusable=1)
        return None

    def _limited(self, path: str, body: Mapping[str, Any], what: str) -> object:
        """The reply to `body`, whose limit is named as this server wants it: OpenAI's newer models refuse a chat with
        `max_tokens` and name the other word, which many other servers do not know."""
        newer = self._newer and path == CHAT
        try:
            return self.post(path, _renamed(body) if newer else body, what, self._deadline)
        except InvalidInput as error:
            if newer or path != CHAT or _NEWER not in str(error):
                raise
        self._newer = True
        return self.post(path, _renamed(body), what, self._deadline)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)

    def _let_pass(self) -> float:
        return self._pace.pass_one()

    def _told_to_wait(self, seconds: float) -> None:
        self._pace.hold(seconds)


@dataclass
class Estimate:
    """What is about to be asked. Tokens are guessed at 4 bytes each."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def of(cls, llm: Llm, requests: Iterable[Request[Any]]) -> Estimate:
        """Of those requests that were not answered before."""
        estimate = cls()
        for request in requests:
            if not llm.known(request):
                estimate.add(request)
        return estimate

    def add(self, request: Request[Any]) -> None:
        """Count one request: its texts, and the most that it may answer."""
        self.requests += 1
        texts = [message["content"] for message in request.body.get("messages", ())]
        texts.append(request.body.get("prompt", ""))
        self.input_tokens += sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN + 1
        self.output_tokens += int(request.body[_OLDER])

    def add_all(self, other: Estimate) -> None:
        """Count those of `other`."""
        self.requests += other.requests
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens

    def price(self, input_price: float | None, output_price: float | None) -> float | None:
        """By prices for a million tokens; None where neither is known."""
        if input_price is None and output_price is None:
            return None
        return (self.input_tokens * (input_price or 0.0) + self.output_tokens * (output_price or 0.0)) / 1e6


def _renamed(body: Mapping[str, Any]) -> dict[str, Any]:
    return {_NEWER if name == _OLDER else name: value for name, value in body.items()}


def first_choice(reply: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a server sends
    """The first of a reply's choices. Raises Unusable where there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable
    choice: dict[str, Any] = choices[0]
    return choice


def content_of(reply: Any) -> str:  # noqa: ANN401
    """The text of a chat's answer. Raises Unusable where there is none."""
    message = first_choice(reply).get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise Unusable
    return content


def _tokens(reply: Any) -> dict[str, int]:  # noqa: ANN401
    usage = reply.get("usage") if isinstance(reply, dict) else None
    found = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
    if not isinstance(usage, dict):
        return {}
    return {ours: usage[theirs] for ours, theirs in found.items() if isinstance(usage.get(theirs), int)}
