"""The gate over real sockets: what is refused, when, and what is never read."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import SecretStr

from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.service import Service
from nestvec.server.settings import Settings

QUERY = "/v1/collections/docs/query"
Served = Callable[[FastAPI], AbstractContextManager[str]]


class Blocker:
    """A route of the application that holds one of the engine's threads until it is let go."""

    def __init__(self, app: FastAPI) -> None:
        self.let_go, self.started = threading.Event(), threading.Semaphore(0)
        service: Service = app.state.service

        def hold() -> None:
            self.started.release()
            assert self.let_go.wait(30)

        async def block(_: Request) -> dict[str, bool]:
            await service.run(hold)
            return {"done": True}

        app.add_api_route("/v1/block", block, methods=["GET", "POST"])

    @contextmanager
    def held(self, url: str, count: int = 1, **given: object) -> Iterator[list[httpx.Response]]:
        """`count` requests inside the route; their answers, once the block has ended."""
        answers: list[httpx.Response] = []
        get = lambda: answers.append(httpx.get(url + "/v1/block", timeout=30, **given))  # type: ignore[arg-type]  # noqa: E731
        threads = [threading.Thread(target=get) for _ in range(count)]
        for thread in threads:
            thread.start()
        for _ in range(count):
            assert self.started.acquire(timeout=10)
        try:
            yield answers
        finally:
            self.let_go.set()
            for thread in threads:
                thread.join()


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=10)


def read_all(wire: socket.socket) -> bytes:
    """Until the server closes."""
    answer = b""
    while piece := wire.recv(65536):
        answer += piece
    return answer


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


@pytest.fixture
def app(database: Database) -> FastAPI:
    return create_app(database, Settings(max_body_mb=1, read_seconds=0.5, threads=2))


def test_a_body_without_a_length_is_counted(app: FastAPI, served: Served) -> None:
    with served(app) as url, connect(url) as wire:
        wire.sendall(head(QUERY, "Content-Type: application/json", "Transfer-Encoding: chunked"))
        piece = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
        for _ in range(16):
            wire.sendall(piece)
        wire.sendall(b"1\r\n \r\n")  # one byte too many, and more to come
        answer = read_all(wire)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert b'"code":"body_too_large"' in answer


@pytest.mark.parametrize("path", [QUERY, "/v1/collections/docs"])  # read by us, and by FastAPI
def test_a_declared_body_is_refused_before_it_comes(app: FastAPI, served: Served, path: str) -> None:
    with served(app) as url, connect(url) as wire:
        method = "POST" if path == QUERY else "PUT"
        wire.sendall(head(path, "Content-Type: application/json", "Content-Length: 1048577", "Expect: 100-continue",
                          method=method))  # fmt: skip
        answer = read_all(wire)
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", [QUERY, "/v1/collections/docs"])
def test_a_compressed_body_is_refused(app: FastAPI, served: Served, path: str) -> None:
    with served(app) as url:
        for encoding in ("gzip", "br", "identity, gzip"):
            headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
            method = "POST" if path == QUERY else "PUT"
            answer = httpx.request(method, url + path, content=b"\x1f\x8b\x08", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("path", [QUERY, "/v1/collections/docs"])
def test_a_slow_body_is_cut(app: FastAPI, served: Served, path: str) -> None:
    with served(app) as url, connect(url) as wire:
        start = time.monotonic()
        method = "POST" if path == QUERY else "PUT"
        wire.sendall(head(path, "Content-Type: application/json", "Content-Length: 1000", method=method) + b"{")
        answer = read_all(wire)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in answer
        assert time.monotonic() - start < 5
        assert app.state.service.admission.uploading == 0


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"\r\n", head("/healthz")[:-2]])
def test_a_slow_head_is_cut(app: FastAPI, served: Served, sent: bytes) -> None:
    with served(app) as url, connect(url) as wire:
        wire.sendall(sent)
        start = time.monotonic()
        assert read_all(wire) == b""
        assert 0.3 < time.monotonic() - start < 5


def test_a_slow_second_head_is_cut_too(app: FastAPI, served: Served) -> None:
    with served(app) as url, connect(url) as wire:
        wire.sendall(head("/healthz", method="GET"))
        assert wire.recv(65536).startswith(b"HTTP/1.1 200")
        wire.sendall(b"GET /hea")
        start = time.monotonic()
        assert read_all(wire) == b""
        assert 0.3 < time.monotonic() - start < 5


