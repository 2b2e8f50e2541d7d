"""Encoders behind an embeddings endpoint: a scripted one for its faults, and nestvec's own for the whole way."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

import nestvec
from nestvec.engine.encoders import load_encoder, openai_http, same_fingerprint, static
from nestvec.engine.encoders.openai import OpenAIEncoder, load
from nestvec.errors import EncoderMismatch, EncoderUnavailable, InvalidInput
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

TEXTS = ["open a ZIP archive", "photosynthesis makes sugar", "a river in winter"]
SECRET = "sk-very-secret-0123456789"
STATIC = static.load()

Answer = Callable[[dict[str, Any]], tuple[int, Any, dict[str, str]]]


def vectors_of(body: dict[str, Any]) -> np.ndarray:
    return STATIC.encode_documents(body["input"])[:, : body.get("dimensions", 512)]


def good(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    """As OpenAI answers, but in another order: `index` says which text each vector is of."""
    vectors = vectors_of(body)
    data = [{"index": i, "embedding": base64.b64encode(v.tobytes()).decode()} for i, v in enumerate(vectors)]
    return 200, {"object": "list", "data": data[::-1]}, {}


def failing(status: int, message: str = "no", **headers: str) -> Answer:
    return lambda _: (status, {"error": {"message": message}}, {k.replace("_", "-"): v for k, v in headers.items()})


class Endpoint(ThreadingHTTPServer):
    """Answers with the next of `script`, then with `always`; keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = []
        self.always: Answer = good
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.part_bytes, self.part_seconds = 1 << 20, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def encoder(self, options: str = "") -> OpenAIEncoder:
        encoder = load(f"{self.url}#some-model{options}")
        self.bodies.clear()
        self.times.clear()
        return encoder


