"""I6: two writers on the same ids at once, over threads and over the service: the result is that of some order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faultlib import amount

import nestvec
from nestvec import Record
from nestvec.server.app import create_app
from nestvec.server.settings import Settings
from tests.server.conftest import serve_in_thread

THREADS, BATCHES, IDS, SIZE = 8, amount(250, 2000), 40, 5
Write = Callable[[list[Record]], object]


def race(writers: list[Write], batches: int) -> None:
    """Every writer writes its batches over the same ids, each record carrying its writer's and its batch's number."""
    gate, failed = threading.Barrier(len(writers)), []

    def run(who: int) -> None:
        rng = np.random.default_rng(who)
        gate.wait()
        try:
            for number in range(batches):
                chosen = rng.permutation(IDS)[:SIZE]
                # every batch holds the id "common", so that any two of them have one order
                ids = ["common", *(f"r{i}" for i in chosen)]
                stamp = {"who": who, "batch": number}
                writers[who]([Record(id, [who + 1.0, number + 1.0], stamp) for id in ids])
        except Exception as error:  # told by the main thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    assert not failed, failed[0]


def some_order(collection: nestvec.Collection, writers: int, batches: int) -> None:
    """The sequence numbers tell the order: every batch stands together, each writer's in the order that it wrote them,
    and what an id holds is the last batch that wrote it."""
    records = collection.scroll(limit=1000, with_vector=True).records  # in the order of writing
    assert {record.id for record in records} <= {"common"} | {f"r{i}" for i in range(IDS)}
    stamps = [((record.payload or {})["who"], (record.payload or {})["batch"]) for record in records]
    for record, (who, batch) in zip(records, stamps, strict=True):
        assert record.vector is not None
        np.testing.assert_allclose(record.vector, [who + 1.0, batch + 1.0])
    blocks = [stamp for place, stamp in enumerate(stamps) if place == 0 or stamps[place - 1] != stamp]
    assert len(blocks) == len(set(blocks)), "a batch was torn by another"
    for who in range(writers):
        own = [batch for one, batch in blocks if one == who]
        assert own == sorted(own), "a writer's later batch came before its earlier one"
    # "common" is in every batch, so it is in the last of all; and nobody's last batch has left no trace but by others
    assert stamps[-1][1] == batches - 1
    assert dict(zip([record.id for record in records], stamps, strict=True))["common"] == stamps[-1]
    assert last_writers(writers, batches) >= set(stamps)


def last_writers(writers: int, batches: int) -> set[tuple[int, int]]:
    """Batches that may be the last to have written one of their ids: none of the same writer's wrote it later."""
    found = set()
    for who in range(writers):
        rng, last = np.random.default_rng(who), {}
        for number in range(batches):
            last |= {int(i): number for i in rng.permutation(IDS)[:SIZE]}
        found |= {(who, number) for number in [*last.values(), batches - 1]}
    return found


@pytest.mark.timeout(300)
def test_racing_batches_of_threads_end_as_some_order_of_them(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2, metric="dot")
        race([collection.upsert] * THREADS, BATCHES)
        some_order(collection, THREADS, BATCHES)
        before = [(record.id, record.payload) for record in collection.scroll(limit=1000)]
    with nestvec.open(tmp_path / "db") as database:
        collection = database.collection("c")
        assert [(record.id, record.payload) for record in collection.scroll(limit=1000)] == before


@pytest.mark.timeout(300)
def test_racing_batches_of_clients_end_as_some_order_of_them(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2, metric="dot")
        with serve_in_thread(create_app(database, Settings())) as address:
            clients = [nestvec.Client(address) for _ in range(THREADS)]
            race([client.collection("c").upsert for client in clients], 40)
            for client in clients:
                client.close()
        some_order(collection, THREADS, 40)
