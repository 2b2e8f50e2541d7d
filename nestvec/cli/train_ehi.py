"""`nestvec train ehi`: a learned tree from pairs of queries and documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestvec.cli.options import DEFAULT_DB, Collection, Db, Json, comma_ints
from nestvec.cli.output import note, print_json, print_line, print_table, progress_reporter
from nestvec.cli.targets import opened_collection

if TYPE_CHECKING:
    from nestvec.engine.collection import Collection as EngineCollection
    from nestvec.train.ehi.command import TreeReport
    from nestvec.train.ehi.pairs import Pairs


def ehi(
    collection: Collection,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Queries and the documents they want: .jsonl, .parquet or .tsv (query, document, grade)."),
    ] = None,
    titles: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Instead: this payload field of each record as a query for it.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="frozen (the router alone), adapter (an adapter of vectors, then the router), joint."),
    ] = "adapter",
    branches: Annotated[
        str | None, typer.Option(help="Children at each level, such as 256 or 256,16. [default: by documents]")
    ] = None,
    leaves_per_row: Annotated[int, typer.Option(min=1, max=8, help="Leaves that a document lies in.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the pairs for the router. [default: by pairs]")
    ] = None,
    adapter_epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the pairs for the adapter. [default: by pairs]")
    ] = None,
    path: Annotated[float, typer.Option(min=0, help="Weight of the loss over paths.")] = 1.0,
    semantic: Annotated[float, typer.Option(min=0, help="Weight of the loss over vectors, in the mode joint.")] = 1.0,
    balance: Annotated[float, typer.Option(min=0, help="Weight of the loss that fills leaves alike.")] = 1.0,
    hinge: Annotated[float, typer.Option(min=0, help="Weight of the paper's hinge over paths.")] = 0.0,
    intra: Annotated[float, typer.Option(min=0, help="Weight of the paper's intra-leaf term.")] = 0.0,
    negatives: Annotated[int, typer.Option(min=0, help="Hard negatives from the leaves that a query reaches.")] = 0,
    warm: Annotated[bool, typer.Option("--warm/--cold", help="Start from k-means, or from random directions.")] = True,
    held_out: Annotated[float, typer.Option(help="Share of the queries that is measured, not learned.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch. [default: its own choice]")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Keep each epoch in this folder: a run that was stopped goes on from there.")
    ] = None,
    max_imbalance: Annotated[
        float | None, typer.Option(help="Publish no tree of more uneven leaves. [default: 1.5]")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish/--dry-run", help="Make it the index, or only measure.")] = True,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Train a learned tree for a collection from pairs, and make it the collection's index.

    Says how good it is on queries held out of the training, by the share of documents that is scored. Needs torch:
    pip install 'nestvec[train]'.
    """
    from nestvec.train.ehi.command import train_tree
    from nestvec.train.ehi.config import TreeSettings, Weights, default_branches, default_epochs

    with opened_collection(db, collection) as target, progress_reporter() as progress:
        asked = _pairs(target, pairs, titles)
        for_adapter, for_router = default_epochs(len(asked))
        settings = TreeSettings(
            branches=comma_ints(branches, "--branches") or default_branches(target.count()),
            mode=mode,  # type: ignore[arg-type]  # checked by the settings themselves
            leaves_per_row=leaves_per_row,
            weights=Weights(path, semantic, balance, hinge, intra),
            epochs=epochs or for_router,
            adapter_epochs=adapter_epochs or for_adapter,
            negatives=negatives,
            warm=warm,
            held_out=held_out,
            seed=seed,
            threads=threads,
        )
        report = train_tree(
            target,
            asked,
            settings,
            folder=work,
            publish=publish,
            max_imbalance=max_imbalance,
            progress=progress,
        )
    if json:
        print_json(report)
    else:
        _print_report(collection, report)


def _pairs(target: EngineCollection, path: Path | None, titles: str | None) -> Pairs:
    from nestvec.errors import InvalidInput
    from nestvec.train.ehi.pairs import read_pairs
    from nestvec.train.ehi.stored import titled_pairs, what_pairs

    if path is not None and titles is not None:
        raise InvalidInput("give either --pairs or --titles")
    if path is not None:
        return read_pairs(path)
    if titles is not None:
        return titled_pairs(target, titles)
    raise InvalidInput(what_pairs(target))


def _print_report(name: str, report: TreeReport) -> None:
    from nestvec.index.ehi.assign import LEAST_ROOM

    balance = report.balance
    shape = " x ".join(map(str, report.branches))
    print_line(
        f"{name}: a tree of {shape} leaves from {report.pairs:,} pairs in {report.seconds:.0f} s ({report.mode})"
    )
    if report.missing:
        note(f"{report.missing:,} pairs left out: the collection does not hold their document")
    print_line(
        f"  measured on {report.held:,} queries held out; router: as scoring {report.router_documents:g} documents"
    )
    print_line(f"  exact: nDCG@10 {report.exact_before:.3f} before, {report.exact:.3f} now")
    rows = [
        [f"{float(share):.1%}", f"{ndcg:.3f}", f"{report.recall[share]:.3f}"] for share, ndcg in report.ndcg.items()
    ]
    print_table(["documents scored", "nDCG@10", "of the exact 10 best"], rows)
    print_line(f"  largest leaf {balance.max_over_mean:.2f} times the mean, imbalance {balance.imbalance:.3f}")
    if balance.max_over_mean > balance.cost_over_mean:
        print_line(
            "  by what a visit costs, where a leaf of a few documents counts as one of "
            f"{LEAST_ROOM}: {balance.cost_over_mean:.2f} times the mean, imbalance {balance.cost_imbalance:.3f}"
        )
    published = "not published" if report.generation is None else f"published as generation {report.generation}"
    print_line(f"  {published}")


def register(group: typer.Typer) -> None:
    """Add this verb to the group."""
    group.command()(ehi)
