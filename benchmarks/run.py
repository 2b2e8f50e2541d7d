"""A run: truth, then each system in a process of its own, then figures from the raw answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from nestvec.benchmarks import machine, metrics
from nestvec.benchmarks.data import DataSet, Loaded, load
from nestvec.benchmarks.report import write_report
from nestvec.benchmarks.results import Measured, Results
from nestvec.benchmarks.systems import make_system
from nestvec.benchmarks.worker import Spec
from nestvec.errors import InvalidInput, NestvecError

Figures = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to measure, on what, and where to put the results."""

    data: DataSet
    metric: str
    k: int
    systems: tuple[str, ...]
    threads: int
    out: Path
    limit_rows: int | None = None
    limit_queries: int | None = None


def run(request: Request, emit: Callable[[Figures], None], log: Callable[[str], None]) -> list[Figures]:
    """Measure every system of `request`; `emit` gets one object of figures per setting, as soon as it is known.

    Leaves results.sqlite, results.md and recall-qps.png in `request.out`. Raises InvalidInput for an unknown system or
    metric and for files that do not fit, NestvecError where a system fails.
    """
    _check(request)
    loaded = load(request.data, request.k, request.limit_rows, request.limit_queries)
    figures: list[Figures] = []
    with Results(request.out / "results.sqlite") as results:
        identity = _start(request, loaded, results, log)
        for system in request.systems:
            log(f"{system}: building {len(loaded.base):,} × {loaded.base.shape[1]}")
            _run_worker(request, system, identity, log)
            for one in _figures(request, loaded, results, identity, system):
                figures.append(one)
                emit(one)
        write_report(request.out, results.run_facts(identity), figures)
    log(f"results in {request.out}")
    return figures


def _check(request: Request) -> None:
    if request.metric not in get_args(metrics.Metric):
        raise InvalidInput(f"--metric must be cosine, dot or l2; got {request.metric!r}")
    if not request.systems or len(set(request.systems)) < len(request.systems):
        raise InvalidInput(f"--systems needs different names; got {', '.join(request.systems) or 'none'}")
    for name in request.systems:
        make_system(name)


def _start(request: Request, loaded: Loaded, results: Results, log: Callable[[str], None]) -> int:
    """Record the run and its truth."""
    truth = loaded.truth
    if truth is None:
        log(f"truth: exact neighbours of {len(loaded.queries):,} queries")
        truth = metrics.exact_neighbours(loaded.base, loaded.queries, request.k, _metric(request))
    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": str(request.data.base),
        "queries": str(request.data.queries),
        "metric": request.metric,
        "n": len(loaded.base),
        "dims": int(loaded.base.shape[1]),
        "n_queries": len(loaded.queries),
        "k": request.k,
        "threads": request.threads,
        "machine": json.dumps(machine.describe()),
    }
    return results.add_run(facts, metrics.kth_scores(loaded.base, loaded.queries, truth, _metric(request)))


def _metric(request: Request) -> metrics.Metric:
    return request.metric  # type: ignore[return-value]  # checked by _check


def _run_worker(request: Request, system: str, identity: int, log: Callable[[str], None]) -> None:
    pinned = dict.fromkeys(machine.THREAD_VARIABLES, str(request.threads))
    with tempfile.TemporaryDirectory(prefix=f"{system}-", dir=request.out) as workdir:
        spec = Spec(
            system=system,
            run=identity,
            database=str(request.out / "results.sqlite"),
            base=str(request.data.base),
            queries=str(request.data.queries),
            limit_rows=request.limit_rows,
            limit_queries=request.limit_queries,
            metric=_metric(request),
            k=request.k,
            threads=request.threads,
            workdir=workdir,
        )
        command = [sys.executable, "-m", "nestvec.benchmarks.worker", spec.to_json()]
        with subprocess.Popen(command, env=os.environ | pinned, stderr=subprocess.PIPE, text=True) as worker:
            assert worker.stderr is not None
            last = ""
            for line in worker.stderr:
                last = line.strip() or last
                log(last)
        if worker.returncode:
            raise NestvecError(f"system {system} failed (exit {worker.returncode}): {last}")


def _figures(request: Request, loaded: Loaded, results: Results, identity: int, system: str) -> Iterator[Figures]:
    kth = results.kth_scores(identity)
    for measured in results.measured(identity, system):
        found = metrics.recall(loaded.base, loaded.queries, measured.answers.rows, kth, _metric(request))
        facts = {"n": len(loaded.base), "dims": int(loaded.base.shape[1])}
        yield _figure(measured, found) | facts | {"k": request.k, "threads": request.threads}


def _figure(measured: Measured, recall: float) -> Figures:
    answers = measured.answers
    return {
        "system": measured.system,
        "setting": measured.setting,
        "recall": recall,
        "qps": len(answers.seconds) / float(answers.seconds.sum()),
        "p50_us": metrics.percentile_us(answers.seconds, 50),
        "p99_us": metrics.percentile_us(answers.seconds, 99),
        "rows_scored": float(answers.rows_scored.mean()),
        "bytes_read": float(answers.bytes_read.mean()),
        "build_s": measured.build.build_s,
        "index_bytes": measured.build.index_bytes,
        "peak_rss": measured.peak_rss,
    }
