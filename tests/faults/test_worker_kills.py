"""F4: kill -9 of one worker under load: the others serve, it is replaced, and only its own requests fail."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from faultlib import SEED, amount, patience, payload_of, vector_of
from services import Served, owners, start

import nestvec

WORKERS, CLIENTS = 3, 9
KILLS = amount(2, 50)
IDS = 30

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")


class Asking(threading.Thread):
    """One client on a kept connection: writes its own ids and searches, and notes what failed and where."""

    def __init__(self, port: int, who: int) -> None:
        super().__init__(daemon=True)
        self._port, self._who = port, who
        self.stop = threading.Event()
        self.at = 0
        self.answered = 0
        self.broken: list[int] = []
        self.refused: list[str] = []
        self.versions: dict[str, set[int]] = {}

    def run(self) -> None:
        connection, version = self._connect(), 0
        while not self.stop.is_set():
            version += 1
            id = f"w{self._who}-{version % IDS}"
            try:
                if version % 2:
                    self._write(connection, id, version)
                else:
                    self._ask(connection, "POST", "/v1/collections/c/query", {"vector": [1.0] * 8, "k": 3})
            except (OSError, http.client.HTTPException):
                self.broken.append(self.at)
                connection.close()
                connection = self._connect()
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.connect()
        self.at = connection.sock.getsockname()[1]
        return connection

    def _write(self, connection: http.client.HTTPConnection, id: str, version: int) -> None:
        """Both versions may be there until the answer says that it is the new one."""
        self.versions.setdefault(id, {0}).add(version)
        record = {"id": id, "vector": vector_of(id, version).tolist(), "payload": payload_of(version)}
        if self._ask(connection, "PUT", "/v1/collections/c/records", {"records": [record]}):
            self.versions[id] = {version}

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: object) -> bool:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        self.answered += 1
        if answer.status != 200:
            self.refused.append(f"{answer.status} {said!r}")
        return answer.status == 200


def replaced(service: Served, before: set[int], since: float) -> float:
    """Seconds until a new worker takes connections. Many are offered: busy workers are quicker than an idle one."""
    while True:
        assert time.monotonic() - since < patience(60), service.log.read_text()[-2000:]
        with ExitStack() as stack:
            offered = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port))) for _ in range(48)]
            time.sleep(0.02)
            taken = owners(service.workers - before)
            if any(wire.getsockname()[1] in taken for wire in offered):
                return time.monotonic() - since


def kill_one(service: Served, clients: list[Asking], rng: np.random.Generator) -> tuple[float, int]:
    """(seconds until a worker that was killed was replaced, requests that it took with it)."""
    workers, noted = service.workers, [len(client.broken) for client in clients]
    answered, where = sum(client.answered for client in clients), owners(workers)
    victim = int(rng.choice(sorted(workers)))
    os.kill(victim, signal.SIGKILL)
    seconds = replaced(service, workers, time.monotonic())
    lost = [port for client, n in zip(clients, noted, strict=True) for port in client.broken[n:]]
    assert {where.get(port) for port in lost} <= {victim}
    assert len(lost) <= len([port for port, pid in where.items() if pid == victim])
    assert sum(client.answered for client in clients) > answered
    assert workers - service.workers == {victim}
    return seconds, len(lost)


@pytest.mark.timeout(3000)
def test_a_killed_worker_takes_only_its_own_requests_with_it(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=8, metric="dot")
    rng, slowest, strained, broken = np.random.default_rng(SEED), 0.0, 0.0, 0
    with start(tmp_path / "db", WORKERS) as service:
        clients = [Asking(service.port, who) for who in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(KILLS):
            time.sleep(1.1 + rng.exponential(0.2))
            seconds, lost = kill_one(service, clients, rng)
            slowest, broken = max(slowest, seconds), broken + lost
            strained = max(strained, seconds / patience(2))  # by the load of that moment
        for client in clients:
            client.stop.set()
        for client in clients:
            client.join(60)
        service.process.terminate()
        assert service.process.wait(60) == 0
    assert [one for client in clients for one in client.refused] == []
    with nestvec.open(tmp_path / "db") as database:
        found = {record.id: (record.payload or {})["version"] for record in database.collection("c").scroll(limit=1000)}
    for client in clients:
        for id, versions in client.versions.items():
            assert found.get(id, 0) in versions
    answered = sum(client.answered for client in clients)
    print(f"F4: {KILLS} kills, {broken} requests broken off, all of the killed worker's; {answered} answered; "
          f"replaced within {slowest:.1f} s, seed {SEED}")  # fmt: skip
    assert strained < 1
