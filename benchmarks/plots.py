"""Plots of recall against queries per second, one per way of asking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nestvec.benchmarks.figures import Figures
from nestvec.benchmarks.fronts import Point, front
from nestvec.errors import MissingDependency

_RECALL_OF_INTEREST = 0.8


def plot(path: Path, title: str, run: dict[str, Any], figures: Sequence[Figures]) -> None:
    """Write one plot of `figures`, all asked in one way; up and to the right is better.

    Raises MissingDependency where matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("the recall–speed plot", "bench") from None
    sheet = Figure(figsize=(8, 5), layout="constrained")
    axes = sheet.subplots()
    for place, system in enumerate(dict.fromkeys(one["system"] for one in figures)):
        points = [Point(one["recall"], one["qps"]) for one in figures if one["system"] == system]
        best, color = front(points), f"C{place}"
        axes.plot([one.recall for one in best], [one.qps for one in best], marker="o", label=system, color=color)
        axes.scatter([one.recall for one in points], [one.qps for one in points], s=12, alpha=0.3, color=color)
    axes.set_yscale("log")
    axes.set_xlabel("recall")
    axes.set_ylabel("queries per second")
    axes.set_title(f"{run['n']:,} × {run['dims']}, {title}")
    if max(one["recall"] for one in figures) > _RECALL_OF_INTEREST:
        axes.set_xlim(left=_RECALL_OF_INTEREST)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    sheet.savefig(path, dpi=120)
