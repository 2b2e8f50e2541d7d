"""Commands that list and look after whole collections: collections, seal, compact."""

from __future__ import annotations

from typing import Annotated

import typer

from nestvec.cli.options import DEFAULT_DB, Collection, Db, Json, Url
from nestvec.cli.output import note, print_json, print_result, print_table
from nestvec.cli.targets import opened_collection, reached


def collections(db: Db = DEFAULT_DB, url: Url = None, json: Json = False) -> None:
    """List the collections of a database."""
    with reached(db, url) as store:
        infos = store.collections()
        for one in getattr(store, "damaged", list)():
            note(f"nestvec: collection {one.name or '?'} cannot be opened: {one.damage}")
    if json:
        print_json(infos)
        return
    rows = [
        [info.name, f"{info.count:,}", str(info.config.dims), info.config.metric, info.config.encoder or "-"]
        for info in infos
    ]
    print_table(["name", "records", "dims", "metric", "encoder"], rows)


def seal(collection: Collection, db: Db = DEFAULT_DB, json: Json = False) -> None:
    """Write a collection's growing records to a segment."""
    with opened_collection(db, collection) as target:
        result = target.seal()
    print_result(json, result, f"sealed {result.rows:,} rows")


def compact(
    collection: Collection,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train a new generation as well.")] = False,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Merge a collection's segments and drop deleted rows."""
    with opened_collection(db, collection) as target:
        result = target.compact(retrain=retrain)
    line = f"{result.segments_before} segments merged: {result.rows:,} rows, {result.dropped:,} dropped"
    print_result(json, result, line)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (collections, seal, compact):
        app.command()(command)
