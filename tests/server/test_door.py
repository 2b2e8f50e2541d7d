"""The door: small requests are refused as soon as their head is there, and the connection goes on."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest
from fastapi import FastAPI

from nestvec.engine.database import Database
from nestvec.server.admission import Admission
from nestvec.server.app import create_app
from nestvec.server.errors import RequestProblem
from nestvec.server.logs import RequestLog
from nestvec.server.settings import Settings
from tests.server.test_gate import QUERY, Blocker, connect, head, read_all

pytest.importorskip("httptools", reason="without it there is no door, the gate alone refuses")

Served = Callable[[FastAPI], AbstractContextManager[str]]
BODY = json.dumps({"vector": [1.0] * 8, "k": 1}).encode()
ASK = head(QUERY, "Content-Type: application/json", f"Content-Length: {len(BODY)}", "X-Request-Id: mine-1")


@contextmanager
def full(app: FastAPI, served: Served) -> Iterator[tuple[str, Blocker]]:
    """The address of a service that has no room, until the blocker lets go."""
    blocker = Blocker(app)
    with served(app) as url, blocker.held(url):
        yield url, blocker
        assert app.state.service.admission.coming == 0


def answer(wire: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the next answer."""
    held = b""
    while b"\r\n\r\n" not in held:
        held += wire.recv(65536)
    first, _, body = held.partition(b"\r\n\r\n")
    lines = first.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += wire.recv(65536)
    return int(lines[0].split()[1]), headers, body


@pytest.fixture
def log() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def app(database: Database, log: io.BytesIO) -> FastAPI:
    return create_app(database, Settings(max_in_flight=1, read_seconds=0.5), RequestLog("info", log))


def test_a_refusal_does_not_wait_for_the_body_and_the_connection_goes_on(app: FastAPI, served: Served) -> None:
    with full(app, served) as (url, blocker), connect(url) as wire:
        for _ in range(3):
            wire.sendall(ASK)
            status, headers, body = answer(wire)  # not a byte of the body was sent
            assert (status, headers["retry-after"], headers["x-request-id"]) == (503, "1", "mine-1")
            problem = json.loads(body)
            assert (problem["code"], problem["status"], problem["instance"]) == ("busy", 503, "mine-1")
            for byte in BODY[:3], BODY[3:]:
                wire.sendall(byte)
                time.sleep(0.02)
        blocker.let_go.set()
        while app.state.service.admission.working:
            time.sleep(0.01)
        wire.sendall(ASK + BODY)
        assert answer(wire)[0] == 200


def test_pipelined_requests_are_answered_in_their_order(app: FastAPI, served: Served) -> None:
    with full(app, served) as (url, _), connect(url) as wire:
        wire.sendall((ASK + BODY) * 2 + head("/livez", "Connection: close", method="GET"))
        said = read_all(wire)
    assert [piece[:3] for piece in said.split(b"HTTP/1.1 ")[1:]] == [b"503", b"503", b"200"]


def test_the_body_of_a_refused_request_must_not_take_forever(app: FastAPI, served: Served) -> None:
    with full(app, served) as (url, _), connect(url) as wire:
        wire.sendall(ASK + BODY[:3])
        start = time.monotonic()
        assert read_all(wire).startswith(b"HTTP/1.1 503")
        assert 0.3 < time.monotonic() - start < 5


def test_an_idle_connection_is_not_cut_for_a_refusal(app: FastAPI, served: Served) -> None:
    with full(app, served) as (url, _), connect(url) as wire:
        wire.sendall(ASK + BODY)
        assert answer(wire)[0] == 503
        time.sleep(1)  # twice what a head may take
        wire.sendall(ASK + BODY)
        assert answer(wire)[0] == 503


def test_who_does_not_read_refusals_is_cut(app: FastAPI, served: Served) -> None:
    with full(app, served) as (url, _), connect(url) as wire:
        wire.settimeout(60)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            wire.sendall((ASK + BODY) * 60_000)


def test_refusals_are_counted_and_told_in_one_line(app: FastAPI, served: Served, log: io.BytesIO) -> None:
    with full(app, served) as (url, _), connect(url) as wire:
        for _ in range(5):
            wire.sendall(ASK + BODY)
            assert answer(wire)[0] == 503
        page = httpx.get(url + "/metrics").text
        assert 'nestvec_refused_total{reason="busy"} 5.0' in page
        assert 'nestvec_requests_total{method="any",route="none",status="503"} 5.0' in page
        deadline = time.monotonic() + 10
        while b"refused" not in log.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["status"], line["requests"]) for line in lines if line["event"] == "refused"] == [(503, 5)]


@pytest.mark.parametrize("path", [b"/v1/%zz", b"/v1/\xff", b"/v1//query", b"/v1/collections/docs/query?x=%"])
def test_strange_paths_leave_nothing_behind(database: Database, served: Served, path: bytes) -> None:
    app = create_app(database, Settings(max_in_flight=1))
    with served(app) as url:
        for _ in range(3):
            with connect(url) as wire:
                wire.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
                wire.recv(65536)
        assert httpx.get(url + "/v1/info").status_code == 200
        assert app.state.service.admission.coming == 0


@pytest.mark.parametrize(("each_second", "held"), [(1000, 64), (300, 30), (20, 16)])
def test_who_refuses_for_longer_holds_what_a_tenth_of_a_second_answers(
    monkeypatch: pytest.MonkeyPatch, each_second: int, held: int
) -> None:
    now = [100.0]
    monkeypatch.setattr("nestvec.server.admission.monotonic", lambda: now[0])
    refused: list[str] = []
    admission = Admission(Settings(max_in_flight=64, threads=2), refused.append)

    def fill() -> int:
        while not admission.full:
            admission.start_work()
        with pytest.raises(RequestProblem):
            admission.start_work()
        return admission.working

    assert fill() == 64
    for _ in range(each_second):  # during a second all who are answered are followed by others
        admission.end_work()
        admission.start_work()
    for _ in range(2):
        now[0] += 0.5
        with pytest.raises(RequestProblem):
            admission.start_work()
    while admission.working:
        admission.end_work()
    assert fill() == held
    now[0] += 1.1  # nobody was refused meanwhile
    assert not admission.full or held == 64
    assert fill() == 64
    assert refused == ["busy"] * 5
