"""What the jobs of a database do: each function makes the work of one kind, to be submitted to `Database.jobs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from nestvec.engine import spool
from nestvec.engine.collection import Collection
from nestvec.engine.coordinates import F32
from nestvec.engine.database import Database
from nestvec.engine.jobs import Work
from nestvec.engine.progress import Progress
from nestvec.engine.sources import open_source
from nestvec.errors import InvalidInput, InvalidRecord

Kind = Literal["build", "seal", "compact", "snapshot", "calibrate", "export", "import", "restore"]


def build(collection: Collection) -> Work:
    """Train an index on what is there: seal, then merge everything under a new generation."""

    def work(progress: Progress) -> dict[str, Any]:
        sealed = collection.seal(progress=progress)
        merged = collection.compact(retrain=True, progress=progress)
        return {"sealed": sealed.rows, "rows": merged.rows, "generation": collection.info().generation}

    return work


def seal(collection: Collection) -> Work:
    """`Collection.seal`; the result is a SealResult."""
    return lambda progress: asdict(collection.seal(progress=progress))


def compact(collection: Collection, *, retrain: bool) -> Work:
    """`Collection.compact`; the result is a CompactResult."""
    return lambda progress: asdict(collection.compact(retrain=retrain, progress=progress))


def calibrate(collection: Collection, queries: F32 | None, texts: Sequence[str] | None) -> Work:
    """`Collection.calibrate`; the result says what was measured, and not all points: `Collection.calibration` has them.

    The queries are held in memory until the job ends, and stored nowhere.
    """

    def work(progress: Progress) -> dict[str, Any]:
        made = collection.calibrate(queries, texts=texts, progress=progress)
        if made is None:
            return {"calibrated": False, "reason": "there is no index whose plans could be chosen from"}
        return {
            "calibrated": True,
            "generation": made.generation,
            "source": made.source,
            "queries": max((each.queries for each in made.frontiers), default=0),
            "frontiers": len(made.frontiers),
            "seconds": made.seconds,
        }

    return work


def snapshot(database: Database, collection: Collection) -> Work:
    """`Database.snapshot`; the result is a SnapshotInfo."""
    return lambda progress: asdict(database.snapshot(collection.name, progress=progress))


def restore(database: Database, snapshot: str, name: str) -> Work:
    """`Database.restore` of a snapshot in the database; the result says what was made."""

    def work(progress: Progress) -> dict[str, Any]:
        made = database.restore(snapshot, name, progress=progress)
        return {"collection": name, "rows": made.info().count}

    return work


def export(database: Database, collection: Collection, format: str, filter: Mapping[str, Any] | None) -> Work:
    """`Collection.export` into a file of the database, for `spool.export_file` to find by the result's "file"."""

    def work(progress: Progress) -> dict[str, Any]:
        with spool.new_export(database.path, format) as path:
            report = collection.export(path, format=format, filter=filter, progress=progress)
        return {"format": report.format, "rows": report.rows, "bytes": report.bytes, "file": path.name}

    return work


def import_spooled(collection: Collection, body: spool.Spool) -> Work:
    """`Collection.import_batches` of what was spooled; the result says how many rows it had."""

    def work(progress: Progress) -> dict[str, Any]:
        try:
            return {"rows": collection.import_batches(open_source([body.path]), progress=progress)}
        except InvalidRecord:
            raise
        except InvalidInput as error:
            raise InvalidInput(str(error).replace(str(body.path), "the body")) from error

    return work
