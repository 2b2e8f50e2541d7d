"""F3: kill -9 of the whole service under load: ready again within seconds, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path

import httpx
import numpy as np
import pytest
from faultlib import SEED, ClientLog, Model, Request, amount, check_tidy, match, random_request, record_of

import nestvec

CLIENTS = 4
KILLS = amount(3, 100)


def start(path: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A service and its address, once it is ready."""
    command = [sys.executable, "-m", "nestvec.cli", "serve", "--port", "0", "--db", str(path)]
    environment = {key: value for key, value in os.environ.items() if key != "NESTVEC_API_KEY"}
    said = path.parent / "service.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
    deadline = time.monotonic() + 30
    while (address := re.search(r"http://[0-9.]+:[0-9]+", said.read_text())) is None:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while True:
        try:
            if httpx.get(address.group() + "/readyz").json() == {"status": "ok"}:
                return process, address.group()
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.01)


def load(address: str, log: Path, seed: int, who: int) -> None:
    """One client: writes and deletes its own ids until nobody answers."""
    rng, client, version = np.random.default_rng(seed), ClientLog(log), 1 + seed * 100_000
    with nestvec.Client(address) as service:
        collection = service.collection("c")
        while True:
            version += 20
            request: Request = [(f"c{who}-{id}", number) for id, number in random_request(rng, version)]
            client.sent(request)
            try:
                if request[0][1]:
                    collection.upsert([record_of(id, number) for id, number in request])
                else:
                    collection.delete([id for id, _ in request])
            except nestvec.NestvecError:
                return
            client.acknowledged()
            if who == 0 and rng.random() < 0.05:
                try:
                    collection.seal()
                except nestvec.NestvecError:
                    return


@pytest.mark.timeout(3000)
def test_a_killed_service_loses_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "db", np.random.default_rng(SEED)
    model: Model = {}
    with nestvec.open(path) as database:
        database.create_collection("c", dims=8, metric="dot", bm25=True)
    slowest = 0.0
    for kill in range(KILLS):
        begun = time.monotonic()
        process, address = start(path)
        slowest = max(slowest, time.monotonic() - begun)
        logs = [tmp_path / f"log{kill}-{who}" for who in range(CLIENTS)]
        threads = [
            threading.Thread(target=load, args=(address, log, SEED * 1000 + kill * CLIENTS + who, who))
            for who, log in enumerate(logs)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.2 + rng.exponential(0.3))
        process.kill()
        process.wait()
        for thread in threads:
            thread.join()
        mine = [{id: v for id, v in model.items() if id.startswith(f"c{who}-")} for who in range(CLIENTS)]
        outcomes = [ClientLog(log).outcomes(own) for log, own in zip(logs, mine, strict=True)]
        assert all(log.read_text().count("acknowledged") for log in logs)
        allowed = [{id: v for part in choice for id, v in part.items()} for choice in product(*outcomes)]
        with nestvec.open(path) as database:
            model = match(database.collection("c"), allowed)
        check_tidy(path)
    with nestvec.open(path) as database:
        assert all(report.ok for report in database.verify())
    print(f"F3: {KILLS} kills, {len(model)} records, ready again within {slowest:.1f} s, seed {SEED}")
