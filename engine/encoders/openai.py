"""`openai:URL#MODEL[?options]`: any endpoint that speaks OpenAI's embeddings API, such as nestvec's own.

URL ends before `/embeddings`: `openai:http://127.0.0.1:8765/v1#static`. Options: `dims` or `granularities` (whose last
is the length) ask the server for shorter vectors; `query_prompt` and `document_prompt` are put before the texts;
`input_type=1` tells the server which of both a text is; `batch`: texts a request; in seconds, `timeout`: one try,
`deadline`: a request for documents with all its tries, `query_deadline`: one for queries. The key is read from
NESTVEC_OPENAI_API_KEY; OPENAI_API_KEY goes to OpenAI only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

import numpy as np

from nestvec.engine.encoders.fingerprint import with_sketch
from nestvec.engine.encoders.openai_http import Endpoint
from nestvec.engine.encoders.options import Options
from nestvec.engine.encoders.texts import Floats, batches, check_texts, unit_rows
from nestvec.errors import EncoderUnavailable, InvalidInput

KIND = "openai"
OPTIONS = (
    "dims", "granularities", "query_prompt", "document_prompt", "input_type", "batch", "timeout", "deadline",
    "query_deadline",
)  # fmt: skip
FORMAT = 1
KEY, OPENAI_KEY, OPENAI_HOST = "NESTVEC_OPENAI_API_KEY", "OPENAI_API_KEY", "api.openai.com"

MAX_BATCH, MAX_SECONDS = 2048, 3600
MAX_TEXT_CHARS = 200_000
"""Of one text, and of all texts of a request: beyond what any model reads. Long documents need chunking."""
_BATCH = 128
_TIMEOUT, _DEADLINE, _QUERY_DEADLINE = 60.0, 300.0, 15.0  # a query that waits holds one of a service's few threads
_PROBES = (
    "The members of a ZIP archive are read one by one.",
    "Photosynthesis turns light into sugar.",
    "How do I reset my password?",
    "Rivers of the northern hemisphere freeze in January.",
)
_SKETCH_DIMS = 16  # numbers of each probe's vector in the fingerprint


@dataclass(frozen=True)
class Wanted:
    """What a name asks for: the model, and how to ask it."""

    model: str
    dims: int | None
    granularities: tuple[int, ...]
    query_prompt: str
    document_prompt: str
    input_type: bool
    batch: int
    deadline: float
    query_deadline: float


class OpenAIEncoder:
    """One model behind one endpoint. The vectors' length, and the fingerprint, come from what it answers.

    Equal texts give vectors as equal as the server makes them. Safe to call from several threads.
    """

    def __init__(self, name: str, endpoint: Endpoint, wanted: Wanted) -> None:
        self.name = name
        self._endpoint, self._wanted = endpoint, wanted
        self._probes = self._embed(list(_PROBES), query=False, dims=wanted.dims, deadline=wanted.query_deadline)
        self.dims = self._probes.shape[1]
        self.granularities = (*(dims for dims in wanted.granularities if dims < self.dims), self.dims)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's name, the length, the prompts, and a sketch of vectors: another model behind the same URL has
        another one, the same model behind another URL has not."""
        wanted = self._wanted
        facts = [KIND, FORMAT, wanted.model, self.dims, wanted.query_prompt, wanted.document_prompt, wanted.input_type]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return with_sketch(digest, self._probes[:, :_SKETCH_DIMS].ravel())

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """f32 [len(texts), dims] of length 1. Raises InvalidInput naming the position of an unusable text, or for what
        the server refuses; EncoderUnavailable where it does not answer, or not with such vectors."""
        return self._embed(texts, query=True, dims=self.dims, deadline=self._wanted.query_deadline)

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """f32 [len(texts), dims] of length 1. Raises as encode_queries does."""
        return self._embed(texts, query=False, dims=self.dims, deadline=self._wanted.deadline)

    def _embed(self, texts: Sequence[str], *, query: bool, dims: int | None, deadline: float) -> Floats:
        check_texts(texts)
        for position, text in enumerate(texts):
            if len(text) > MAX_TEXT_CHARS:
                limit = f"has {len(text)} characters, and at most {MAX_TEXT_CHARS} can be sent"
                raise InvalidInput(f"text {position}: {limit}; split long documents (chunking)")
        prompt = self._wanted.query_prompt if query else self._wanted.document_prompt
        found = []
        for batch in batches(texts, self._wanted.batch, MAX_TEXT_CHARS):
            body = self._body([prompt + texts[position] for position in batch], query)
            found.append(self._endpoint.embed(body, batch, dims, deadline))
        unit, bad = unit_rows(np.concatenate(found or [np.empty((0, dims or 0), np.float32)]))
        if bad:
            raise EncoderUnavailable(f"{self._endpoint}: the vector of text {bad[0]} is zero, NaN or infinite")
        return unit

    def _body(self, texts: list[str], query: bool) -> dict[str, object]:
        """The request's body; what only some servers know is left out unless it was asked for."""
        wanted = self._wanted
        body: dict[str, object] = {"model": wanted.model, "input": texts, "encoding_format": "base64"}
        if wanted.dims is not None:
            body["dimensions"] = wanted.dims
        if wanted.input_type:
            body["input_type"] = "query" if query else "document"
        return body


