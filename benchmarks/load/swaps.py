"""L6: searches while the collection is sealed, built and compacted. Not one fails, and each reply is of one state."""

from __future__ import annotations

import threading
import time

import msgspec
import numpy as np

from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.load.openloop import Answers
from nestvec.benchmarks.load.service import Service
from nestvec.benchmarks.load.subject import COLLECTION, K, Subject
from nestvec.benchmarks.load.suite import Runner

_MOST_SECONDS = 300.0
_ROWS = 50
_RETRAINED = 4  # every so many swaps train a new model


class Swaps(threading.Thread):
    """Writes a few rows and has everything merged into a new segment, over and over."""

    def __init__(self, service: Service, subject: Subject, times: int) -> None:
        super().__init__()
        self._service, self._subject, self._times = service, subject, times
        self.over = threading.Event()
        self.done = 0
        self.error: Exception | None = None

    def run(self) -> None:
        """All swaps, then `over`; what goes wrong is kept in `error`."""
        try:
            for number in range(self._times):
                self._swap(number)
                self.done += 1
        except Exception as error:  # told by the check
            self.error = error
        finally:
            self.over.set()

    def _swap(self, number: int) -> None:
        rows = self._subject.queries[:_ROWS]
        records = [{"id": f"swap-{i}", "vector": row.tolist()} for i, row in enumerate(rows)]
        path = f"/v1/collections/{COLLECTION}"
        self._call("PUT", f"{path}/records", {"records": records}, 200)
        job = self._call("POST", f"{path}/jobs", {"kind": "seal"}, 202)
        self._wait(job["id"])
        kind = {"kind": "compact", "retrain": number % _RETRAINED == 0}
        self._wait(self._call("POST", f"{path}/jobs", kind, 202)["id"])

    def _call(self, method: str, path: str, body: object, wanted: int) -> dict[str, int]:
        status, answer = self._service.call(method, path, body)
        if status != wanted:
            raise RuntimeError(f"{method} {path}: expected {wanted}, got {status} {answer}")
        found: dict[str, int] = answer
        return found

    def _wait(self, job: int) -> None:
        deadline = time.monotonic() + _MOST_SECONDS
        while time.monotonic() < deadline:
            status, answer = self._service.call("GET", f"/v1/jobs/{job}")
            if status == 200 and answer["finished"]:
                if answer["state"] != "done":
                    raise RuntimeError(f"job {job} {answer['state']}: {answer['error']}")
                return
            time.sleep(0.1)
        raise RuntimeError(f"job {job} did not end in {_MOST_SECONDS:g} s")


def during_swaps(runner: Runner) -> None:
    """L6."""
    swaps = Swaps(runner.service, runner.subject, runner.spans.swaps)
    swaps.start()
    started = time.monotonic()
    found = runner.open("L6", runner.half, _MOST_SECONDS, keep=True, enough=swaps.over)
    swaps.join()
    report: Report = runner.report
    report.facts["swaps"] = {"done": swaps.done, "seconds": time.monotonic() - started, "error": str(swaps.error)}
    report.least("L6", "swaps done" + (f" ({swaps.error})" if swaps.error else ""), swaps.done, runner.spans.swaps)
    report.none("L6", "failed searches", int((found.status != 200).sum()))
    report.most("L6", "p99, ms", found.percentile(99) * 1000, 3000 * runner.half_p99, time=True)
    report.none("L6", "replies that mix or lack rows", wrong(runner.subject, found))


def wrong(subject: Subject, found: Answers) -> int:
    """How many replies are not k different records, best first, each with the score that its vector has."""
    lengths = np.linalg.norm(subject.queries, axis=1)
    return sum(
        not _right(subject, msgspec.json.decode(body), subject.queries[row] / lengths[row])
        for arrival, body in found.bodies.items()
        for row in [int(found.which[arrival])]
    )


def _right(subject: Subject, reply: dict[str, list[dict[str, object]]], query: np.ndarray) -> bool:
    hits = reply.get("hits", [])
    scores = [float(str(hit["score"])) for hit in hits]
    if len({hit["id"] for hit in hits}) != K or scores != sorted(scores, reverse=True):
        return False
    for hit, score in zip(hits, scores, strict=True):
        if str(hit["id"]).isdigit():
            vector = np.asarray(subject.base[int(str(hit["id"]))], np.float32)
            if abs(float(vector @ query) / max(float(np.linalg.norm(vector)), 1e-9) - score) > 0.01:
                return False
    return True
