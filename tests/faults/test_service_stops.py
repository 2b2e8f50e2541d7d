"""F5: SIGTERM under load: what was begun is finished, a running job stops, the exit status is 0."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faultlib import SEED, amount, patience
from services import Served, start

import nestvec

STOPS = amount(2, 20)
ROWS, DIMS = 20_000, 32
CLIENTS = 4
_SETTLED = 0.3
"""Sent so long before the signal, a request was in flight: the service had it."""


class Asking(threading.Thread):
    """One client on a kept connection, until nobody answers: long batches of exact searches, or writes."""

    def __init__(self, port: int, who: int) -> None:
        super().__init__(daemon=True)
        self._port, self._who = port, who
        self.sent, self.answered = 0.0, 0
        self.acknowledged: list[str] = []
        self.ended = ""

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        vectors = np.random.default_rng(self._who).standard_normal((30, DIMS)).round(3).tolist()
        batch = {"queries": [{"vector": vector, "k": 10, "exact": True} for vector in vectors]}
        while not self.ended:
            id = f"stop-{self._who}-{self.answered}"
            try:
                self.sent = time.monotonic()
                if self._who % 2:
                    body = {"records": [{"id": id, "vector": vectors[0]}]}
                    self._ask(connection, "PUT", "/v1/collections/c/records", body)
                    self.acknowledged.append(id)
                else:
                    self._ask(connection, "POST", "/v1/collections/c/query/batch", batch)
            except (OSError, http.client.HTTPException) as error:
                self.ended = repr(error)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: object) -> None:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status == 200, (answer.status, said)
        self.answered += 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with enough rows for a build to take a while."""
    path = tmp_path_factory.mktemp("stops") / "db"
    rows = np.random.default_rng(SEED).standard_normal((ROWS, DIMS)).astype("f4")
    with nestvec.open(path) as database:
        database.create_collection("c", dims=DIMS).build([nestvec.Batch(0, vectors=rows)])
    return path


def build_begun(service: Served) -> int:
    """The number of a build job that runs."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    body = json.dumps({"kind": "build"})
    connection.request("POST", "/v1/collections/c/jobs", body, {"Content-Type": "application/json"})
    job = json.loads(connection.getresponse().read())
    while job["state"] == "queued":
        connection.request("GET", f"/v1/jobs/{job['id']}")
        job = json.loads(connection.getresponse().read())
    connection.close()
    assert job["state"] in ("running", "done"), job
    return int(job["id"])


@pytest.mark.timeout(3000)
def test_a_stopped_service_finishes_what_it_began(path: Path) -> None:
    rng, slowest, interrupted, answered, written = np.random.default_rng(SEED), 0.0, 0, 0, 0
    for stop in range(STOPS):
        service = start(path, workers=1 + stop % 2)
        clients = [Asking(service.port, who) for who in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(0.5 + rng.exponential(0.3))
        job = build_begun(service)
        time.sleep(rng.exponential(0.1))
        signalled = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        status = service.process.wait(60)
        slowest = max(slowest, time.monotonic() - signalled)
        for client in clients:
            client.join(60)
            # What ended each of them came on a request sent too late to be answered, or after the socket was closed.
            assert client.ended
            assert client.sent > signalled - _SETTLED, (client.ended, signalled - client.sent)
        assert status == 0, service.log.read_text()[-2000:]
        answered += sum(client.answered for client in clients)
        with nestvec.open(path) as database:
            ended = database.jobs.get(job)
            ids = [id for client in clients for id in client.acknowledged]
            kept = {record.id for record in database.collection("c").get(ids)}
            assert kept == set(ids)
            database.collection("c").delete(ids)
        assert (ended.state, ended.error) in (("failed", "interrupted by a restart"), ("done", None)), ended
        interrupted += ended.state == "failed"
        written += len(ids)
    assert interrupted
    with nestvec.open(path) as database:
        assert all(report.ok for report in database.verify())
        assert database.collection("c").count() == ROWS
    print(f"F5: {STOPS} stops, {answered} requests answered, {written} writes kept, {interrupted} builds interrupted, "
          f"ended within {slowest:.1f} s, seed {SEED}")  # fmt: skip
    assert slowest < patience(10)
