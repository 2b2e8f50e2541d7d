"""Evaluations as lines of a table, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nestvec.errors import MissingDependency
from nestvec.evaluation.measure import DEEP, TOP, Evaluation, Row

COLUMNS = (
    "set", "rank", "search", "dims", f"nDCG@{TOP}", "±", f"MRR@{TOP}", f"R@{DEEP}", "ms p50", "ms p99", "route",
    "basis",
)  # fmt: skip


def lines(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """The cells of `COLUMNS` for every row, and with several sets the means of the ways that all sets have."""
    found = [_cells(each.name, row) for each in evaluations for row in each.rows]
    return found + ([] if len(evaluations) < 2 else [_mean_cells(rows) for rows in _shared(evaluations)])


def _cells(name: str, row: Row) -> list[str]:
    times = [f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}"]
    scores = [f"{row.ndcg:.3f}", f"{row.ndcg_error:.3f}", f"{row.mrr:.3f}", f"{row.recall:.3f}"]
    return [name, row.rank, row.search, str(row.dims or ""), *scores, *times, row.route or "", row.basis or ""]


def _mean_cells(rows: Sequence[Row]) -> list[str]:
    def mean(name: str) -> str:
        return f"{sum(getattr(row, name) for row in rows) / len(rows):.3f}"

    first = rows[0]
    scores = [mean("ndcg"), "", mean("mrr"), mean("recall")]
    return ["mean", first.rank, first.search, str(first.dims or ""), *scores, "", "", "", ""]


def _shared(evaluations: Sequence[Evaluation]) -> list[list[Row]]:
    """The rows of each way, one for each set."""
    by_way: dict[tuple[str, str, int | None], list[Row]] = {}
    for each in evaluations:
        for row in each.rows:
            by_way.setdefault((row.rank, row.search, row.dims), []).append(row)
    return [rows for rows in by_way.values() if len(rows) == len(evaluations)]


def draw(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Draw nDCG@10 against the prefix length, a panel for each set, into a .png (or .svg) file.

    Words alone have no length: they are a level line. Raises MissingDependency where matplotlib is absent.
    """
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter, ScalarFormatter
    except ImportError:
        raise MissingDependency("a picture of an evaluation", "eval") from None

    def panel(axes: Axes, each: Evaluation) -> None:
        for place, (rank, search) in enumerate(dict.fromkeys((row.rank, row.search) for row in each.rows)):
            rows = [row for row in each.rows if (row.rank, row.search) == (rank, search)]
            heights, color = [row.ndcg for row in rows], f"C{place}"
            if rank == "bm25":
                axes.axhline(heights[0], color=color, linestyle=":", label=f"{rank}, {search}")
                continue
            dims = [row.dims or 0 for row in rows]
            style = "-" if search == "exact" else "--"
            axes.plot(dims, heights, marker="o", color=color, linestyle=style, label=f"{rank}, {search}")
        axes.set_xscale("log", base=2)
        ticks = sorted({row.dims for row in each.rows if row.dims is not None})
        if ticks:
            axes.set_xticks(ticks)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{each.name}: {each.documents:,} documents, {each.queries:,} queries", fontsize="medium")
        axes.set_xlabel("dims")
        axes.set_ylabel(f"nDCG@{TOP}")
        axes.grid(visible=True, alpha=0.3)

    across = min(len(evaluations), 3)
    down = -(-len(evaluations) // across)
    sheet = Figure(figsize=(5 * across, 3.8 * down), layout="constrained")
    grid = sheet.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(evaluations) :]:
        axes.set_axis_off()
    for axes, each in zip(grid.flat, evaluations, strict=False):
        panel(axes, each)
    grid.flat[0].legend(fontsize="small")
    sheet.suptitle(evaluations[0].encoder)
    sheet.savefig(path, dpi=120)
