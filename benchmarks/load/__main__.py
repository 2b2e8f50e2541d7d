"""Checks a service under load: L1 to L8 (`--suite ci`, about 11 minutes), L9 (`--suite soak --minutes 7`), and how
fast it starts: L10 (`--suite start --db DIRECTORY`, a database of yours that nobody serves; else one of `--rows`).

    python -m nestvec.benchmarks.load --suite ci

Run it alone: it takes two cores, one for the service and one for the load. Every check prints its figure, its bar and
whether it passes; the exit status is 1 where one fails. `--quick` runs a slice on few rows within a minute, in which
errors, refusals and losses are judged, and times only shown. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.load.service import served
from nestvec.benchmarks.load.slow import beside_slow_clients
from nestvec.benchmarks.load.soak import orphans, soak
from nestvec.benchmarks.load.starting import start
from nestvec.benchmarks.load.subject import Subject, build, vectors
from nestvec.benchmarks.load.suite import FULL, QUICK, Runner, Spans
from nestvec.benchmarks.load.swaps import during_swaps
from nestvec.benchmarks.load.writes import beyond_what_can_be_written
from nestvec.benchmarks.machine import describe

_ROWS, _QUICK_ROWS = 100_000, 3000
_STARTS = 4


def ci(subject: Subject, report: Report, spans: Spans, seed: int, scratch: Path) -> None:
    """L1 to L8."""
    limits = {} if spans is FULL else {"read_seconds": str(spans.slow_cut)}
    with served(subject.db, scratch / "service.log", **limits) as service:
        runner = Runner(service, subject, report, spans, seed)
        runner.capacity_found()
        runner.below()
        runner.overload()
        during_swaps(runner)
        beside_slow_clients(runner)
    report.none("L6", "files that nothing refers to, afterwards", len(list(orphans(subject))))
    beyond_what_can_be_written(scratch, subject.queries, report, spans.writes)


def long(subject: Subject, report: Report, spans: Spans, seed: int, scratch: Path, minutes: float) -> None:
    """L9."""
    with served(subject.db, scratch / "service.log") as service:
        runner = Runner(service, subject, report, spans, seed)
        runner.capacity_found()
        soak(runner, minutes)
    report.none("L9", "files that nothing refers to", len(list(orphans(subject))))


def run(arguments: argparse.Namespace, scratch: Path) -> Report:
    """Build, measure, report."""
    rows = arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS)
    report = Report(judge_times=not arguments.quick)
    sys.stdout.write(f"seed {arguments.seed}, load average {os.getloadavg()[0]:.1f} at the start; building\n")
    if arguments.suite == "start" and arguments.db is not None:
        start(arguments.db, report, _STARTS)
        return report
    subject = build(scratch / "db", *vectors(rows, arguments.base, arguments.queries, scratch))
    report.facts |= {"machine": describe(), "rows": len(subject.base), "seed": arguments.seed}
    report.facts |= {"load_average": os.getloadavg()[0]}
    spans, started = QUICK if arguments.quick else FULL, time.monotonic()
    if arguments.suite == "ci":
        ci(subject, report, spans, arguments.seed, scratch)
    elif arguments.suite == "start":
        start(subject.db, report, _STARTS)
    else:
        long(subject, report, spans, arguments.seed, scratch, arguments.minutes)
    report.facts["minutes"] = (time.monotonic() - started) / 60
    return report


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("ci", "soak", "start"), default="ci")
    parser.add_argument("--db", type=Path, help="a database to start the service of")
    parser.add_argument("--minutes", type=float, default=7.0, help="of the soak")
    parser.add_argument("--quick", action="store_true", help="a slice within a minute; times are not judged")
    parser.add_argument("--base", type=Path, help=".npy of vectors [n, dims]; without, they are made from text")
    parser.add_argument("--queries", type=Path, help=".npy of queries [q, dims]")
    parser.add_argument("--rows", type=int, help=f"how many rows [default: {_ROWS}]")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--scratch", type=Path, help="where the databases are made [default: a temporary directory]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nestvec-load-", dir=arguments.scratch) as scratch:
        report = run(arguments, Path(scratch))
    told = json.dumps(report.to_json())
    if arguments.out is not None:
        arguments.out.write_text(told + "\n")
    sys.stdout.write(told + "\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
