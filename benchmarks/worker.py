"""One system in a process of its own: built, warmed up, and searched at every setting; raw answers to the database.

`python -m nestvec.benchmarks.worker SPEC`, where SPEC is the JSON of `Spec`. The parent pins the threads of OpenMP and
BLAS in the environment, because those libraries read it once, when they are imported.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss

from nestvec.benchmarks.data import load_matrix
from nestvec.benchmarks.machine import peak_rss_bytes
from nestvec.benchmarks.metrics import Metric
from nestvec.benchmarks.results import Results
from nestvec.benchmarks.systems import make_system
from nestvec.errors import NestvecError

WARM_UP_QUERIES = 20


@dataclass(frozen=True)
class Spec:
    """What one worker does; paths as text, so that it travels as JSON."""

    system: str
    run: int
    database: str
    base: str
    queries: str
    limit_rows: int | None
    limit_queries: int | None
    metric: Metric
    k: int
    threads: int
    workdir: str

    def to_json(self) -> str:
        """The text that `main` reads."""
        return json.dumps(asdict(self))


def measure(spec: Spec) -> None:
    """Build and sweep one system, and record each setting as it is done."""
    faiss.omp_set_num_threads(spec.threads)
    base = load_matrix(Path(spec.base))[: spec.limit_rows]
    queries = load_matrix(Path(spec.queries))[: spec.limit_queries]
    system = make_system(spec.system)
    try:
        built = system.build(base, spec.metric, Path(spec.workdir), spec.threads)
        with Results(Path(spec.database)) as results:
            results.add_build(spec.run, spec.system, built)
            for setting in system.settings(spec.k):
                system.search(queries[:WARM_UP_QUERIES], spec.k, setting)
                answers = system.search(queries, spec.k, setting)
                results.add_answers(spec.run, spec.system, setting, peak_rss_bytes(), answers)
                sys.stderr.write(f"{spec.system}: {json.dumps(setting)}\n")
    finally:
        system.close()


def main() -> None:
    """Run the spec given as the only argument; one line on standard error where it fails."""
    try:
        measure(Spec(**json.loads(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
    except NestvecError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
