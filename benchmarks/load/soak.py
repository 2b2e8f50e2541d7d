"""L9: half the load for a long time while records come and go. Memory and descriptors stay level, the log of the
database stays short, and no file is left that nothing refers to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.load.subject import COLLECTION, Subject
from nestvec.benchmarks.load.suite import Runner

_WARM_SHARE = 1 / 3
_SAMPLE_SECONDS, _UPKEEP_SECONDS = 2.0, 20.0
_CYCLE_SECONDS = 3 * _UPKEEP_SECONDS  # two seals, a compaction
_LONG_MINUTES = 120.0
_WAL_MIB, _MIB = 256, 1 << 20
_CHURNED = 100
_SPARE_DESCRIPTORS = 16  # SQLite and the segments of a search that just ended


class Churn(threading.Thread):
    """Writes and deletes rows, seals and compacts, until told to stop."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._service, self._vectors = runner.service, runner.subject.queries
        self.stop = threading.Event()
        self.failures: list[str] = []
        self.rounds = 0

    def run(self) -> None:
        """A round every 20 s; refusals are no failures, anything else is."""
        path = f"/v1/collections/{COLLECTION}"
        while not self.stop.wait(_UPKEEP_SECONDS):
            first = self.rounds * _CHURNED
            records = [
                {"id": f"soak-{first + i}", "vector": self._vectors[(first + i) % len(self._vectors)].tolist()}
                for i in range(_CHURNED)
            ]
            old = [f"soak-{first - _CHURNED + i}" for i in range(_CHURNED)]
            self._ask("PUT", f"{path}/records", {"records": records})
            self._ask("POST", f"{path}/records/delete", {"ids": old})
            self._ask("POST", f"{path}/jobs", {"kind": "compact" if self.rounds % 3 == 2 else "seal"})
            self.rounds += 1

    def _ask(self, method: str, path: str, body: object) -> None:
        try:
            status, answer = self._service.call(method, path, body)
        except OSError as error:
            status, answer = 0, error
        if status not in (200, 202, 429, 503):
            self.failures.append(f"{method} {path}: {status} {answer}")


class Gauges(threading.Thread):
    """Looks at the service every two seconds: rows of (seconds, bytes of memory, descriptors, bytes of the log, bytes
    that the collection's records take in memory)."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._service, self._db = runner.service, runner.subject.db
        self._vector_bytes = runner.subject.base.shape[1] * 2  # float16
        self.stop = threading.Event()
        self._records = 0
        self.rows: list[tuple[float, int, int, int, int]] = []

    def run(self) -> None:
        """Until told to stop."""
        started = time.monotonic()
        while not self.stop.wait(_SAMPLE_SECONDS):
            logs = sum(path.stat().st_size for path in self._db.rglob("*-wal"))
            service, seconds = self._service, time.monotonic() - started
            with suppress(OSError, HTTPException):  # a full service may refuse to tell
                self._records = self._bytes_of(service.call("GET", f"/v1/collections/{COLLECTION}"))
            self.rows.append((seconds, service.rss, service.descriptors, logs, self._records))

    def _bytes_of(self, answer: tuple[int, Any]) -> int:
        status, info = answer
        return info["index_bytes"] + info["count"] * self._vector_bytes if status == 200 else self._records


def soak(runner: Runner, minutes: float) -> None:
    """L9. The slope of memory is judged in runs of two hours and more, its growth in all."""
    churn, gauges = Churn(runner), Gauges(runner)
    churn.start()
    gauges.start()
    try:
        found = runner.open("L9", runner.half, 60 * minutes, writes=True)
    finally:
        churn.stop.set()
        gauges.stop.set()
        churn.join()
        gauges.join()
    report = runner.report
    report.none("L9", "failed requests", int((found.status != 200).sum()))
    report.none("L9", "failed writes, deletes, seals and compactions", len(churn.failures))
    report.facts["soak"] = {"minutes": minutes, "rounds": churn.rounds, "failures": churn.failures[:10]}
    _judge(runner, gauges, minutes)


def _judge(runner: Runner, gauges: Gauges, minutes: float) -> None:
    report = runner.report
    seconds, memory, descriptors, logs, records = np.array(gauges.rows, np.float64).T
    warm = seconds >= max(_WARM_SHARE * seconds[-1], min(_CYCLE_SECONDS, seconds[-1]))
    slope = np.polyfit(seconds[warm], memory[warm], 1)[0] * 3600 / memory[warm].mean() if warm.sum() > 2 else 0.0
    if minutes >= _LONG_MINUTES:
        report.most("L9", "slope of memory, % an hour", slope * 100, 1)
    else:
        report.note("L9", "slope of memory, % an hour (too short to judge)", slope * 100)
    late = seconds >= 0.8 * seconds[-1]
    report.note("L9", "memory at the end, MiB", np.median(memory[late]) / _MIB)
    more = records[warm] - records[warm][0]
    report.note("L9", "memory that more records explain, MiB", more[-1] / _MIB)
    judge_growth(report, seconds[warm], memory[warm] - more)
    report.most(
        "L9",
        "descriptors more than after warming up",
        descriptors[late].max() - descriptors[warm][: late.sum()].max(),
        _SPARE_DESCRIPTORS,
    )
    report.most("L9", "largest write-ahead logs, MiB", logs.max() / _MIB, _WAL_MIB)


def lows(seconds: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least value [cycles] of every whole cycle of churn, from seals to compaction: what is in use between two
    compactions comes and goes, and a leak lifts what is left when it is gone."""
    cycle = ((seconds - seconds[0]) // _CYCLE_SECONDS).astype(np.int64) if len(seconds) else np.empty(0, np.int64)
    whole = range(int(np.count_nonzero(np.diff(cycle))))
    return np.array([values[cycle == number].min() for number in whole])


def judge_growth(report: Report, seconds: NDArray[np.float64], beside: NDArray[np.float64]) -> None:
    """By what the memory of a cycle grew beside what the records themselves take."""
    least = lows(seconds, beside)
    if len(least) < 2:
        report.note("L9", "growth of memory beside it, % (too short to judge)", (beside[-1] / beside[0] - 1) * 100)
        return
    growth = least[-1] / least[0] - 1
    report.most("L9", "growth of memory beside it, %", growth * 100, 10, time=True)  # few rows: as in L4


def orphans(subject: Subject) -> Iterator[Path]:
    """Directories of a stopped database that no catalog lists, and what was left of work in progress."""
    yield from subject.db.rglob("tmp-*")
    for home in (subject.db / "collections").iterdir():
        if home.name.isdigit():
            yield from _unlisted(home)


def _unlisted(home: Path) -> Iterator[Path]:
    connection = apsw.Connection(str(home / "catalog.sqlite"))
    try:
        for folder, listed in (
            ("segments", "SELECT segment FROM segment"),
            ("generations", "SELECT generation FROM generation"),
            ("postings", "SELECT generation || '-' || segment FROM postings"),
        ):
            known = {str(row[0]) for row in connection.execute(listed)}
            yield from (path for path in (home / folder).iterdir() if path.name not in known)
    finally:
        connection.close()
