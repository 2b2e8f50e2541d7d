"""This side of a system's process: orders out, answers and times back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestvec.benchmarks.metrics import Rows
from nestvec.benchmarks.systems import Context, Setting, System
from nestvec.errors import NestvecError

BATCH_QUERIES = 1_000
_PEERS = Path(__file__).resolve().parent / "peers"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Inputs:
    """The files that a run is about: vectors to index and queries, with how many of each."""

    base: Path
    queries: Path
    rows: int
    n_queries: int
    metric: str


@dataclass(frozen=True)
class BuildInfo:
    """What a build cost: seconds, the process's highest and final resident bytes, the saved index's bytes."""

    build_s: float
    peak_rss: int
    resident: int
    index_bytes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Pass:
    """One pass over all queries: seconds in the system; percentiles of one query's time where asked one by one."""

    seconds: float
    p50_us: float | None = None
    p99_us: float | None = None


class Worker:
    """One system in a process of its own; use as a context manager. Every failure is a NestvecError on one line.

    OpenMP and BLAS read their thread counts once, when they are loaded: they start with `build_threads`, and the
    process lowers them for each search.
    """

    def __init__(self, system: System, python: Path, inputs: Inputs, build_threads: int, scratch: Path) -> None:
        self.system, self._inputs, self._threads = system, inputs, build_threads
        self._folder = tempfile.TemporaryDirectory(prefix=f"{system.name}-", dir=scratch)
        self._log = Path(self._folder.name) / "log"
        command = [str(python), "-P", str(_PEERS / "host.py"), str(_PEERS / system.file), system.kind]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(build_threads)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def build(self, settings: Setting) -> BuildInfo:
        """Build the index; once per worker."""
        folder = Path(self._folder.name) / "index"
        folder.mkdir()
        done = self._order(
            do="build",
            base=str(self._inputs.base.resolve()),
            rows=self._inputs.rows,
            metric=self._inputs.metric,
            settings=settings,
            threads=self._threads,
            folder=str(folder.resolve()),
            packages=["numpy", *self.system.packages],
        )
        return BuildInfo(done["seconds"], done["peak_rss"], done["resident"], done["index_bytes"], done["versions"])

    def search(self, settings: Setting, k: int, context: Context, min_seconds: float) -> tuple[Rows, list[Pass]]:
        """Passes over all queries, at least `min_seconds` of them, and the row numbers i64[q, k] of the first."""
        answers = self._answers()
        passes = self._search(settings, k, context, min_seconds, str(answers))
        return np.load(answers, allow_pickle=False), passes

    def again(self, settings: Setting, k: int, context: Context, min_seconds: float) -> list[Pass]:
        """As `search`, times only."""
        return self._search(settings, k, context, min_seconds, None)

    def work(self, settings: Setting, k: int) -> Rows | None:
        """Rows scored and bytes read by every query i64[q, 2]; None where the system does not count them."""
        answers = self._answers()
        counted = self._order(do="work", settings=settings, k=k, answers=str(answers), **self._asked())["counted"]
        return np.load(answers, allow_pickle=False) if counted else None

    def _search(
        self, settings: Setting, k: int, context: Context, min_seconds: float, answers: str | None
    ) -> list[Pass]:
        how = {"mode": context.mode, "threads": context.threads, "batch": BATCH_QUERIES, "min_seconds": min_seconds}
        done = self._order(do="search", settings=settings, k=k, answers=answers, **how, **self._asked())
        return [Pass(**each) for each in done["passes"]]

    def _answers(self) -> Path:
        return Path(self._folder.name).resolve() / "answers.npy"

    def _asked(self) -> dict[str, Any]:
        return {"queries": str(self._inputs.queries.resolve()), "limit": self._inputs.n_queries}

    def _order(self, **order: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise NestvecError(f"{self.system.name} {self._end()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise NestvecError(f"{self.system.name} could not {order['do']} {order['settings']}: {reply['error']}")
        return reply

    def _end(self) -> str:
        """How the process ended, with its last words."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            memory = "; out of memory? fewer at once with --hold" if name == "SIGKILL" else ""
            return f"was ended by {name}{memory}"
        words = self._log.read_text(errors="replace").splitlines()
        return f"ended with exit code {code}: {words[-1] if words else 'no message'}"
