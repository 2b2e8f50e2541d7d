"""The socket answers before the database is open: alive, and not ready."""

from __future__ import annotations

import socket

import httpx
import pytest

from nestvec.server.settings import Settings
from nestvec.server.waiting import WaitingRoom, listen


@pytest.fixture
def listener() -> socket.socket:
    return listen(Settings(port=0))


def test_whoever_asks_hears_that_it_lives_and_is_not_ready(listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, WaitingRoom(listener):
        for path in ("/livez", "/healthz"):
            live = httpx.get(url + path)
            assert (live.status_code, live.json()) == (200, {"status": "ok"})
        for method, path in (("GET", "/readyz"), ("GET", "/v1/info"), ("POST", "/v1/collections/c/query")):
            early = httpx.request(method, url + path, content=b"x" * 100_000 if method == "POST" else None)
            assert (early.status_code, early.headers["retry-after"]) == (503, "1")
            assert early.headers["content-type"] == "application/problem+json"
            assert early.json()["code"] == "not_ready"
            assert early.json()["instance"] == early.headers["x-request-id"]


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xfe /livez \r\n\r\n"])
def test_nonsense_is_answered_too(listener: socket.socket, said: bytes) -> None:
    with listener, WaitingRoom(listener), socket.create_connection(listener.getsockname(), timeout=10) as wire:
        wire.sendall(said)
        assert wire.recv(65536).startswith(b"HTTP/1.1 ")


def test_more_guests_than_there_is_room_for_wait_outside(listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, WaitingRoom(listener):
        silent = [socket.create_connection(listener.getsockname(), timeout=10) for _ in range(300)]
        for wire in silent[:200]:
            wire.close()
        assert httpx.get(url + "/livez", timeout=30).status_code == 200
        for wire in silent[200:]:
            wire.close()


def test_the_next_to_accept_gets_whoever_came_too_late(listener: socket.socket) -> None:
    with listener:
        with WaitingRoom(listener):
            pass
        with socket.create_connection(listener.getsockname(), timeout=10):
            listener.setblocking(True)
            guest, _ = listener.accept()
            guest.close()
