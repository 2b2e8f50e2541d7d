"""Everything that a database does while its clock jumps a day forth and back; see test_clock."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from faultlib import Model, amount, apply, match, random_request, send
from pydantic import SecretStr
from starlette.testclient import TestClient
from writers import build

import nestvec
from nestvec.engine.jobs import Jobs
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

DAY = 86_400
KEY = "the key"
shim = ctypes.CDLL(None)
HELD = "import sys, nestvec\nwith nestvec.open(sys.argv[1]) as d:\n try: d.acquire_service_lock()\n" \
       " except nestvec.DatabaseLocked as e: print(e.pid)"  # fmt: skip


def jump(days: int) -> None:
    """Move the clock by whole days from where it truly is, and see that it has moved."""
    shim.clock_jump(ctypes.c_long(0))
    before = datetime.now(UTC)
    shim.clock_jump(ctypes.c_long(days * DAY))
    assert abs((datetime.now(UTC) - before).total_seconds() - days * DAY) < 60


def holder(path: Path) -> int:
    """The pid that another process, with a clock of its own, is told to hold the service's lock."""
    done = subprocess.run([sys.executable, "-c", HELD, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def work(database: nestvec.Database, model: Model, rng: np.random.Generator, version: int) -> Model:
    """Writes, upkeep, a snapshot that is restored, a key: each does what it says."""
    collection = database.collection("c")
    for number in range(6):
        request = random_request(rng, version + 50 * number)
        send(collection, request)
        model = apply(model, request)
    new = [(f"built{version}-{i}", version) for i in range(20)]
    build(collection, new)
    model = apply(model, new)
    collection.seal()
    collection.compact()
    match(collection, [model])
    taken = database.snapshot("c")
    assert taken.name in {one.name for one in database.snapshots()}
    match(database.restore(taken.name, f"copy{version}"), [model])
    database.delete_collection(f"copy{version}")
    database.create_key(f"key{version}", "read")
    return model


def service(database: nestvec.Database, days: list[int]) -> None:
    """Deadlines, the limit of failed keys and jobs go by time that only goes forward."""
    settings = Settings(api_key=SecretStr(KEY), auth_failures_per_minute=3, request_seconds=20)
    app = create_app(database, settings)
    with TestClient(app, headers={"X-API-Key": KEY}) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        stranger = TestClient(app, client=("10.0.0.9", 1))
        for _ in range(3):
            assert stranger.get("/v1/info", headers={"X-API-Key": "guess"}).status_code == 401
        for day in days:
            jump(day)
            refused = stranger.get("/v1/info", headers={"X-API-Key": KEY})
            assert refused.status_code == 429, "a jump of the clock forgives no guesses"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            query = {"vector": [1.0] * 8, "k": 5, "timeout_ms": 15_000}
            assert len(client.post("/v1/collections/c/query", json=query).json()["hits"]) == 5
            job = client.post("/v1/collections/c/jobs", json={"kind": "compact"}).json()["id"]
            end = time.monotonic() + 30
            while (state := client.get(f"/v1/jobs/{job}").json()["state"]) in ("queued", "running"):
                assert time.monotonic() < end
                time.sleep(0.01)
            assert state == "done"


def main() -> None:
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    rng, days = np.random.default_rng(seed), [1, -1, 0, -1, 1][: amount(2, 5)]
    model: Model = {}
    started = time.monotonic()
    with nestvec.open(path) as database:
        database.create_collection("c", dims=8, metric="dot", bm25=True)
        database.acquire_service_lock()
        stop = threading.Event()
        for version, day in enumerate(days):
            jump(day)
            model = work(database, model, rng, 1 + 10_000 * (version + 1))
            assert holder(path) == os.getpid(), "locks do not expire"
        thread = threading.Thread(target=flutter, args=(stop,))
        thread.start()
        model = work(database, model, rng, 900_001)
        stop.set()
        thread.join()
        service(database, days)
        match(database.collection("c"), [model])
    for day in days:
        jump(day)
        with nestvec.open(path) as database:
            match(database.collection("c"), [model])
            assert all(report.ok for report in database.verify())
            assert len(database.keys()) == len(days) + 1
            assert all(job.state == "done" for job in Jobs(database.ledger).list())
    asked = shim.clock_asked()
    print(json.dumps({"records": len(model), "asked": asked, "seconds": time.monotonic() - started}))


def flutter(stop: threading.Event) -> None:
    """A clock that will not stand still."""
    while not stop.is_set():
        for day in (1, -1):
            shim.clock_jump(ctypes.c_long(day * DAY))
            time.sleep(0.005)


main()
