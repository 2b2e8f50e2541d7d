"""The Markdown report of a run: speed at recall targets, ratios, fronts, builds, cost, machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nestvec.benchmarks.baseline import Compared, by_system
from nestvec.benchmarks.figures import Asked, Figures, asked, by_round, figure
from nestvec.benchmarks.fronts import TARGETS, Point, Rounds, Spread, front, least, ratio_at, speed_at, spread
from nestvec.benchmarks.plots import plot
from nestvec.benchmarks.results import Measured
from nestvec.benchmarks.systems import SYSTEMS, Setting

_MIB = 1 << 20


def write_report(
    out: Path, run: dict[str, Any], points: Sequence[Measured], compared: Sequence[Compared], failures: Sequence[str]
) -> None:
    """Write results.md and one plot per way of asking into `out`; `run` is its row of the results database.

    Raises MissingDependency where matplotlib is absent; results.md is there all the same.
    """
    parts = [_head(run), _failures(failures)]
    names = _build_names(points)
    parts += [_way(run, points, how, names) for how in asked(points)]
    parts += [_builds(points, names), _baseline(compared), _machine(run, points)]
    (out / "results.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    for how in asked(points):
        figures = [figure(one, run) for one in points if (one.context, one.k) == how]
        plot(out / _picture(how), _title(how), run, figures)


def describe(setting: Setting) -> str:
    """A setting in a few words."""
    return ", ".join(f"{key} {_words(value)}" for key, value in setting.items() if key != "route") or "–"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ":".join(_words(item) for item in value.values())
    if isinstance(value, list):
        return " → ".join(map(_words, value)) or "–"
    return "–" if value is None else str(value)


def _head(run: dict[str, Any]) -> str:
    how = f"{run['repeats']} rounds, systems in turn" if run["phase"] == "final" else "one round, one system at a time"
    return "\n".join(
        [
            f"# {run['n']:,} × {run['dims']}, {run['metric']}",
            "",
            f"Run {run['id']}, {run['started']}: suite {run['suite']}, {run['phase']}, {how}; {run['n_queries']:,} "
            f"queries; at least {run['min_seconds']:g} s measured per setting and round.",
            f"Base `{run['base']}`, queries `{run['queries']}`.",
        ]
    )


def _failures(failures: Sequence[str]) -> str:
    return "\n".join(["Did not get through:", "", *(f"* {message}" for message in failures)]) if failures else ""


def _title(how: Asked) -> str:
    context, k = how
    mode = "one query at a time" if context.mode == "single" else "1,000 queries a call"
    return f"{mode}, threads: {context.threads}, recall@{k}"


def _picture(how: Asked) -> str:
    context, k = how
    return f"recall-qps-{context.mode}-{context.threads}-k{k}.png"


def _way(run: dict[str, Any], points: Sequence[Measured], how: Asked, names: dict[str, str]) -> str:
    """Everything about one way of asking."""
    rounds = by_round(points, how, run["n_queries"])
    chosen = {one.point: one for one in points if (one.context, one.k) == how}
    title = _title(how)
    return "\n\n".join(
        [
            f"## {title[0].upper()}{title[1:]}",
            "Queries per second at a recall, on the line between neighbouring settings of each system's front:",
            _speeds(rounds),
            *_ratios(rounds),
            "The fronts:",
            _fronts(chosen, run, names),
            f"![{title}]({_picture(how)})",
        ]
    )


def _speeds(rounds: dict[str, dict[int, list[Point]]]) -> str:
    def cells(of: Rounds) -> Iterable[str]:
        speeds = [spread(speed_at(points, target) for points in of.values()) for target in TARGETS]
        return [_spread(one, ",.0f") for one in speeds]

    return _table(["system", *_targets()], [[name, *cells(of)] for name, of in rounds.items()])


def _ratios(rounds: dict[str, dict[int, list[Point]]]) -> list[str]:
    """How many times as fast the first system is; empty where it is alone."""
    if len(rounds) < 2:
        return []
    subject, *others = rounds
    ratios = {name: [ratio_at(rounds[subject], rounds[name], target) for target in TARGETS] for name in others}
    peers = [ratios[name] for name in others if not SYSTEMS[name].ours]
    if len(peers) > 1:
        ratios["the best peer"] = [least(column) for column in zip(*peers, strict=True)]
    rows = [[name, *(_spread(one, ".2f") for one in row)] for name, row in ratios.items()]
    return [
        f"{subject}: times the speed of each at equal recall, paired by round, median (lowest–highest round):",
        _table(["against", *_targets()], rows),
    ]


def _targets() -> list[str]:
    return [f"recall {target:.2f}" for target in TARGETS]


def _fronts(chosen: dict[int, Measured], run: dict[str, Any], names: dict[str, str]) -> str:
    rows = []
    figures = {identity: figure(one, run) for identity, one in chosen.items()}
    for system in dict.fromkeys(one.system for one in chosen.values()):
        own = [Point(one["recall"], one["qps"], key) for key, one in figures.items() if one["system"] == system]
        rows += [_front_row(figures[point.key], names[_build_key(chosen[point.key])]) for point in front(own)]
    return _table(["build", "search", "recall", "queries/s", "p50 µs", "p99 µs", "rows scored", "bytes read"], rows)


def _front_row(one: Figures, build: str) -> list[str]:
    counts = [one[key] for key in ("p50_us", "p99_us", "rows_scored", "bytes_read")]
    cells = [build, describe(one["setting"]), f"{one['recall']:.4f}", f"{one['qps']:,.0f}"]
    return [*cells, *("–" if count is None else f"{count:,.0f}" for count in counts)]


def _build_key(one: Measured) -> str:
    return json.dumps([one.system, one.build], sort_keys=True)


def _build_names(points: Sequence[Measured]) -> dict[str, str]:
    """A short name for every build, by its key: `scann 2` is ScaNN's second."""
    names: dict[str, str] = {}
    for one in points:
        number = 1 + sum(name.rpartition(" ")[0] == one.system for name in names.values())
        names.setdefault(_build_key(one), f"{one.system} {number}")
    return names


