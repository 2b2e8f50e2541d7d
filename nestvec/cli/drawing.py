"""Drawings: a search's funnel in text, the frontiers of a collection in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nestvec.cli.records import describe_plan, describe_promise
from nestvec.engine.explain import Explanation, neighbours
from nestvec.errors import MissingDependency

if TYPE_CHECKING:
    from nestvec.engine.calibration.points import Calibration, Frontier, OperatingPoint
    from nestvec.engine.planner import Choice
    from nestvec.index.work import Work

_BAR = 32  # characters of the widest bar
_RECALL_OF_INTEREST = 0.7


def funnel(found: Explanation) -> list[str]:
    """An explanation as lines of text: why this plan, what its neighbours would do, and the rows left by each step."""
    steps = _steps(found.rows, found.work, found.choice.plan.route) if found.work else ()
    return [*_why(found), *_instead(found.choice), *steps]


def _why(found: Explanation) -> Iterator[str]:
    choice, filter = found.choice, found.filter
    yield f"plan    {describe_plan(choice.plan)}"
    yield f"why     {choice.reason}"
    if choice.estimate is not None or choice.stale is not None:
        yield f"promise {describe_promise(choice)}"
    if choice.k is not None and choice.k != found.k:
        yield f"        of the {choice.k:,} candidates by vector, of which {found.k:,} hits are made"
    if choice.micros is not None and choice.bytes is not None:
        yield f"cost    about {_micros(choice.micros)} and {_bytes(choice.bytes)} expected"
    if filter.mode != "none":
        share = f"{filter.matching:,} of {found.rows:,} rows match ({filter.selectivity:.2%})"
        how = "few enough to compare them all" if filter.mode == "exact" else "the mask is applied inside the scan"
        yield f"filter  {share}: {how}"


def _instead(choice: Choice) -> Iterator[str]:
    careful, cheaper = neighbours(choice)
    for word, point in (("more careful", careful), ("cheaper", cheaper)):
        if point is not None:
            yield f"        {word}: {_point(point)}"


def _point(point: OperatingPoint) -> str:
    return (
        f"recall {point.recall:.3f}, at least {point.floor:.3f}, for {_micros(point.micros)} and {_bytes(point.bytes)}"
    )


def _steps(rows: int, work: Work, route: str) -> Iterator[str]:
    """One line for each step: a bar for the rows that came in, as long as their logarithm."""
    yield ""
    yield f"{rows:,} rows"
    names = [step for step in work.micros if step not in ("encode", "exact")]
    if len(names) > len(work.stages):
        out = work.codes if work.codes else None
        lists = "leaves" if route == "ehi" else "lists"
        yield _step(f"{work.partitions} {lists}", rows, out, work.micros[names.pop(0)], None, rows)
    if len(names) != len(work.stages):  # it was asked again, with a wider plan
        names = ["stage"] * len(work.stages)
    for step, cut in zip(names, work.stages, strict=True):
        name = f"{step.partition(' ')[0]} {cut['dims']}d"
        yield _step(name, cut["in"], cut["out"], cut["micros"], cut["bytes"], rows)
    if "exact" in work.micros:
        alone = not work.stages
        yield _step(
            "exact", work.rows if alone else None, None, work.micros["exact"], work.bytes if alone else None, rows
        )
    routed = f", {work.router:,} multiply-adds of the router" if work.router else ""
    yield f"{sum(work.micros.values()):,.0f} µs in all, {_bytes(work.bytes)} read{routed}"


def _step(name: str, into: int | None, out: int | None, micros: float, size: int | None, rows: int) -> str:
    length = 0 if into is None else max(1, round(_BAR * min(1, math.log(into + 1) / math.log(max(rows, 2) + 1))))
    came = "growing rows" if into is None else f"{into:,}"
    left = "" if out is None else f" → {out:,}"
    read = "" if size is None else f", {_bytes(size)}"
    return f"{name:>12} {'█' * length:<{_BAR}} {came}{left} ({_micros(micros)}{read})"


def _micros(micros: float) -> str:
    return f"{micros:,.0f} µs" if micros < 10_000 else f"{micros / 1000:,.0f} ms"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def draw_frontiers(path: Path, name: str, made: Calibration, frontiers: Sequence[Frontier]) -> None:
    """Draw recall against microseconds, a line for each k, into a .png (or .svg) file.

    Raises MissingDependency where matplotlib is absent.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("a picture of the frontier", "bench") from None
    # Without a date and with fixed ids the same figures make the same file.
    with rc_context({"svg.hashsalt": "nestvec"}):
        sheet = Figure(figsize=(7, 4.5), layout="constrained")
        axes = sheet.subplots()
        for place, each in enumerate(frontiers):
            points = [point for point in each.points if point.recall >= _RECALL_OF_INTEREST]
            micros, color = [point.micros for point in points], f"C{place}"
            axes.plot(
                micros,
                [point.recall for point in points],
                marker="o",
                markersize=4,
                color=color,
                label=f"k = {each.k:,}",
            )
            axes.fill_between(micros, [point.floor for point in points], [point.recall for point in points],
                              color=color, alpha=0.15, linewidth=0)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("microseconds per query, one thread")
        axes.set_ylabel("recall@k (shaded: down to the floor)")
        passing = "" if frontiers[0].selectivity == 1 else f", filters that {frontiers[0].selectivity:.1%} of rows pass"
        axes.set_title(f"{name}: {made.rows:,} rows{passing}")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend(loc="lower right")
        sheet.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