def load(spec: str) -> OpenAIEncoder:
    """The encoder of `URL#MODEL[?options]`, asked once for the vectors of four short texts.

    Raises InvalidInput for a spec that cannot be used, EncoderUnavailable where nothing answers with vectors.
    """
    url, _, rest = spec.partition("#")
    model, _, text = rest.partition("?")
    options = Options.parse(text, OPTIONS)
    check_url(url)
    if not model:
        raise InvalidInput(f"expected {KIND}:URL#MODEL, got no model")
    batch = options.integer("batch") or _BATCH
    if batch > MAX_BATCH:
        raise InvalidInput(f"the encoder's option batch must be at most {MAX_BATCH}, got {batch}")
    wanted = Wanted(
        model,
        options.length(),
        options.integers("granularities"),
        options.text("query_prompt") or "",
        options.text("document_prompt") or "",
        options.flag("input_type"),
        batch,
        options.number("deadline", _DEADLINE, MAX_SECONDS),
        options.number("query_deadline", _QUERY_DEADLINE, MAX_SECONDS),
    )
    timeout = options.number("timeout", _TIMEOUT, MAX_SECONDS)
    return OpenAIEncoder(f"{KIND}:{spec}", Endpoint(url.rstrip("/"), model, key_for(url), timeout), wanted)


def check_url(url: str) -> None:
    """Raise InvalidInput for what is no address, and for addresses that hold a secret: names are stored and shown."""
    try:
        parts = urlsplit(url)
        secret, usable = parts.username or parts.password, parts.scheme in ("http", "https") and parts.hostname
        _ = parts.port
    except ValueError:
        secret, usable = None, None
    if secret:
        raise InvalidInput(f"an encoder's URL holds no user or password: names are stored. Set {KEY} instead")
    if not usable or parts.query:
        raise InvalidInput(f"expected {KIND}:URL#MODEL with an http or https address, as in http://127.0.0.1:8765/v1")


def key_for(url: str) -> str | None:
    """The key to send to this address: our own variable's, or to OpenAI itself, and over TLS, also OpenAI's."""
    parts = urlsplit(url)
    key = os.environ.get(KEY)
    if not key and parts.scheme == "https" and parts.hostname == OPENAI_HOST:
        key = os.environ.get(OPENAI_KEY)
    key = (key or "").strip()
    if not all(32 < ord(character) < 127 for character in key):
        raise InvalidInput(f"the key in {KEY} holds characters that no HTTP header can carry")
    return key or None