def test_slow_bodies_do_not_shut_out_others(database: Database, served: Served) -> None:
    app = create_app(database, Settings(max_in_flight=2, read_seconds=10))
    with served(app) as url, ExitStack() as stack:
        for _ in range(20):
            wire = stack.enter_context(connect(url))
            wire.sendall(head(QUERY, "Content-Type: application/json", "Content-Length: 1000") + b"{")
        for _ in range(5):
            assert httpx.get(url + "/v1/info").status_code == 200


def test_half_a_body_and_a_close_leave_nothing_behind(app: FastAPI, served: Served) -> None:
    with served(app) as url:
        with connect(url) as wire:
            wire.sendall(head(QUERY, "Content-Type: application/json", "Content-Length: 1000") + b"{")
        deadline = time.monotonic() + 5
        admission = app.state.service.admission
        while admission.uploading or admission.bytes:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert httpx.get(url + "/v1/info").status_code == 200


def test_over_the_bound_requests_are_refused_unread_and_health_is_answered(database: Database, served: Served) -> None:
    app = create_app(database, Settings(max_in_flight=2, threads=2))
    blocker = Blocker(app)
    with served(app) as url:
        with blocker.held(url, 2) as answers:
            with connect(url) as wire:
                wire.sendall(head(QUERY, "Content-Type: application/json", "Content-Length: 500000"))
                refused = read_all(wire)  # not a byte of the body was sent
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in refused
            assert b'"code":"busy"' in refused
            small = httpx.post(url + QUERY, json={"vector": [0.0] * 8})
            assert (small.status_code, small.headers["retry-after"]) == (503, "1")
            for path in ("/healthz", "/livez", "/readyz", "/metrics"):
                assert httpx.get(url + path).status_code == 200
            assert 'nestvec_refused_total{reason="busy"} 2.0' in httpx.get(url + "/metrics").text
            assert "nestvec_requests_in_flight 3.0" in httpx.get(url + "/metrics").text
        assert [answer.status_code for answer in answers] == [200, 200]
        assert httpx.get(url + "/v1/info").status_code == 200
        assert app.state.service.admission.working == 0


def test_a_refusal_of_a_small_request_keeps_the_connection(database: Database, served: Served) -> None:
    app = create_app(database, Settings(max_in_flight=1))
    blocker = Blocker(app)
    with served(app) as url, blocker.held(url), httpx.Client() as client:
        answers = [client.post(url + QUERY, json={"vector": [0.0] * 8}) for _ in range(3)]
        ports = {one.extensions["network_stream"].get_extra_info("client_addr")[1] for one in answers}
        assert [one.status_code for one in answers] == [503, 503, 503]
        assert len(ports) == 1


def test_who_is_still_sending_sees_why_it_was_refused(app: FastAPI, served: Served) -> None:
    with served(app) as url:
        for _ in range(5):  # httpx sends the whole body before it looks for an answer
            answer = httpx.post(url + QUERY, content=b" " * (8 << 20), headers={"Content-Type": "application/json"})
            assert answer.status_code == 413