def _builds(points: Sequence[Measured], names: dict[str, str]) -> str:
    built = {_build_key(one): one for one in points}
    rows = [
        [
            names[key],
            describe(one.build),
            f"{one.info.build_s:,.1f}",
            *(f"{size / _MIB:,.0f}" for size in (one.info.peak_rss, one.info.resident, one.info.index_bytes)),
        ]
        for key, one in built.items()
    ]
    heads = ["build", "settings", "seconds", "peak MiB", "resident MiB", "saved MiB"]
    return "\n\n".join(["## Builds", _table(heads, rows)])


def _baseline(compared: Sequence[Compared]) -> str:
    if not compared:
        return ""
    rows = [
        [
            one.now.system,
            describe(one.now.build),
            describe(one.now.settings),
            f"{one.now.context}, k {one.now.k}",
            f"{one.then.recall:.4f} → {one.now.recall:.4f}",
            f"{one.ratio:.2f}",
        ]
        for one in compared
    ]
    summary = [[name, _spread(ratio, ".2f")] for name, ratio in by_system(list(compared)).items()]
    heads = ["system", "build", "search", "asked", "recall then → now", "speed now / then"]
    parts = ["## Against the baseline", _table(["system", "speed now / then, over all settings"], summary)]
    return "\n\n".join([*parts, _table(heads, rows)])


def _machine(run: dict[str, Any], points: Sequence[Measured]) -> str:
    rows = [list(item) for item in json.loads(run["machine"]).items()]
    versions = {one.system: one.info.versions for one in points}
    rows += [[name, ", ".join(f"{key} {value}" for key, value in facts.items())] for name, facts in versions.items()]
    return "\n\n".join(["## Machine", _table(["", ""], rows)])


def _spread(value: Spread | None, form: str) -> str:
    """The median, and the extremes of more than one value; `form` formats each."""
    if value is None:
        return "–"
    bounds = f" ({value.low:{form}}–{value.high:{form}})" if value.count > 1 else ""
    return f"{value.median:{form}}{bounds}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, without the columns in which no row has anything."""
    kept = [place for place in range(len(heads)) if not rows or any(row[place] != "–" for row in rows)]
    lines = [f"| {' | '.join(cells[place] for place in kept)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(kept)}", *lines[1:]])
