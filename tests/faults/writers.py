"""Processes that write until they are killed. They start as forks of a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faultlib import DIMS, ClientLog, Request, random_request, record_of, send

import nestvec

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["writers", "nestvec.engine.database", "nestvec.engine.build", "nestvec.engine.backup"])


def start(work: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Run `work` in a process of its own."""
    process = _context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def ingest(path: Path, log: Path, seed: int) -> None:
    """Write and delete at random for ever, now and then sealing, compacting or building."""
    rng, client, version = np.random.default_rng(seed), ClientLog(log), 1 + seed * 100_000
    with nestvec.open(path) as database:
        collection = database.collection("c")
        while True:
            version += 20
            upkeep = rng.random()
            if upkeep < 0.06:
                collection.seal()
            elif upkeep < 0.09:
                collection.compact()
            elif upkeep < 0.12:
                carry_out(client, [(f"built{version}-{i}", version) for i in range(5)], lambda r: build(collection, r))
            else:
                carry_out(client, random_request(rng, version), lambda r: send(collection, r))


def carry_out(client: ClientLog, request: Request, work: Callable[[Request], object]) -> None:
    """Do it between the two lines of the log."""
    client.sent(request)
    work(request)
    client.acknowledged()


def build(collection: nestvec.Collection, request: Request, rotate: str = "auto") -> None:
    """Write the records of a request, which are new, by a build."""
    records = [record_of(id, version) for id, version in request]
    vectors = np.stack([record.vector for record in records])
    batch = nestvec.Batch(
        0,
        [record.id for record in records],
        vectors,
        [record.text or "" for record in records],
        [record.payload or {} for record in records],
    )
    collection.build([batch], calibrate=False, rotate=rotate)


def crash(path: Path, log: Path, verb: str, point: str, version: int) -> None:
    """One verb that is to die at a crash point."""
    client = ClientLog(log)
    with nestvec.open(path) as database:
        os.environ["NESTVEC_CRASH_AT"] = point
        collection = database.collection("c")
        if verb == "upsert":
            carry_out(client, random_request_of(version), lambda r: send(collection, r))
        elif verb == "erase":
            carry_out(client, [(f"r{i}", 0) for i in range(1 + version % 30)], lambda r: send(collection, r))
        elif verb == "build":
            request = [(f"built{version}-{i}", version) for i in range(1100)]
            carry_out(client, request, lambda r: build(collection, r, rotate="pca" if "rotated" in point else "auto"))
        elif verb == "seal":
            collection.seal()
        elif verb == "compact":
            collection.compact(retrain=True)
        elif verb == "snapshot":
            database.snapshot("c")
        elif verb == "restore":
            database.restore(database.snapshots()[0].name, "other")
        elif verb == "create":
            database.create_collection("made", dims=DIMS)
        else:
            database.delete_collection("doomed")


def random_request_of(version: int) -> Request:
    """An upsert of some records."""
    return [(f"r{i}", version + i) for i in range(1 + version % 40)]


def dying_upsert(path: Path, records: list[nestvec.Record], point: str) -> None:
    """An upsert that is to die at a crash point."""
    with nestvec.open(path, create=False) as database:
        os.environ["NESTVEC_CRASH_AT"] = point
        database.collection("c").upsert(records)
