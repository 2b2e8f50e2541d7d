"""`nestvec train encoder`: four steps with files between them; `run` does one after the other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestvec.cli.options import DEFAULT_DB, Db, IdColumn, Json
from nestvec.cli.output import note, print_json, print_line, progress_reporter
from nestvec.cli.signals import stops_interrupt

if TYPE_CHECKING:
    from nestvec.train.encoder.generate import Asking, Confirm
    from nestvec.train.encoder.llm import Estimate
    from nestvec.train.encoder.tables import Passage

encoder = typer.Typer(no_args_is_help=True, help="Make an encoder: generate, mine, relabel, train.")

Out = Annotated[Path, typer.Option("--out", help="The folder of the files between the steps.", show_default=False)]
SourceNames = Annotated[
    list[str],
    typer.Option(
        "--source",
        help="A file (.jsonl .jsonl.gz .parquet), a BEIR folder, stdlib, or collection:NAME of --db. May be repeated.",
        show_default=False,
    ),
]
TitleColumn = Annotated[str, typer.Option(help="Column or key (of a collection: payload field) of the titles.")]
TextKey = Annotated[str, typer.Option("--text-column", help="Column or key of the texts.")]
Generator = Annotated[str, typer.Option(help="extract or openai:URL#MODEL.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Queries for so many passages only, drawn evenly.")]
Each = Annotated[int, typer.Option(min=1, max=8, help="Queries for a passage, at most.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="Of the LLM that generates.")]
EncoderName = Annotated[str, typer.Option("--encoder", help="The encoder whose neighbours are judged.")]
Candidates = Annotated[int, typer.Option(min=2, max=1000, help="Passages found for each query.")]
TargetRecall = Annotated[float, typer.Option("--recall", help="Mean share of the true nearest to find.")]
Judges = Annotated[
    list[str],
    typer.Option(
        "--judge",
        help="openai:URL#MODEL, teacher:NAME-OR-PATH or encoder:NAME; repeated, their ranks are fused.",
        show_default=False,
    ),
]
Negatives = Annotated[str, typer.Option(help="lowest or sampled: which of the candidates.")]
NegativeCount = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="Hard negatives of a query. [default: all where a teacher: scores them, else 1]"),
]
KeepSeed = Annotated[
    bool | None,
    typer.Option(
        "--keep-seed/--relabel",
        help="The positive stays the query's own passage, or is the best one. [default: stays, of extracted queries]",
    ),
]
PerMinute = Annotated[float | None, typer.Option(help="Most requests a minute. [default: no limit]")]
AtOnce = Annotated[int, typer.Option(min=1, max=256, help="Most requests at once.")]
InputPrice = Annotated[float | None, typer.Option(min=0, help="Price of a million input tokens, for the estimate.")]
OutputPrice = Annotated[float | None, typer.Option(min=0, help="Price of a million output tokens.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before an LLM is asked.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn by chance.")]


@encoder.command()
def generate(
    source: SourceNames,
    out: Out,
    generator: Generator = "extract",
    limit: Limit = None,
    each: Each = 1,
    temperature: Temperature = 0.7,
    id_column: IdColumn = None,
    title_column: TitleColumn = "title",
    text_column: TextKey = "text",
    per_minute: PerMinute = None,
    at_once: AtOnce = 4,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    seed: Seed = 0,
    yes: Yes = False,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Step 1: for each passage a task and a query, by an LLM (its key: NESTVEC_OPENAI_API_KEY) or from its own words.

    What an LLM has answered is kept: stopped, the same command goes on where it was.
    """
    from nestvec.train.encoder.generate import Generation
    from nestvec.train.encoder.generate import generate as run

    wanted = Generation(generator, limit, each, temperature, seed)
    passages = passages_of(source, db, id_column, title_column, text_column)
    with stops_interrupt(), progress_reporter() as progress:
        summary = run(
            out,
            passages,
            wanted,
            asking=asking_of(per_minute, at_once),
            confirm=confirmation(yes, input_price, output_price),
            progress=progress,
        )
    print_summary("generate", summary, json)


@encoder.command()
def mine(
    out: Out,
    encoder_name: EncoderName = "static",
    candidates: Candidates = 20,
    recall: TargetRecall = 0.95,
    json: Json = False,
) -> None:
    """Step 2: the nearest passages of each query, by the engine over an encoder's vectors."""
    from nestvec.train.encoder.mine import Mining
    from nestvec.train.encoder.mine import mine as run

    with stops_interrupt(), progress_reporter() as progress:
        summary = run(out, Mining(encoder_name, candidates, recall), progress=progress)
    print_summary("mine", summary, json)


@encoder.command()
def relabel(
    out: Out,
    judge: Judges,
    negatives: Negatives = "lowest",
    negative_count: NegativeCount = None,
    keep_seed: KeepSeed = None,
    per_minute: PerMinute = None,
    at_once: AtOnce = 4,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    seed: Seed = 0,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Step 3: judges rank the candidates; the best is the positive, hard negatives come from the rest."""
    from nestvec.train.encoder.relabel import Relabelling
    from nestvec.train.encoder.relabel import relabel as run

    wanted = Relabelling(tuple(judge), negatives, negative_count, keep_seed, seed)
    with stops_interrupt(), progress_reporter() as progress:
        summary = run(
            out,
            wanted,
            asking=asking_of(per_minute, at_once),
            confirm=confirmation(yes, input_price, output_price),
            progress=progress,
        )
    print_summary("relabel", summary, json)


def passages_of(
    names: list[str], db: Path, id_column: str | None, title_column: str, text_column: str
) -> list[Passage]:
    """All passages of the sources."""
    from nestvec.train.encoder.sources import SourceColumns, read_source

    return list(read_source(names, db=db, columns=SourceColumns(id_column, title_column, text_column)))


def asking_of(per_minute: float | None, at_once: int) -> Asking:
    """The options of pace, checked."""
    from nestvec.train.encoder.generate import Asking

    return Asking(per_minute, at_once)


def confirmation(yes: bool, input_price: float | None, output_price: float | None) -> Confirm:
    """What tells the estimate, and asks a person at a terminal whether to go on; without a terminal it refuses."""
    from nestvec.errors import InvalidInput

    def confirm(estimate: Estimate) -> None:
        price = estimate.price(input_price, output_price)
        line = (
            f"about to send {estimate.requests:,} requests: some {estimate.input_tokens:,} tokens in and at most "
            f"{estimate.output_tokens:,} out{'' if price is None else f', about {price:,.2f}'}"
        )
        if yes:
            note(line)
        elif not sys.stdin.isatty():
            raise InvalidInput(f"{line}; add --yes to go on")
        else:
            note(line)
            typer.confirm("Go on?", abort=True, err=True)

    return confirm


def print_summary(step: str, summary: Mapping[str, Any], as_json: bool) -> None:
    """The summary as JSON, or as lines of `name: value`."""
    if as_json:
        print_json({"step": step, **summary})
        return
    print_line(f"{step}:")
    for name, value in summary.items():
        print_line(f"  {name.replace('_', ' ')}: {_said(value)}")


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def register(group: typer.Typer) -> None:
    """Add these commands to `group`."""
    group.add_typer(encoder, name="encoder")
