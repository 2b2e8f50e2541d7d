"""`nestvec eval`: how well an encoder and the engine rank judged sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from nestvec.cli.options import Json, comma_ints, comma_list, json_object
from nestvec.cli.output import note, print_json, print_table, progress_reporter
from nestvec.cli.signals import stops_interrupt


def evaluate(
    sets: Annotated[
        list[Path],
        typer.Argument(metavar="SET...", help="Folders of judged sets, in BEIR's format.", show_default=False),
    ],
    encoder: Annotated[str, typer.Option(help="The encoder.")] = "static",
    rank: Annotated[str, typer.Option(help="dense, bm25, hybrid: some of them, with commas.")] = "dense",
    dims: Annotated[
        str | None, typer.Option(help="Prefix lengths, such as 64,128. [default: the encoder's granularities]")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(help="What the planner is asked to find of the exact hits. [default: 0.95]")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="JSON", help="Run this plan, at the most dims, instead of the planner's.")
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(metavar="JSON", help='How hybrid fuses, such as \'{"kind": "rrf"}\'.')
    ] = None,
    split: Annotated[str, typer.Option(help="Which queries.")] = "test",
    queries: Annotated[
        int | None, typer.Option(min=1, help="Ask a seeded sample of so many at most. [default: all]")
    ] = None,
    db: Annotated[
        Path | None,
        typer.Option("--db", help="Keep here what is encoded and built, for later calls. [default: nothing is kept]"),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw nDCG@10 by dims into this file.")] = None,
    json: Json = False,
) -> None:
    """Measure nDCG@10, MRR@10 and R@100 on judged sets: exact search and the engine's plans, by prefix length.

    With --db a stopped evaluation goes on where it was.
    """
    import nestvec.evaluation
    from nestvec.engine.fusion import Fusion
    from nestvec.engine.plan import Plan
    from nestvec.evaluation.report import COLUMNS, draw, lines

    how, fused = json_object(plan, "--plan"), json_object(fusion, "--fusion")
    asked: dict[str, Any] = {
        "ranks": comma_list(rank),
        "dims": comma_ints(dims, "--dims"),
        "recall": recall,
        "plan": None if how is None else Plan.from_json(how),
        "fusion": None if fused is None else Fusion.from_json(fused),
        "split": split,
        "most": queries,
        "database": db,
    }
    found = []
    with stops_interrupt():
        for folder in sets:
            with progress_reporter() as progress:
                found.append(nestvec.evaluation.evaluate(folder, encoder, **asked, progress=progress))
    if png is not None:
        draw(png, found)
        note(f"drew {png}")
    if json:
        print_json(cast(Any, found))
        return
    print_table(COLUMNS, lines(found))
    for each in found:
        if each.unreachable or each.empty:
            note(f"{each.name}: {each.unreachable:,} relevant documents are not there and count as missed; "
                 f"{each.empty:,} documents have no text")  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("eval")(evaluate)
