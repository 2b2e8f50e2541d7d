"""`nestvec train encoder train` (step 4) and `nestvec train adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestvec.cli.options import DEFAULT_DB, Db, IdColumn, Json
from nestvec.cli.output import progress_reporter
from nestvec.cli.signals import stops_interrupt
from nestvec.cli.train_encoder import Out, SourceNames, TextKey, TitleColumn, encoder, passages_of, print_summary

TowerName = Annotated[
    str, typer.Option("--tower", help="static, static:FOLDER, or a sentence-transformers model (name or folder).")
]
Triples = Annotated[Path, typer.Option("--triples", help="The folder with the table triples.", show_default=False)]
EncoderOut = Annotated[
    Path | None, typer.Option("--out", help="Folder of the encoder. [default: encoder in that of the triples]")
]
Epochs = Annotated[int, typer.Option(min=1, help="Times that each triple is seen, at most.")]
BatchSize = Annotated[int | None, typer.Option("--batch", min=2, help="Triples of a step. [default: the tower's]")]
Rate = Annotated[float | None, typer.Option("--rate", help="Learning rate. [default: the tower's]")]
LossTemperature = Annotated[float, typer.Option("--temperature", help="Of the softmax over the scores.")]
SameTower = Annotated[bool, typer.Option(help="Other queries of a batch are negatives too.")]
HardNegatives = Annotated[int, typer.Option("--negatives", min=0, help="Hard negatives of a query, at most.")]
Distil = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Weight of the teacher's scores of all texts of a triple. [default: 1 for a static tower, of 8 or more]",
    ),
]
Guide = Annotated[str | None, typer.Option(help="Encoder whose nearer-than-positive texts are no negatives.")]
Tasks = Annotated[bool, typer.Option("--tasks", help='Texts as "task: ... | query: ..." and "title: ... | text: ...".')]
Patience = Annotated[int, typer.Option(min=1, help="Looks at held-out triples without a gain before it stops.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn by chance.")]
Each = Annotated[
    int | None, typer.Option(min=1, max=64, help="Clozes of each 200 words. [default: 4; of few texts up to 16]")
]
Most = Annotated[int, typer.Option(min=1, help="Clozes in all: of more, a sample.")]
Hold = Annotated[float, typer.Option(min=0, help="Weight of leaving the vectors of general text where they were.")]
Keep = Annotated[float, typer.Option(min=0, max=0.99, help="Share of the old weights in the average that is written.")]


@encoder.command()
def train(
    triples: Triples,
    out: EncoderOut = None,
    tower: TowerName = "static",
    epochs: Epochs = 3,
    batch: BatchSize = None,
    rate: Rate = None,
    temperature: LossTemperature = 0.05,
    same_tower: SameTower = True,
    negatives: HardNegatives = 1,
    distil: Distil = None,
    guide: Guide = None,
    tasks: Tasks = False,
    patience: Patience = 4,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Step 4: train an encoder on the triples. Stopped, the same command goes on from its last checkpoint."""
    from nestvec.train.encoder.step import Training
    from nestvec.train.encoder.step import train as run

    wanted = Training(
        tower=tower,
        epochs=epochs,
        batch=batch,
        rate=rate,
        temperature=temperature,
        same_tower=same_tower,
        negatives=negatives,
        distil=distil,
        guide=guide,
        tasks=tasks,
        patience=patience,
        seed=seed,
    )
    with stops_interrupt(), progress_reporter() as progress:
        summary = run(triples, wanted, out=out, progress=progress)
    print_summary("train", summary, json)


def adapt(
    source: SourceNames,
    out: Out,
    tower: TowerName = "static",
    each: Each = None,
    most: Most = 60_000,
    epochs: Epochs = 2,
    hold: Hold = 100.0,
    keep: Keep = 0.5,
    id_column: IdColumn = None,
    title_column: TitleColumn = "title",
    text_column: TextKey = "text",
    seed: Seed = 0,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Adapt an encoder to your own texts by inverse cloze: in minutes, without queries."""
    from nestvec.train.encoder.adapt import Adaptation
    from nestvec.train.encoder.adapt import adapt as run

    passages = passages_of(source, db, id_column, title_column, text_column)
    with stops_interrupt(), progress_reporter() as progress:
        summary = run(passages, out, Adaptation(tower, each, most, epochs, hold, keep, seed), progress=progress)
    print_summary("adapt", summary, json)


def register(group: typer.Typer) -> None:
    """Add `adapt` to `group`; `train` stands among the steps of `encoder`."""
    group.command()(adapt)
