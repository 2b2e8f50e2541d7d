"""The service as a process of its own on a loopback port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from services import is_ready

import nestvec
from nestvec.server.process import descriptors

START = """
import sys
from nestvec.server.start import serve
from nestvec.server.settings import Settings
serve(sys.argv[1], Settings())
"""


def start(path: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NESTVEC_API")}
    return subprocess.Popen(
        [sys.executable, "-c", START, str(path)],
        env={**environment, **{f"NESTVEC_{k.upper()}": v for k, v in settings.items()}},
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_ready(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if is_ready(url):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_keeps_what_it_acknowledged_and_stops_with_0(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(tmp_path / "db", port=port)
    wait_ready(process, url)
    assert httpx.put(url + "/v1/collections/c", json={"dims": 2}).status_code == 201
    body = {"records": [{"id": "a", "vector": [1, 0]}]}
    assert httpx.put(url + "/v1/collections/c/records", json=body).status_code == 200
    second = start(tmp_path / "db", port=free_port())
    assert second.wait(30) != 0
    assert str(process.pid) in second.communicate()[1]
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "no API key, so loopback only" in log
    again = start(tmp_path / "db", port=port)
    wait_ready(again, url)
    assert httpx.get(url + "/v1/collections/c/records/count").json() == {"count": 1}
    again.terminate()
    again.communicate(timeout=30)
    assert again.returncode == 0


def test_a_declared_body_over_the_bound_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path / "db", port=port, max_body_mb="1")
    wait_ready(process, f"http://127.0.0.1:{port}")
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as wire:
        wire.sendall(b"POST /v1/collections/c/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 99999999999\r\n\r\n{")  # fmt: skip
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_stopping_service_says_so_first_and_finishes_what_it_began(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(tmp_path / "db", port=port, drain_seconds="1", max_body_mb="8")
    wait_ready(process, url)
    httpx.put(url + "/v1/collections/c", json={"dims": 2}).raise_for_status()
    body = json.dumps({"records": [{"id": "a", "vector": [1, 0]}]}).encode()
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as wire:
        wire.sendall(b"PUT /v1/collections/c/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body[:5]))  # fmt: skip
        time.sleep(0.2)
        process.terminate()
        deadline = time.monotonic() + 5
        while (status := httpx.get(url + "/readyz").status_code) == 200:
            assert time.monotonic() < deadline
        assert status == 503
        assert httpx.get(url + "/livez").status_code == 200
        time.sleep(1.5)  # the socket is closed by now
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/livez")
        wire.sendall(body[5:])
        answer = wire.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    with nestvec.open(tmp_path / "db") as database:
        assert database.collection("c").count() == 1


def test_a_worker_that_starts_never_makes_the_shared_socket_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker that is woken for a connection which is gone would wait for the next one, and serve nobody."""
    believed = []
    real = socket.socket.settimeout
    monkeypatch.setattr(socket.socket, "settimeout", lambda own, to: (believed.append(to), real(own, to))[1])
    with socket.create_server(("127.0.0.1", 0)) as shared:
        shared.setblocking(False)
        inherited = socket.socket(fileno=os.dup(shared.fileno()))
        made = descriptors(inherited)
        try:
            assert len(made) > 1
            assert None not in believed
            assert not os.get_blocking(shared.fileno())
            with pytest.raises(BlockingIOError):
                shared.accept()
        finally:
            for one in made:
                one.close()


_SIGNAL_FIRST = """
import os, signal, sys, time, uvicorn
from nestvec.server.start import serve
from nestvec.server.settings import Settings
begin = uvicorn.Server.serve

async def signalled(self, sockets=None):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    await begin(self, sockets)

uvicorn.Server.serve = signalled
serve(sys.argv[1], Settings())
"""


def test_a_signal_before_the_server_listens_to_signals_stops_it(tmp_path: Path) -> None:
    """A worker that missed it would outlive its parent."""
    environment = {**os.environ, "NESTVEC_PORT": "0"}
    subprocess.run([sys.executable, "-c", _SIGNAL_FIRST, str(tmp_path / "db")], env=environment, check=True, timeout=60)
