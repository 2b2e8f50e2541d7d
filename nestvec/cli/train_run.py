"""`nestvec train encoder run`: the four steps, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from nestvec.cli.options import DEFAULT_DB, Db, IdColumn, Json
from nestvec.cli.output import ProgressCallback, print_json, progress_reporter
from nestvec.cli.signals import stops_interrupt
from nestvec.cli.train_encoder import (
    AtOnce,
    Candidates,
    Each,
    EncoderName,
    Generator,
    InputPrice,
    Judges,
    Limit,
    NegativeCount,
    Negatives,
    Out,
    OutputPrice,
    PerMinute,
    Seed,
    SourceNames,
    TextKey,
    TitleColumn,
    Yes,
    asking_of,
    confirmation,
    encoder,
    passages_of,
    print_summary,
)
from nestvec.cli.train_tower import TowerName


@encoder.command()
def run(
    source: SourceNames,
    out: Out,
    judge: Judges,
    generator: Generator = "extract",
    limit: Limit = None,
    each: Each = 1,
    encoder_name: EncoderName = "static",
    candidates: Candidates = 20,
    negatives: Negatives = "lowest",
    negative_count: NegativeCount = None,
    tower: TowerName = "static",
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
    """All four steps; those that are done with the same settings are not done again. The encoder is in OUT/encoder."""
    from nestvec.train.encoder import generate, mine, relabel, step

    generation = generate.Generation(generator, limit, each, seed=seed)
    mining = mine.Mining(encoder_name, candidates)
    relabelling = relabel.Relabelling(tuple(judge), negatives, negative_count, seed=seed)
    training = step.Training(tower=tower, negatives=negative_count or 1, seed=seed)
    passages = passages_of(source, db, id_column, title_column, text_column)
    how: dict[str, Any] = {
        "asking": asking_of(per_minute, at_once),
        "confirm": confirmation(yes, input_price, output_price),
    }
    summaries: dict[str, Any] = {}

    def done(name: str, work: Callable[[ProgressCallback], dict[str, Any]]) -> None:
        with progress_reporter() as report:
            summaries[name] = work(report)
        if not json:
            print_summary(name, summaries[name], as_json=False)

    with stops_interrupt():
        done("generate", lambda each: generate.generate(out, passages, generation, progress=each, **how))
        done("mine", lambda each: mine.mine(out, mining, progress=each))
        done("relabel", lambda each: relabel.relabel(out, relabelling, progress=each, **how))
        done("train", lambda each: step.train(out, training, progress=each))
    if json:
        print_json(summaries)


def register(_: typer.Typer) -> None:
    """Nothing for the group: the command stands among the steps of `encoder`."""
