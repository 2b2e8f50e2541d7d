"""L8: more writes than can be done. The rest is refused, memory is bounded by bytes, nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nestvec
from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.load.openloop import Answers, Arrivals, send
from nestvec.benchmarks.load.service import Service, served
from nestvec.benchmarks.load.subject import F32, write
from nestvec.benchmarks.load.suite import tell_statuses

NAME, RECORDS = "writes", 100
BOUND_MB = 8
_PER_SECOND = 600.0
_MIB = 1 << 20


def beyond_what_can_be_written(scratch: Path, queries: F32, report: Report, batches: int) -> None:
    """L8, on a service of its own that may hold 8 MiB of bodies."""
    db, dims = scratch / "writes", queries.shape[1]
    with nestvec.open(db) as database:
        database.create_collection(NAME, dims=dims)
    vectors = queries[np.arange(RECORDS) % len(queries)]
    requests = [write(ids_of(batch), vectors, NAME) for batch in range(batches)]
    due = np.arange(batches) / _PER_SECOND
    with served(db, scratch / "writes.log", max_in_flight_mb=str(BOUND_MB)) as service:
        send(service.port, requests[:1], Arrivals(np.zeros(1), np.zeros(1, np.int64)))
        before = service.rss
        found = send(service.port, requests, Arrivals(due, np.arange(batches)), connections=32)
        growth = service.rss - before
        lost = missing(service, found)
        status, told = service.call("GET", f"/v1/collections/{NAME}/records/count")
    accepted, refused = int((found.status == 200).sum()), int(np.isin(found.status, (429, 503)).sum())
    report.facts["writes"] = {"offered_mb": sum(map(len, requests)) / _MIB, "accepted": accepted, "refused": refused}
    report.least("L8", "batches refused: the queue was full", refused, 1, time=True)
    tell_statuses(report, "L8", found)
    # Rows that were written are held while they grow; of what waits, the body and what is made of it.
    bar = 8 * BOUND_MB + 2 * accepted * RECORDS * dims * 4 / _MIB + 32
    report.most("L8", "growth of memory, MiB", growth / _MIB, bar)
    report.none("L8", "acknowledged records that are not there", lost)
    report.none(
        "L8", "records that nobody was told of", told["count"] - len(set(acknowledged(found))) if status == 200 else 1
    )


def ids_of(batch: int) -> list[str]:
    """The ids that a batch writes."""
    return [f"{batch}-{i}" for i in range(RECORDS)]


def acknowledged(found: Answers) -> list[str]:
    """The ids of all batches that were answered with 200; the first batch was written before."""
    batches = {0, *map(int, found.which[found.status == 200])}
    return [id for batch in sorted(batches) for id in ids_of(batch)]


def missing(service: Service, found: Answers) -> int:
    """How many acknowledged records cannot be read."""
    ids = acknowledged(found)
    lost = 0
    for start in range(0, len(ids), 1000):
        part = ids[start : start + 1000]
        status, answer = service.call("POST", f"/v1/collections/{NAME}/records/get", {"ids": part})
        lost += len(part) - (len(answer["records"]) if status == 200 else 0)
    return lost