def test_bytes_in_flight_are_bounded(database: Database, served: Served) -> None:
    app = create_app(database, Settings(max_body_mb=2, max_in_flight_mb=3, read_seconds=10))
    with served(app) as url, connect(url) as first:
        first.sendall(head(QUERY, "Content-Type: application/json", f"Content-Length: {2 << 20}") + b"{")
        deadline = time.monotonic() + 5
        while not app.state.service.admission.bytes:
            assert time.monotonic() < deadline
        with connect(url) as second:
            second.sendall(head(QUERY, "Content-Type: application/json", f"Content-Length: {2 << 20}"))
            assert read_all(second).startswith(b"HTTP/1.1 503")
        with connect(url) as third:  # chunked: refused once its bytes are too many
            third.sendall(head(QUERY, "Content-Type: application/json", "Transfer-Encoding: chunked"))
            for _ in range(17):
                third.sendall(b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n")
            assert read_all(third).startswith(b"HTTP/1.1 503")
        assert httpx.post(url + QUERY, json={"vector": [1.0] * 8}).status_code == 200


def test_one_key_cannot_take_every_place(database: Database, served: Served) -> None:
    app = create_app(database, Settings(api_key=SecretStr("env"), max_in_flight_per_key=1))
    _, other = database.create_key("other", "admin")
    blocker = Blocker(app)
    with served(app) as url, blocker.held(url, headers={"X-API-Key": "env"}):
        refused = httpx.get(url + "/v1/info", headers={"X-API-Key": "env"})
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(url + "/v1/info", headers={"X-API-Key": other}).status_code == 200


def test_a_deadline_ends_what_waits_and_it_never_runs(database: Database, served: Served) -> None:
    app = create_app(database, Settings(threads=1))
    blocker = Blocker(app)
    with served(app) as url:
        with blocker.held(url):
            start = time.monotonic()
            late = httpx.put(
                url + "/v1/collections/docs/records",
                json={"records": [{"id": "late", "vector": [1.0] * 8, "text": "x" * 70_000}]},  # small ones begin here
                headers={"X-Timeout-Ms": "100"},
            )
            assert time.monotonic() - start < 5
            assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
            assert "outcome is unknown" in late.json()["detail"]
            assert "nestvec_calls_waiting 0.0" in httpx.get(url + "/metrics").text
        found = httpx.post(url + "/v1/collections/docs/records/get", json={"ids": ["late"]}).json()
        assert found == {"records": []}


def test_a_query_may_bring_its_own_deadline_and_the_settings_have_one(database: Database, served: Served) -> None:
    app = create_app(database, Settings(threads=1, request_seconds=0.3))
    blocker = Blocker(app)
    with served(app) as url:
        with blocker.held(url) as held:
            for extra in ({"timeout_ms": 50}, {}):
                start = time.monotonic()
                late = httpx.post(url + QUERY, json={"vector": [1.0] * 8, "exact": True, **extra})
                assert late.status_code == 504
                assert time.monotonic() - start < 5
            assert (
                httpx.post(url + QUERY, json={"vector": [1.0] * 8}, headers={"X-Timeout-Ms": "9" * 9}).status_code
                == 504
            )
        assert [one.status_code for one in held] == [504]
        assert httpx.post(url + QUERY, json={"vector": [1.0] * 8, "timeout_ms": 30000}).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 10])
def test_a_deadline_that_is_no_number_is_refused(app: FastAPI, served: Served, value: str) -> None:
    with served(app) as url:
        assert httpx.get(url + "/v1/info", headers={"X-Timeout-Ms": value}).status_code == 422


def test_an_invented_host_or_request_id_goes_nowhere(app: FastAPI, served: Served) -> None:
    with served(app) as url:
        foreign = httpx.get(url + "/v1/info", headers={"Host": "evil.example"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, "foreign_host")
        kept = httpx.get(url + "/v1/info", headers={"X-Request-Id": "abc.DEF-1"})
        assert kept.headers["x-request-id"] == "abc.DEF-1"
        made = httpx.get(url + "/v1/info", headers={"X-Request-Id": "a b"})
        assert made.headers["x-request-id"] != "a b"


def test_a_cancelled_handler_gives_its_place_back(database: Database) -> None:
    app = create_app(database, Settings(max_in_flight=1))

    async def slow() -> None:
        await asyncio.sleep(30)

    app.add_api_route("/v1/slow", slow)

    async def go() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.get("/v1/slow", headers={"X-Timeout-Ms": "20"})).status_code for _ in range(3)]

    assert asyncio.run(go()) == [504, 504, 504]


def test_a_small_write_is_committed_although_nobody_waits_for_it(database: Database, served: Served) -> None:
    app = create_app(database, Settings(threads=1))
    body = json.dumps({"records": [{"id": "alone", "vector": [1.0] * 8}]}).encode()
    lines = "Content-Type: application/json", f"Content-Length: {len(body)}"
    request = head("/v1/collections/docs/records", *lines).replace(b"POST", b"PUT", 1) + body
    with served(app) as url:
        for turn in range(20):
            with connect(url) as wire:
                wire.sendall(request.replace(b"alone", b"gone%d" % (turn % 10)))
            kept = {"id": f"kept{turn}", "vector": [2.0] * 8}
            assert httpx.put(url + "/v1/collections/docs/records", json={"records": [kept]}).status_code == 200
    assert database.collection("docs").count() >= 40


def test_small_writes_wait_for_one_another(database: Database, served: Served) -> None:
    app = create_app(database, Settings(threads=2))
    with served(app) as url, ThreadPoolExecutor(8) as pool:

        def write(number: int) -> int:
            body = {"records": [{"id": f"w{number}", "vector": [float(number + 1)] * 8}]}
            return httpx.put(url + "/v1/collections/docs/records", json=body).status_code

        assert set(pool.map(write, range(80))) == {200}
    assert database.collection("docs").count() == 100
