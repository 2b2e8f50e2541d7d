"""Reports of one run: a Markdown table and a recall–speed plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nestvec.errors import MissingDependency


def write_report(out: Path, run: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    """Write results.md and recall-qps.png into `out`; `run` is a row of the results database.

    Raises MissingDependency where matplotlib is absent; results.md is there all the same.
    """
    (out / "results.md").write_text(_markdown(run, figures), encoding="utf-8")
    _plot(out / "recall-qps.png", run, figures)


def machine_line(run: dict[str, Any]) -> str:
    """What the run was measured on, on one line."""
    return " · ".join(f"{key} {value}" for key, value in json.loads(run["machine"]).items())


def describe_setting(setting: dict[str, Any]) -> str:
    """A setting in a few words."""
    stages = " → ".join(f"{dims}:{keep}" for dims, keep in setting.get("stages", []))
    parts = [f"{key} {value}" for key, value in setting.items() if key not in ("route", "stages")]
    return ", ".join([*parts, *([f"stages {stages}"] if stages else [])]) or "–"


def _title(run: dict[str, Any]) -> str:
    return f"{run['n']:,} × {run['dims']}, {run['metric']}, recall@{run['k']}"


def _markdown(run: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    heads = ["system", "setting", "recall", "queries/s", "p50 µs", "p99 µs", "rows scored", "bytes read", "build s"]
    heads += ["index MiB", "peak MiB"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *map(_row, figures)]
    return "\n".join(
        [
            f"# {_title(run)}",
            "",
            f"Run {run['id']}, {run['started']}, {run['n_queries']:,} queries one by one, threads: {run['threads']}.",
            f"Base `{run['base']}`, queries `{run['queries']}`.",
            "",
            f"Machine: {machine_line(run)}",
            "",
            *lines,
            "",
            "![recall and queries per second](recall-qps.png)",
            "",
        ]
    )


def _row(one: dict[str, Any]) -> str:
    mib = 1 << 20
    cells = [one["system"], describe_setting(one["setting"]), f"{one['recall']:.4f}", f"{one['qps']:,.0f}"]
    cells += [f"{one[key]:,.0f}" for key in ("p50_us", "p99_us", "rows_scored", "bytes_read")]
    cells += [f"{one['build_s']:.2f}", f"{one['index_bytes'] / mib:,.1f}", f"{one['peak_rss'] / mib:,.0f}"]
    return f"| {' | '.join(cells)} |"


def frontier(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings that no other beats in both recall and speed, by rising recall."""
    best: list[dict[str, Any]] = []
    for one in sorted(figures, key=lambda figure: (-figure["qps"], -figure["recall"])):
        if not best or one["recall"] > best[-1]["recall"]:
            best.append(one)
    return best


def _plot(path: Path, run: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("the recall–speed plot", "bench") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for system in dict.fromkeys(one["system"] for one in figures):
        own = [one for one in figures if one["system"] == system]
        best = frontier(own)
        (line,) = axes.plot([one["recall"] for one in best], [one["qps"] for one in best], marker="o", label=system)
        axes.scatter(
            [one["recall"] for one in own], [one["qps"] for one in own], s=12, alpha=0.4, color=line.get_color()
        )
    axes.set_yscale("log")
    axes.set_xlabel(f"recall@{run['k']}")
    axes.set_ylabel("queries per second, one at a time")
    axes.set_title(_title(run))
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
