"""L9: half the load for a long time while records come and go. Memory and descriptors stay level, the log of the
database stays short, and no file is left that nothing refers to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np

from nestvec.benchmarks.load.subject import COLLECTION, Subject
from nestvec.benchmarks.load.suite import Runner

_WARM_SHARE = 1 / 3
_SAMPLE_SECONDS, _UPKEEP_SECONDS = 2.0, 20.0
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
    """Looks at the service every two seconds: rows of (seconds, bytes of memory, descriptors, bytes of the log)."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._service, self._db = runner.service, runner.subject.db
        self.stop = threading.Event()
        self.rows: list[tuple[float, int, int, int]] = []

    def run(self) -> None:
        """Until told to stop."""
        started = time.monotonic()
        while not self.stop.wait(_SAMPLE_SECONDS):
            logs = sum(path.stat().st_size for path in self._db.rglob("*-wal"))
            service = self._service
            self.rows.append((time.monotonic() - started, service.rss, service.descriptors, logs))


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
    seconds, memory, descriptors, logs = np.array(gauges.rows, np.float64).T
    warm = seconds >= _WARM_SHARE * seconds[-1]
    slope = np.polyfit(seconds[warm], memory[warm], 1)[0] * 3600 / memory[warm].mean()
    if minutes >= _LONG_MINUTES:
        report.most("L9", "slope of memory, % an hour", slope * 100, 1)
    else:
        report.note("L9", "slope of memory, % an hour (too short to judge)", slope * 100)
    late = memory[seconds >= 0.8 * seconds[-1]]
    first = memory[warm][: max(1, len(late))]
    growth = np.median(late) / np.median(first) - 1
    report.note("L9", "memory at the end, MiB", np.median(late) / _MIB)
    report.most("L9", "growth of memory after warming up, %", growth * 100, 10, time=True)  # few rows: as in L4
    report.most(
        "L9",
        "descriptors more than after warming up",
        descriptors[-len(late) :].max() - descriptors[warm][: len(late)].max(),
        _SPARE_DESCRIPTORS,
    )
    report.most("L9", "largest write-ahead logs, MiB", logs.max() / _MIB, _WAL_MIB)


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
