"""F3: kill -9 of the whole service, parent and workers, under load: ready again within seconds, and nothing that was
acknowledged is lost."""

from __future__ import annotations

import threading
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from faultlib import SEED, ClientLog, Model, Request, amount, check_tidy, match, patience, random_request, record_of
from services import Served, start

import nestvec

CLIENTS = 4
KILLS = amount(3, 100)


def load(address: str, log: Path, seed: int, who: int, said: dict[int, list[str]]) -> None:
    """One client: writes and deletes its own ids until nobody answers. What was refused is absent, and it goes on."""
    rng, client, version = np.random.default_rng(seed), ClientLog(log), 1 + seed * 100_000
    with nestvec.Client(address, timeout=100) as service:
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
                client.acknowledged()
                if who == 0 and rng.random() < 0.05:
                    collection.seal()
            except nestvec.Busy as refusal:
                said[who].append(repr(refusal))
            except nestvec.NestvecError as error:
                said[who].append(f"ended by {error!r}")
                return


def state(service: Served, logs: list[Path], said: dict[int, list[str]]) -> str:
    """What a live service has done for each client, and what it logged."""
    done = [log.read_text().count("acknowledged") if log.exists() else 0 for log in logs]
    refused = {who: (len(words), words[-1:]) for who, words in said.items()}
    service.kill_all()
    return f"acknowledged {done}, refused {refused}, log {service.log.read_text()[-3000:]}"


@pytest.mark.timeout(3000)
def test_a_killed_service_loses_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "db", np.random.default_rng(SEED)
    model: Model = {}
    with nestvec.open(path) as database:
        database.create_collection("c", dims=8, metric="dot", bm25=True)
    slowest = strained = 0.0
    for kill in range(KILLS):
        begun = time.monotonic()
        service = start(path, workers=1 + kill % 2)
        took = time.monotonic() - begun
        slowest, strained = max(slowest, took), max(strained, took / patience(5))  # by the load of that moment
        logs = [tmp_path / f"log{kill}-{who}" for who in range(CLIENTS)]
        said: dict[int, list[str]] = {who: [] for who in range(CLIENTS)}
        threads = [
            threading.Thread(target=load, args=(service.url, log, SEED * 1000 + kill * CLIENTS + who, who, said))
            for who, log in enumerate(logs)
        ]
        for thread in threads:
            thread.start()
        while not all(log.exists() and "acknowledged" in log.read_text() for log in logs):
            in_time = all(thread.is_alive() for thread in threads) and time.monotonic() < begun + 120
            assert in_time, f"after {kill} kills some client has no answer: {state(service, logs, said)}"
            time.sleep(0.05)
        time.sleep(rng.exponential(0.5))
        assert all(thread.is_alive() for thread in threads), state(service, logs, said)
        service.kill_all()
        for thread in threads:
            thread.join()
        mine = [{id: v for id, v in model.items() if id.startswith(f"c{who}-")} for who in range(CLIENTS)]
        outcomes = [ClientLog(log).outcomes(own) for log, own in zip(logs, mine, strict=True)]
        allowed = [{id: v for part in choice for id, v in part.items()} for choice in product(*outcomes)]
        with nestvec.open(path) as database:
            model = match(database.collection("c"), allowed)
        check_tidy(path)
    with nestvec.open(path) as database:
        assert all(report.ok for report in database.verify())
    print(f"F3: {KILLS} kills, {len(model)} records, ready again within {slowest:.1f} s, seed {SEED}")
    assert strained < 1
