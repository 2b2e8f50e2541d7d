"""One endpoint that speaks OpenAI's API: a request with its retries, and what is accepted as embeddings."""

from __future__ import annotations

import base64
import binascii
import random
import time
import weakref
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from nestvec.engine.encoders.texts import Floats
from nestvec.engine.schema import MAX_DIMS
from nestvec.errors import EncoderUnavailable, InvalidInput

if TYPE_CHECKING:
    import httpx2

MAX_REPLY_BYTES = 256 * 1024 * 1024

_CONNECT_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 16.0
_AGAIN = (408, 429, 500, 502, 503, 504)
_MOST_WORDS = 300  # characters of what a server said


class Api:
    """An address with a model behind it. Prints as both; the key is in no message. Safe to use from several threads."""

    def __init__(self, url: str, model: str, key: str | None, timeout: float) -> None:
        """`url` ends before `/embeddings`, `/chat` …; one try takes at most `timeout` seconds."""
        self._url, self._model, self._key, self._timeout = url, model, key, timeout

    def __str__(self) -> str:
        return f"{self._url}#{self._model}"

    def post(self, path: str, body: Mapping[str, object], what: str, deadline: float) -> object:
        """The JSON of the reply to `body` at `path`; tried again only where another try may help.

        All tries together, with the pauses between them, take at most `deadline` seconds. Raises InvalidInput for what
        the server refuses, Refused for a wrong key or address, NoJson where it answers with something else,
        EncoderUnavailable where it does not answer in time.
        """
        end = time.monotonic() + deadline
        pause = _FIRST_PAUSE
        while True:
            end += self._let_pass()
            try:
                return self._try(path, body, what, end)
            except _TryAgain as again:
                if again.wait is not None:
                    self._told_to_wait(again.wait)
                wait = max(again.wait or 0.0, random.uniform(pause / 2, pause))
                if time.monotonic() + wait >= end:
                    given = f"gave up within {deadline:g} s; nothing was changed, try again later"
                    raise EncoderUnavailable(f"{what}: {again}; {given}") from None
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _let_pass(self) -> float:
        """Called before every try; returns the seconds that it waited, which the deadline does not count."""
        return 0.0

    def _told_to_wait(self, seconds: float) -> None:
        """Called when the server asks for a pause."""

    @cached_property
    def _client(self) -> httpx2.Client:
        import httpx2

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client = httpx2.Client(headers=headers)
        weakref.finalize(self, client.close)
        return client

    def _try(self, path: str, body: Mapping[str, object], what: str, end: float) -> object:
        import httpx2

        seconds = max(0.001, min(self._timeout, end - time.monotonic()))
        try:
            status, headers, content = self._exchange(path, body, seconds)
        except httpx2.TimeoutException:
            raise _TryAgain(f"no answer within {seconds:.3g} s") from None
        except httpx2.TransportError as error:
            raise _TryAgain(f"no connection ({type(error).__name__}: {self._hide(str(error))})") from None
        if status in _AGAIN:
            raise _TryAgain(self._said(status, content), _retry_after(headers.get("Retry-After")))
        if status != 200:
            self._refused(path, status, content, what)
        try:
            return msgspec.json.decode(content)
        except msgspec.DecodeError:
            raise NoJson(f"{what}: the answer is no JSON; is {self._url} the address of an API?") from None

    def _exchange(self, path: str, body: Mapping[str, object], seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body) of one request. The whole of it takes `seconds`, not each of its parts."""
        import httpx2

        end = time.monotonic() + seconds
        parts, size = [], 0
        limits = httpx2.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds))
        with self._client.stream("POST", f"{self._url}{path}", json=body, timeout=limits) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the answer came too slowly")
                if size > MAX_REPLY_BYTES:
                    raise EncoderUnavailable(f"{self}: the answer is over {MAX_REPLY_BYTES >> 20} MiB")
            return response.status_code, response.headers, b"".join(parts)

    def _refused(self, path: str, status: int, content: bytes, what: str) -> None:
        said = self._said(status, content)
        if status in (400, 413, 422):
            raise InvalidInput(f"{what}: {said}")
        hint = {
            401: "; set NESTVEC_OPENAI_API_KEY to a key of this server",
            403: "; the key in NESTVEC_OPENAI_API_KEY may not do this",
            404: f"; the URL must end before {path}, and the model be one of the server's",
        }.get(status, "")
        raise Refused(f"{what}: {said}{hint}")

    def _said(self, status: int, content: bytes) -> str:
        """The status and the server's own words, in one line and without our key."""
        words = " ".join(_message(content).split())
        return f"the server answered {status}: {self._hide(words)[:_MOST_WORDS]}"

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class Endpoint(Api):
    """Where vectors come from."""

    def embed(self, body: Mapping[str, object], positions: Sequence[int], dims: int | None, deadline: float) -> Floats:
        """f32 [len(positions), dims], as the server gives them; dims None: whatever length it gives.

        `positions` are the texts' places in the caller's list, for messages. Raises as `post` does, and
        EncoderUnavailable for an answer that does not hold these vectors.
        """
        what = f"{self}: texts {positions[0]} to {positions[-1]}"
        reply = self.post("/embeddings", body, what, deadline)
        return _vectors(reply, len(positions), dims, what)


class Refused(EncoderUnavailable):
    """The server answered that it will not or cannot do this at all: another try gives the same."""


class NoJson(EncoderUnavailable):
    """The server answered, but with no JSON."""


class _TryAgain(Exception):
    """A try that failed in a way that another may not, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def _message(content: bytes) -> str:
    """The words of an error, in OpenAI's shape, problem+json, or as plain text."""
    try:
        body: Any = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode("utf-8", "replace")
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After of seconds or of a date; None where there is none that can be read."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _vectors(reply: object, count: int, dims: int | None, what: str) -> Floats:
    """The vectors in the order of the texts: by `index`, each there once, all of one length."""
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise EncoderUnavailable(f"{what}: the answer has no list of embeddings; is this an embeddings API?")
    if len(data) != count or sorted(_index(item, i) for i, item in enumerate(data)) != list(range(count)):
        raise EncoderUnavailable(f"{what}: expected {count} embeddings, one for each text, got {len(data)} or others")
    vectors = [np.empty(0, np.float32)] * count
    for i, item in enumerate(data):
        vectors[_index(item, i)] = _vector(item.get("embedding"), what)
    lengths = {len(vector) for vector in vectors}
    wanted = dims if dims is not None else max(lengths)
    if lengths != {wanted} or not 1 <= wanted <= MAX_DIMS:
        expected = f"{dims} dims" if dims is not None else f"one length of at most {MAX_DIMS} dims"
        hint = "; it cuts no vectors, or its model was exchanged" if dims is not None else ""
        raise EncoderUnavailable(f"{what}: expected vectors of {expected}, got {sorted(lengths)[-1]}{hint}")
    return np.stack(vectors)


def _index(item: Mapping[str, Any], place: int) -> int:
    index = item.get("index", place)
    return index if isinstance(index, int) else -1


def _vector(embedding: object, what: str) -> Floats:
    """f32 [dims] from base64 of little-endian float32, or from a list of numbers: some servers know only lists."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
        vector = np.asarray(embedding, np.float64)
        if vector.ndim == 1:
            return vector.astype(np.float32)
    except (ValueError, TypeError, binascii.Error):
        pass
    raise EncoderUnavailable(f"{what}: an embedding is neither base64 of float32 nor a list of numbers")
