"""Commands that keep a database safe: snapshot, snapshots, restore, verify, repair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestvec.cli.options import DEFAULT_DB, Collection, Db, Json
from nestvec.cli.output import print_json, print_line, print_result, print_table, progress_reporter
from nestvec.cli.signals import stops_interrupt
from nestvec.cli.targets import opened


def snapshot(collection: Collection, db: Db = DEFAULT_DB, json: Json = False) -> None:
    """Write a collection, as it is now, into one file of the database; `restore` reads it."""
    with stops_interrupt(), opened(db) as database, progress_reporter() as progress:
        taken = database.snapshot(collection, progress=progress)
        path = database.snapshot_file(taken.name)
    print_result(json, {"snapshot": taken, "path": path}, f"{taken.name}\n  {path}, {taken.bytes:,} bytes")


def snapshots(
    delete: Annotated[
        list[str] | None, typer.Option("--delete", metavar="NAME", help="Delete a snapshot first.")
    ] = None,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """List the snapshots of a database."""
    with opened(db) as database:
        for name in delete or ():
            database.delete_snapshot(name)
        found = database.snapshots()
    if json:
        print_json(found)
        return
    rows = [
        [one.name, one.collection, "damaged" if one.rows is None else f"{one.rows:,}", f"{one.bytes:,}", one.created]
        for one in found
    ]
    print_table(["name", "collection", "records", "bytes", "created"], rows)


def restore(
    source: Annotated[str, typer.Argument(help="Name of a snapshot of this database, or the path of its file.")],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Name of the collection to make.")],
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Make a new collection from a snapshot, every byte of it checked. A database is made where there is none."""
    import nestvec
    from nestvec.engine.storage.archive import SUFFIX

    is_path = source.endswith(SUFFIX) or "/" in source
    with stops_interrupt(), nestvec.open(db, create=is_path) as database, progress_reporter() as progress:
        made = database.restore(Path(source) if is_path else source, collection, progress=progress).info()
    print_result(json, made, f"{made.name}: {made.count:,} records")


def verify(db: Db = DEFAULT_DB, json: Json = False) -> None:
    """Read every stored byte of a database and compare it with its checksum. Exit code 4 where something is damaged.

    Nothing is opened for use, so a database that cannot be opened any more can still be looked at.
    """
    from nestvec.engine.verification import verify_database

    reports = verify_database(db)
    if json:
        print_json(reports)
    else:
        for report in reports:
            print_line(f"{report.what} {report.name or report.path}: {report.damage or 'ok'}")
    if not all(report.ok for report in reports):
        raise typer.Exit(4)


def repair(db: Db = DEFAULT_DB, json: Json = False) -> None:
    """Make what is derived (indexes, posting lists, models) again where it is damaged. Exit code 4 where some is left.

    Records and vectors are never changed: what is wrong with them comes back from a snapshot only.
    """
    from nestvec.engine.repair import repair_database

    reports = repair_database(db)
    if json:
        print_json(reports)
    else:
        for report in reports:
            name = report.name or report.path
            for done in report.done:
                print_line(f"collection {name}: {done}")
            print_line(f"collection {name}: {report.damage or 'ok'}")
    if any(report.damage for report in reports):
        raise typer.Exit(4)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (snapshot, snapshots, restore, verify, repair):
        app.command()(command)
