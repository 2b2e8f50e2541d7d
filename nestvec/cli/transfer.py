"""Commands that move records between files and a collection: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestvec.cli.options import (
    DEFAULT_DB,
    Collection,
    Db,
    Filter,
    IdColumn,
    Json,
    PayloadColumns,
    Sources,
    TextColumn,
    VectorColumn,
    comma_list,
    json_object,
)
from nestvec.cli.output import print_result, progress_reporter
from nestvec.cli.signals import stops_interrupt
from nestvec.cli.targets import opened_collection


def export(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .parquet .jsonl .npz .npy")],
    collection: Collection,
    format: Annotated[
        str | None, typer.Option(help="parquet, jsonl, npz or npy. [default: by the file's name]")
    ] = None,
    filter: Filter = None,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Write a collection's records into a file that build and import read back: whole, or not at all."""
    wanted = json_object(filter, "--filter")
    with stops_interrupt(), opened_collection(db, collection) as held, progress_reporter() as progress:
        report = held.export(target, format=format, filter=wanted, progress=progress)
    print_result(json, report, f"{report.rows:,} records in {report.path}, {report.bytes:,} bytes")


def import_files(
    sources: Sources,
    collection: Collection,
    id_column: IdColumn = None,
    vector_column: VectorColumn = None,
    text_column: TextColumn = None,
    payload_columns: PayloadColumns = None,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Upsert the rows of files into an existing collection: a record of the same id is replaced.

    Stopped or failed half-way, what was written stays written; `build` is faster for many new records.
    """
    from nestvec.engine.sources import open_source

    source = open_source(
        sources,
        id_column=id_column,
        vector_column=vector_column,
        text_column=text_column,
        payload_columns=comma_list(payload_columns),
    )
    with opened_collection(db, collection) as held, progress_reporter() as progress:
        rows = held.import_batches(source, progress=progress)
    print_result(json, {"rows": rows}, f"{rows:,} rows written")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(export)
    app.command("import")(import_files)
