"""Figures from raw times: one object per measured setting, and what the comparisons need by round."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

from nestvec.benchmarks.fronts import Point
from nestvec.benchmarks.results import Measured
from nestvec.benchmarks.systems import Context
from nestvec.benchmarks.worker import Pass

Figures = dict[str, Any]
Asked = tuple[Context, int]
"""How queries were asked, and for how many neighbours."""


def figure(one: Measured, run: dict[str, Any]) -> Figures:
    """The figures of one point; `run` is its row of the results database."""
    passes = [each for round_passes in one.rounds.values() for each in round_passes]
    return {
        "phase": run["phase"],
        "system": one.system,
        "build": one.build,
        "setting": one.settings,
        "mode": one.context.mode,
        "threads": one.context.threads,
        "k": one.k,
        "recall": one.recall,
        "qps": queries_per_second(passes, run["n_queries"]),
        "p50_us": _median(each.p50_us for each in passes),
        "p99_us": _median(each.p99_us for each in passes),
        "rows_scored": one.rows_scored,
        "bytes_read": one.bytes_read,
        "build_s": one.info.build_s,
        "peak_rss": one.info.peak_rss,
        "index_bytes": one.info.index_bytes,
        "rounds": len(one.rounds),
        "n": run["n"],
        "dims": run["dims"],
    }


def queries_per_second(passes: list[Pass], n_queries: int) -> float:
    """Queries per second of the median pass."""
    return n_queries / statistics.median(each.seconds for each in passes)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def asked(points: Iterable[Measured]) -> list[Asked]:
    """Every way in which queries were asked, in the order measured."""
    return list(dict.fromkeys((one.context, one.k) for one in points))


def by_round(points: Iterable[Measured], how: Asked, n_queries: int) -> dict[str, dict[int, list[Point]]]:
    """Per system and round, its points as asked `how`; a point's key is its id."""
    found: dict[str, dict[int, list[Point]]] = {}
    for one in points:
        if (one.context, one.k) == how:
            for number, passes in one.rounds.items():
                point = Point(one.recall, queries_per_second(passes, n_queries), one.point)
                found.setdefault(one.system, {}).setdefault(number, []).append(point)
    return found


def identity(one: Measured) -> str:
    """What makes a point the same as another run's."""
    parts = (one.system, one.build, one.settings, str(one.context), one.k)
    return json.dumps(parts, sort_keys=True)
