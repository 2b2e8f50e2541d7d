"""`nestvec bench`: recall and speed of several systems on the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestvec.cli.options import Json, comma_ints, comma_list
from nestvec.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from nestvec.benchmarks.data import DataSet

DEFAULT_SYSTEMS = "soar-reader,soar,exact"


def bench(
    base: Annotated[Path | None, typer.Option(help="Vectors to search, .npy [n, d].")] = None,
    queries: Annotated[Path | None, typer.Option(help="Query vectors, .npy [q, d].")] = None,
    truth: Annotated[Path | None, typer.Option(help="Exact neighbours, .npy [q, ≥k]. [default: computed]")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Vectors of text that every Python has.")] = False,
    metric: Annotated[str, typer.Option(help="cosine, dot or l2.")] = "dot",
    k: Annotated[str, typer.Option("-k", "--k", help="How many neighbours; several with commas.")] = "10",
    systems: Annotated[str, typer.Option(help="Names with commas; the first is compared.")] = DEFAULT_SYSTEMS,
    suite: Annotated[str | None, typer.Option(help="smoke, medium or full. [default: medium]")] = None,
    modes: Annotated[str, typer.Option(help="single or batch with :threads.")] = "single:1,batch:1,batch:2",
    phase: Annotated[str, typer.Option(help="sweep, final, both or report.")] = "both",
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds of the final. [default: the suite's]")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Measured per setting and round of it. [default: the suite's]")
    ] = None,
    hold: Annotated[
        int | None, typer.Option(min=1, help="Most indexes in memory at once. [default: what fits]")
    ] = None,
    builds: Annotated[int, typer.Option(min=1, help="Most builds of one system in the final.")] = 2,
    build_threads: Annotated[int | None, typer.Option(min=1, help="Threads of builds. [default: every core]")] = None,
    grids: Annotated[Path | None, typer.Option(help="JSON file of builds and settings to sweep instead.")] = None,
    envs: Annotated[Path, typer.Option(help="Directory of the peers' environments.")] = Path("bench-envs"),
    setup_peers: Annotated[
        bool, typer.Option("--setup-peers", help="Only make the environments of --systems.")
    ] = False,
    baseline: Annotated[Path | None, typer.Option(help="Directory of earlier results to compare with.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("bench-out"),
    limit_rows: Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")] = None,
    limit_queries: Annotated[int | None, typer.Option(min=1, help="Use only the first queries.")] = None,
    json: Json = False,
) -> None:
    """Measure systems: one JSON object per setting on standard output; raw answers, tables and plots in --out.

    --json leaves out the table that otherwise follows on a terminal.
    """
    import sys

    from nestvec.benchmarks.environments import set_up
    from nestvec.benchmarks.machine import cores
    from nestvec.benchmarks.run import run
    from nestvec.benchmarks.session import Request
    from nestvec.benchmarks.systems import parse_context, pick
    from nestvec.cli.signals import stops_interrupt

    names = tuple(comma_list(systems) or ())
    if setup_peers:
        set_up(pick(names), envs, note)
        return
    request = Request(
        data=_data(smoke, out, base, queries, truth),
        systems=names,
        out=out,
        envs=envs,
        metric=metric,
        ks=_neighbours(k),
        contexts=tuple(dict.fromkeys(parse_context(text) for text in comma_list(modes) or ())),
        suite=suite or ("smoke" if smoke else "medium"),
        phase=phase,
        repeats=repeats,
        seconds=seconds,
        hold=hold,
        builds=builds,
        build_threads=build_threads or cores(),
        grids=grids,
        baseline=baseline,
        limit_rows=limit_rows,
        limit_queries=limit_queries,
    )
    with stops_interrupt():
        figures = run(request, emit=print_json, log=note)
    if not json and sys.stdout.isatty():
        _print_figures(figures)


def _data(smoke: bool, out: Path, base: Path | None, queries: Path | None, truth: Path | None) -> DataSet:
    from nestvec.benchmarks.data import DataSet, smoke_data
    from nestvec.errors import InvalidInput

    if smoke:
        if base is not None or queries is not None or truth is not None:
            raise InvalidInput("--smoke makes its own vectors; leave out --base, --queries and --truth")
        return smoke_data(out / "smoke-data")
    if base is None or queries is None:
        raise InvalidInput("bench needs --base and --queries, or --smoke")
    return DataSet(base=base, queries=queries, truth=truth)


def _neighbours(k: str) -> tuple[int, ...]:
    from nestvec.errors import InvalidInput

    wanted = comma_ints(k, "--k") or ()
    if not wanted or min(wanted) < 1:
        raise InvalidInput(f"--k must be whole numbers of at least 1, such as 10,100; got {k!r}")
    return tuple(dict.fromkeys(wanted))


def _print_figures(figures: list[dict[str, Any]]) -> None:
    rows = [
        [
            one["system"],
            f"{one['mode']}:{one['threads']}",
            str(one["k"]),
            f"{one['recall']:.4f}",
            f"{one['qps']:,.0f}",
            f"{one['build']} {one['setting']}",
        ]
        for one in figures
    ]
    print_table(["system", "asked", "k", "recall", "queries/s", "setting"], rows)


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(bench)
