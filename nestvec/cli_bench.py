"""`nestvec bench`: recall and speed of several systems on the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestvec.cli_options import Json, comma_list
from nestvec.cli_output import note, print_json, print_table


def bench(
    base: Annotated[Path | None, typer.Option(help="Vectors to search, .npy [n, d].")] = None,
    queries: Annotated[Path | None, typer.Option(help="Query vectors, .npy [q, d].")] = None,
    truth: Annotated[Path | None, typer.Option(help="Exact neighbours, .npy [q, ≥k]. [default: computed]")] = None,
    metric: Annotated[str, typer.Option(help="cosine, dot or l2.")] = "dot",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many neighbours.")] = 10,
    systems: Annotated[str, typer.Option(help="Names with commas between.")] = "exact,soar",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every numeric library.")] = 1,
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("bench-out"),
    limit_rows: Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")] = None,
    limit_queries: Annotated[int | None, typer.Option(min=1, help="Use only the first queries.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A minute's run on text that every Python has.")] = False,
    json: Json = False,
) -> None:
    """Measure systems: one JSON object per setting on standard output, raw answers and a plot in --out.

    --json leaves out the table that otherwise follows on a terminal.
    """
    import sys

    from nestvec.benchmarks.data import DataSet, smoke_data
    from nestvec.benchmarks.run import Request, run
    from nestvec.errors import InvalidInput

    if smoke:
        if base is not None or queries is not None or truth is not None:
            raise InvalidInput("--smoke makes its own vectors; leave out --base, --queries and --truth")
        data = smoke_data(out / "smoke-data")
    elif base is None or queries is None:
        raise InvalidInput("bench needs --base and --queries, or --smoke")
    else:
        data = DataSet(base=base, queries=queries, truth=truth)
    request = Request(
        data=data,
        metric=metric,
        k=k,
        systems=tuple(comma_list(systems) or ()),
        threads=threads,
        out=out,
        limit_rows=limit_rows,
        limit_queries=limit_queries,
    )
    results = run(request, emit=print_json, log=note)
    if not json and sys.stdout.isatty():
        rows = [
            [one["system"], str(one["setting"]), f"{one['recall']:.4f}", f"{one['qps']:,.0f}", f"{one['p99_us']:,.0f}"]
            for one in results
        ]
        print_table(["system", "setting", "recall", "queries/s", "p99 µs"], rows)


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(bench)
