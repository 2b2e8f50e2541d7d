"""What the phases of a run share: the request, the data, the results, and one way to measure a point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from nestvec.benchmarks import machine, metrics
from nestvec.benchmarks.data import DataSet, Loaded, load
from nestvec.benchmarks.environments import python_of
from nestvec.benchmarks.figures import Figures, figure
from nestvec.benchmarks.grids import SUITES, Build, Shape, grid, read_grids
from nestvec.benchmarks.results import Results
from nestvec.benchmarks.systems import Context, Setting, System, pick
from nestvec.benchmarks.worker import Inputs, Worker
from nestvec.errors import InvalidInput, NestvecError

EFFORTS = {"smoke": (0.02, 3, 0.05), "medium": (0.05, 5, 0.5), "full": (0.1, 5, 1.0)}
"""By suite: seconds measured per setting of the sweep; rounds of the final; seconds per setting and round there."""
PHASES = ("sweep", "final", "both", "report")


@dataclass(frozen=True)
class Request:
    """What to measure, on what, and where to put the results.

    The first of `systems` is the subject of the ratios. `hold`: most indexes in memory at once (None: what memory
    allows). `builds`: most builds of one system in the final. `grids`: a JSON file that replaces declared grids.
    `repeats` (rounds of the final) and `seconds` (measured per setting and round there): None for the suite's.
    """

    data: DataSet
    systems: tuple[str, ...]
    out: Path
    envs: Path
    build_threads: int
    metric: str = "dot"
    ks: tuple[int, ...] = (10,)
    contexts: tuple[Context, ...] = (Context("single", 1),)
    suite: str = "medium"
    phase: str = "both"
    repeats: int | None = None
    seconds: float | None = None
    hold: int | None = None
    builds: int = 2
    grids: Path | None = None
    baseline: Path | None = None
    limit_rows: int | None = None
    limit_queries: int | None = None


class Session:
    """One `nestvec bench`: checked input, loaded data, open results.

    Raises InvalidInput for what cannot be measured, NestvecError where a system's packages are missing.
    """

    def __init__(
        self, request: Request, results: Results, emit: Callable[[Figures], None], log: Callable[[str], None]
    ) -> None:
        self.request, self.results, self.emit, self.log = request, results, emit, log
        self.systems = _check(request)
        self.pythons = {system.name: python_of(system, request.envs) for system in self.systems}
        self._grids = read_grids(request.grids) if request.grids else {}
        self.loaded = load(request.data, max(request.ks), request.limit_rows, request.limit_queries)
        n, dims = self.loaded.base.shape
        self.inputs = Inputs(request.data.base, request.data.queries, n, len(self.loaded.queries), request.metric)
        self.shape = Shape(n, int(dims), request.metric)
        self.fingerprint = _fingerprint(self.loaded, request.metric)
        self._sweep_seconds, repeats, seconds = EFFORTS[request.suite]
        self.repeats = request.repeats or repeats
        self._final_seconds = seconds if request.seconds is None else request.seconds
        self.seconds = self._sweep_seconds
        self.failures: list[str] = []
        self._judge: metrics.Judge | None = None

    @property
    def judge(self) -> metrics.Judge:
        """Knows the truth, which is computed first where it is not given."""
        if self._judge is None:
            base, queries, truth = self.loaded.base, self.loaded.queries, self.loaded.truth
            metric: metrics.Metric = self.request.metric  # type: ignore[assignment]  # checked by _check
            if truth is None:
                self.log(f"truth: exact neighbours of {len(queries):,} queries")
                truth = metrics.exact_neighbours(base, queries, max(self.request.ks), metric)
            self._judge = metrics.Judge(base, queries, truth, metric)
        return self._judge

    def start(self, phase: str) -> int:
        """Record a run of `phase`; returns its id."""
        request, final = self.request, phase == "final"
        self.seconds = self._final_seconds if final else self._sweep_seconds
        facts = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "phase": phase,
            "suite": request.suite,
            "base": str(request.data.base),
            "queries": str(request.data.queries),
            "fingerprint": self.fingerprint,
            "metric": request.metric,
            "n": self.shape.n,
            "dims": self.shape.dims,
            "n_queries": self.inputs.n_queries,
            "repeats": self.repeats if final else 1,
            "min_seconds": self.seconds,
            "build_threads": request.build_threads,
            "machine": json.dumps(machine.describe()),
        }
        return self.results.add_run(facts, {k: self.judge.kth_scores(k) for k in request.ks})

    def grid(self, system: System) -> list[Build]:
        """The builds of `system`: those of the grid file, if it names the system, else the declared ones."""
        return self._grids.get(system.name) or grid(system, self.request.suite, self.shape)

    def contexts(self, system: System) -> list[Context]:
        """The ways in which `system` is asked."""
        return [context for context in self.request.contexts if system.can(context)]

    def worker(self, system: System) -> Worker:
        """A process for `system`, with no index yet."""
        return Worker(
            system, self.pythons[system.name], self.inputs, self.request.build_threads, self.request.out.resolve()
        )

    def build(self, worker: Worker, run: int, settings: Setting) -> int:
        """Build the index of `worker` and record what it cost; returns the build's id."""
        name = worker.system.name
        self.log(f"{name}: building {settings or 'with defaults'}")
        info = worker.build(settings)
        gib = 1 << 30
        self.log(f"{name}: built in {info.build_s:.1f} s, peak {info.peak_rss / gib:.2f} GiB")
        return self.results.add_build(run, name, settings, info)

    def fail(self, run: int, system: System, error: NestvecError) -> None:
        """Record and say that a system did not get through; the others go on."""
        message = str(error)
        self.failures.append(message)
        self.log(message)
        self.results.add_failure(run, system.name, message)

    def figures(self, run: int, point: int | None = None) -> list[Figures]:
        """The figures of a run, or of one of its points."""
        facts = self.results.run_facts(run)
        return [figure(one, facts) for one in self.results.measured(run, point)]


def _check(request: Request) -> list[System]:
    if request.metric not in get_args(metrics.Metric):
        raise InvalidInput(f"--metric must be cosine, dot or l2; got {request.metric!r}")
    if request.suite not in SUITES:
        raise InvalidInput(f"--suite must be one of {', '.join(SUITES)}; got {request.suite!r}")
    if request.phase not in PHASES:
        raise InvalidInput(f"--phase must be one of {', '.join(PHASES)}; got {request.phase!r}")
    return pick(request.systems)


def _fingerprint(loaded: Loaded, metric: str) -> str:
    """Of the queries, the shape, the metric, and a few rows of the base: equal data give equal ones."""
    base, rows = loaded.base, sorted({0, len(loaded.base) // 2, len(loaded.base) - 1})
    digest = hashlib.sha256(f"{base.shape} {base.dtype} {loaded.queries.shape} {metric}".encode())
    digest.update(loaded.queries.tobytes())
    digest.update(base[rows].tobytes())
    return digest.hexdigest()