class Handler(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/embeddings"
        self.server.times.append(time.monotonic())
        self.server.bodies.append(body)
        self.server.headers.append({key.lower(): value for key, value in self.headers.items()})
        answer = self.server.script.pop(0) if self.server.script else self.server.always
        status, content, headers = answer(body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # the client may have had enough
            for start in range(0, len(data), self.server.part_bytes):
                self.wfile.write(data[start : start + self.server.part_bytes])
                time.sleep(self.server.part_seconds)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("NESTVEC_OPENAI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai_http, "_FIRST_PAUSE", 0.01)
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_vectors_come_in_the_order_of_the_texts_at_length_1(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder()
    assert (encoder.dims, encoder.granularities) == (512, (512,))
    vectors = encoder.encode_documents(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, STATIC.encode_documents(TEXTS), atol=1e-6)
    assert endpoint.bodies == [{"model": "some-model", "input": TEXTS, "encoding_format": "base64"}]
    assert encoder.encode_queries([]).shape == (0, 512)


def test_a_server_that_knows_only_lists_is_understood(endpoint: Endpoint) -> None:
    endpoint.always = lambda body: (200, {"data": [{"embedding": v.tolist()} for v in vectors_of(body)]}, {})
    np.testing.assert_allclose(endpoint.encoder().encode_queries(TEXTS), STATIC.encode_documents(TEXTS), atol=1e-6)


def test_declared_granularities_ask_the_server_for_shorter_vectors(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder("?granularities=64,128")
    assert (encoder.dims, encoder.granularities) == (128, (64, 128))
    vectors = encoder.encode_documents(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert endpoint.bodies[0]["dimensions"] == 128


def test_a_server_that_ignores_dimensions_is_refused_and_nothing_is_cut_here(endpoint: Endpoint) -> None:
    endpoint.always = lambda body: good({"input": body["input"]})
    with pytest.raises(EncoderUnavailable, match="expected vectors of 128 dims, got 512"):
        endpoint.encoder("?dims=128")


def test_texts_go_in_batches_by_count_and_by_characters(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = endpoint.encoder("?batch=4")
    texts = [f"word {i}" for i in range(10)]
    np.testing.assert_allclose(encoder.encode_documents(texts), STATIC.encode_documents(texts), atol=1e-6)
    assert [len(body["input"]) for body in endpoint.bodies] == [4, 4, 2]
    endpoint.bodies.clear()
    monkeypatch.setattr("nestvec.engine.encoders.openai.MAX_TEXT_CHARS", 20)
    encoder.encode_documents(["nine char", "ten chars.", "one more text"])
    assert [len(body["input"]) for body in endpoint.bodies] == [2, 1]


def test_prompts_and_input_type_are_sent_only_if_asked_for(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder("?query_prompt=query:%20&document_prompt=passage:%20&input_type=1")
    encoder.encode_queries(["a"])
    encoder.encode_documents(["a"])
    assert [(body["input"], body["input_type"]) for body in endpoint.bodies] == [
        (["query: a"], "query"),
        (["passage: a"], "document"),
    ]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, status: int) -> None:
    encoder = endpoint.encoder()
    endpoint.script = [failing(status), failing(status)]
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), STATIC.encode_documents(TEXTS), atol=1e-6)
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidInput), (413, InvalidInput), (401, EncoderUnavailable), (404, EncoderUnavailable)],
)
def test_what_will_not_pass_is_tried_once_and_the_server_is_quoted(
    endpoint: Endpoint, status: int, error: type[Exception]
) -> None:
    encoder = endpoint.encoder("?batch=2")
    endpoint.script = [good, failing(status, "the\nmodel is on strike")]
    with pytest.raises(error, match=rf"texts 2 to 2: the server answered {status}: the model is on strike"):
        encoder.encode_documents(TEXTS)
    assert len(endpoint.bodies) == 2


def test_the_pause_is_as_long_as_the_server_asks(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder()
    endpoint.script = [failing(429, Retry_After="1")]
    encoder.encode_queries(TEXTS)
    assert 1.0 <= endpoint.times[1] - endpoint.times[0] < 5


def test_a_pause_beyond_the_deadline_is_not_begun(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder("?query_deadline=5")
    endpoint.script = [failing(503, "busy", Retry_After="3600")]
    start = time.monotonic()
    with pytest.raises(EncoderUnavailable, match=r"503: busy; gave up within 5 s"):
        encoder.encode_queries(TEXTS)
    assert time.monotonic() - start < 4


def test_a_server_that_keeps_failing_is_given_up_at_the_deadline(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder("?deadline=2")
    endpoint.always = failing(500, "boom")
    start = time.monotonic()
    with pytest.raises(EncoderUnavailable, match="500: boom; gave up within 2 s"):
        encoder.encode_documents(TEXTS)
    assert time.monotonic() - start < 10
    assert len(endpoint.bodies) > 2


def test_a_slow_answer_is_cut_off_and_asked_for_again(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder("?timeout=0.3&deadline=0.5")

    def slow(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        time.sleep(1)
        return good(body)

    endpoint.script = [slow]
    assert encoder.encode_queries(TEXTS).shape == (3, 512)
    assert len(endpoint.bodies) == 2
    endpoint.always = slow
    with pytest.raises(EncoderUnavailable, match="no answer within"):
        encoder.encode_documents(TEXTS)


def test_an_answer_that_only_drips_does_not_outlast_the_deadline(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder("?timeout=0.5&query_deadline=1")
    endpoint.part_bytes, endpoint.part_seconds = 20, 0.05  # 4 KiB then take 10 s
    start = time.monotonic()
    with pytest.raises(EncoderUnavailable, match="no answer within"):
        encoder.encode_queries(TEXTS)
    assert time.monotonic() - start < 6


def test_an_answer_cut_off_half_way_is_asked_for_again(endpoint: Endpoint) -> None:
    encoder = endpoint.encoder()
    half: Answer = lambda _: (200, b'{"data": [', {"Content-Length": "1000", "Connection": "close"})  # noqa: E731
    endpoint.script = [half]
    assert encoder.encode_queries(TEXTS).shape == (3, 512)
    assert len(endpoint.bodies) == 2


def test_nobody_at_the_address_says_so_within_the_deadline(endpoint: Endpoint) -> None:
    with pytest.raises(EncoderUnavailable, match=r"no connection .*; gave up within 0\.2 s"):
        load("http://127.0.0.1:1/v1#m?query_deadline=0.2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>hello</html>", "is no JSON"),
        ([], "no list of embeddings"),
        ({"data": "x"}, "no list of embeddings"),
        ({"data": [{"index": 0, "embedding": [1.0]}]}, "expected 3 embeddings"),
        ({"data": [{"index": 0, "embedding": [1.0]}] * 3}, "expected 3 embeddings"),
        ({"data": [{"embedding": [1.0]}] * 3}, "expected vectors of 512 dims, got 1"),
        ({"data": [{"embedding": [1.0] * n} for n in (512, 512, 511)]}, "512 dims"),
        ({"data": [{"embedding": "not base64!"}] * 3}, "neither base64"),
        ({"data": [{"embedding": {"a": 1}}] * 3}, "neither base64"),
        ({"data": [{"embedding": ["x"]}] * 3}, "neither base64"),
        ({"data": [{"embedding": [0.0] * 512}] * 3}, "text 0 is zero, NaN or infinite"),
    ],
)
def test_an_answer_that_is_wrong_is_named_and_never_used(endpoint: Endpoint, content: object, message: str) -> None:
    encoder = endpoint.encoder()
    endpoint.script = [lambda _: (200, content, {})]
    with pytest.raises(EncoderUnavailable, match=message):
        encoder.encode_queries(TEXTS)


@pytest.mark.parametrize("bad", ["", None, "x" * 200_001])
def test_an_unusable_text_is_named_before_anything_is_sent(endpoint: Endpoint, bad: object) -> None:
    encoder = endpoint.encoder()
    with pytest.raises(InvalidInput, match="text 1: "):
        encoder.encode_documents(["fine", bad])  # type: ignore[list-item]
    assert endpoint.bodies == []


def test_the_key_comes_from_the_environment_and_is_never_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NESTVEC_OPENAI_API_KEY", f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    name = f"openai:{endpoint.url}#keyed"
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder=name)
        assert endpoint.headers[-1]["authorization"] == f"Bearer {SECRET}"
        assert SECRET not in json.dumps(collection.config.to_json())
    endpoint.always = failing(401, f"bad key {SECRET}")
    with pytest.raises(EncoderUnavailable, match=r"bad key \*\*\*.*NESTVEC_OPENAI_API_KEY") as caught:
        load_encoder(name).encode_queries(["a"])
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


def test_openai_s_own_key_is_sent_to_openai_only(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from nestvec.engine.encoders import openai

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    endpoint.encoder()
    assert "authorization" not in endpoint.headers[-1]
    assert openai.key_for("https://api.openai.com/v1") == SECRET
    assert openai.key_for("http://api.openai.com/v1") is None
    assert openai.key_for("https://api.openai.com.evil.example/v1") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "http or https"),
        ("ftp://host/v1#m", "http or https"),
        ("http://#m", "http or https"),
        ("http://host:notaport/v1#m", "http or https"),
        ("http://host/v1?key=hidden#m", "http or https"),
        ("http://me:hidden@host/v1#m", "NESTVEC_OPENAI_API_KEY"),
        ("http://host/v1", "no model"),
        ("http://host/v1#m?api_key=hidden", "unknown api_key"),
        ("http://host/v1#m?dims=128&dims=64", "given twice"),
        ("http://host/v1#m?dims=hidden", "option dims must be"),
        ("http://host/v1#m?dims=64&granularities=64,128", "must be its dims"),
        ("http://host/v1#m?granularities=128,64", "ascending"),
        ("http://host/v1#m?timeout=0", "option timeout"),
        ("http://host/v1#m?timeout=nan", "option timeout"),
        ("http://host/v1#m?input_type=yes", "option input_type"),
        ("http://host/v1#m?batch=9999", "at most 2048"),
    ],
)
def test_a_name_that_cannot_be_used_says_why_without_repeating_what_may_be_secret(spec: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        load(spec)
    assert "hidden" not in str(caught.value)


def test_the_fingerprint_is_the_model_s_not_the_address_s(endpoint: Endpoint) -> None:
    first = endpoint.encoder()
    noise = np.random.default_rng(0).normal(0, 1e-4, 512)

    def rounded(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        """The same model on another machine: the last digits differ."""
        return 200, {"data": [{"embedding": (v + noise).tolist()} for v in vectors_of(body)]}, {}

    endpoint.always = rounded
    again = load(f"{endpoint.url.replace('127.0.0.1', 'localhost')}#some-model")
    assert same_fingerprint(first.fingerprint, again.fingerprint)
    noise *= 100  # a model tuned further, say: vectors at an angle of 9 degrees to the old ones
    assert not same_fingerprint(first.fingerprint, endpoint.encoder().fingerprint)
    endpoint.always = good
    assert not same_fingerprint(first.fingerprint, load(f"{endpoint.url}#other-model").fingerprint)
    assert not same_fingerprint(first.fingerprint, endpoint.encoder("?document_prompt=x").fingerprint)
    assert not same_fingerprint(first.fingerprint, first.fingerprint[:20])
    assert not same_fingerprint(first.fingerprint, None)


def test_a_model_swapped_behind_the_address_is_refused(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"openai:{endpoint.url}#swapped"
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder=name)
        collection.upsert([nestvec.Record(str(i), text=text) for i, text in enumerate(TEXTS)])
    from nestvec.engine.encoders import registry

    registry._load.cache_clear()  # what a new process begins with
    endpoint.always = lambda body: good({"input": [text[::-1] for text in body["input"]]})
    with nestvec.open(tmp_path / "db") as database:
        collection = database.collection("c")
        with pytest.raises(EncoderMismatch, match="swapped"):
            collection.search(text="zip")
        assert len(collection.search(np.ones(512))) == 3  # vectors still answer


class Service(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        pass


def test_nestvec_s_own_endpoint_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of one database, encoded by the service of another one, over a real socket and with a key."""
    monkeypatch.setenv("NESTVEC_OPENAI_API_KEY", SECRET)
    with nestvec.open(tmp_path / "served") as served, nestvec.open(tmp_path / "db") as database:
        app = create_app(served, Settings(api_key=SECRET))
        server = Service(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            url = f"openai:http://127.0.0.1:{port}/v1#static"
            collection = database.create_collection("c", encoder=f"{url}?granularities=64,128&input_type=1")
            assert collection.config.granularities == (64, 128)
            collection.upsert([nestvec.Record(str(i), text=text) for i, text in enumerate(TEXTS)])
            hits = collection.search(text="unpack a compressed file", k=3)
            expected = STATIC.encode_queries(["unpack a compressed file"])[:, :128]
            stored = STATIC.encode_documents(TEXTS)[:, :128]
            stored /= np.linalg.norm(stored, axis=1, keepdims=True)
            best = np.argsort(-(stored @ (expected[0] / np.linalg.norm(expected))))
            assert [hit.id for hit in hits] == [str(row) for row in best]
            with pytest.raises(EncoderUnavailable, match="no such model"):
                load_encoder(url.replace("#static", "#unknown"))
            with pytest.raises(InvalidInput, match="dimensions to be one of 64, 128, 256, 512; got 100"):
                load_encoder(f"{url}?dims=100")
        finally:
            server.should_exit = True
            thread.join()
