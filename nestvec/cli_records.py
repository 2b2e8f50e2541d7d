"""Commands that read and change one collection: search, get, delete, count, collections, seal, compact."""

from __future__ import annotations

import json as jsonlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestvec.cli_options import DEFAULT_DB, Collection, Db, Json
from nestvec.cli_output import note, print_json, print_line, print_table, printable

if TYPE_CHECKING:
    import numpy as np

    import nestvec
    from nestvec.engine.collection import Collection as EngineCollection
    from nestvec.engine.record import Hits


@contextmanager
def opened(db: Path) -> Iterator[nestvec.Database]:
    """The existing database at `db`, closed at the end."""
    import nestvec

    with nestvec.open(db, create=False) as database:
        yield database


@contextmanager
def opened_collection(db: Path, name: str) -> Iterator[EngineCollection]:
    """Collection `name` of the existing database at `db`."""
    with opened(db) as database:
        yield database.collection(name)


def search(
    collection: Collection,
    query: Annotated[str | None, typer.Argument(help="The text to look for.")] = None,
    vector_file: Annotated[
        str | None, typer.Option(help="A .npy file with one vector instead of text; '-' reads .npy or JSON from stdin.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many hits.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Score every record: slower, and always right.")] = False,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Find the records nearest to a text or a vector."""
    from nestvec.errors import InvalidInput

    if (query is None) == (vector_file is None):
        raise InvalidInput("search needs either a query text or --vector-file, and not both")
    vector = None if vector_file is None else read_vector(vector_file)
    with opened_collection(db, collection) as target:
        hits = target.search(vector, text=query, k=k, exact=exact)
    if json:
        print_json(hits)
    else:
        _print_hits(hits)


def _print_hits(hits: Hits) -> None:
    work = hits.work
    rows = [[hit.id, f"{hit.score:.4f}", printable(hit_text(hit.text, hit.payload))] for hit in hits.hits]
    print_table(["id", "score", "text"], rows)
    note(f"{len(rows)} hits by {describe_plan(hits.plan)}: {work.rows:,} rows scored, {work.bytes:,} bytes read")


def describe_plan(plan: nestvec.Plan) -> str:
    """One short line for a plan: route, probes, shortlist, stages; margins after the numbers that they cut."""
    if plan.route == "exact":
        return "exact"
    steps = [f"soar {plan.probes} probes{_within(plan.probe_margin)}"]
    if plan.shortlist is not None:
        steps.append(f"{plan.shortlist.keep} by codes{_within(plan.shortlist.margin)}")
    for stage in plan.stages:
        rows = "int8 " if stage.rows == "int8" else ""
        steps.append(f"{stage.keep} by {rows}{stage.dims} dims{_within(stage.margin)}")
    return " → ".join(steps)


def _within(margin: float) -> str:
    return "" if math.isinf(margin) else f" within {margin:g}"


def hit_text(text: str | None, payload: dict[str, Any] | None) -> str:
    """What to show of a record: its text, or else its payload."""
    if text is not None:
        return text
    return jsonlib.dumps(payload, ensure_ascii=False) if payload else ""


def read_vector(source: str) -> np.ndarray:
    """One vector f32[d] from a .npy file, or from stdin ('-') as .npy bytes or a JSON list.

    Raises InvalidInput where it is neither, or not one vector.
    """
    import io

    import numpy as np

    from nestvec.errors import InvalidInput

    raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        if raw.startswith(b"\x93NUMPY"):
            values = np.load(io.BytesIO(raw), allow_pickle=False)
        else:
            values = np.asarray(jsonlib.loads(raw), dtype=np.float32)
        vector = np.ascontiguousarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{source}: expected a .npy vector or a JSON list of numbers: {error}") from None
    if vector.ndim == 2 and vector.shape[0] == 1:
        vector = vector[0]
    if vector.ndim != 1:
        raise InvalidInput(f"{source}: expected one vector, got an array of shape {vector.shape}")
    return vector


def get(
    collection: Collection,
    ids: Annotated[list[str], typer.Argument(help="Ids of records.")],
    with_vector: Annotated[bool, typer.Option("--with-vector", help="Print the vectors too.")] = False,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Print records by id."""
    from nestvec.errors import NotFound

    with opened_collection(db, collection) as target:
        records = target.get(ids, with_vector=with_vector)
    if json:
        print_json(records)
    else:
        for record in records:
            print_line(f"{record.id}\t{printable(hit_text(record.text, record.payload), 1000)}")
            if with_vector and record.vector is not None:
                print_line(jsonlib.dumps(record.vector.tolist()))
    missing = sorted(set(ids) - {record.id for record in records})
    if missing:
        raise NotFound(f"not in collection {collection!r}: {', '.join(missing)}")


def delete(
    collection: Collection,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of records.")] = None,
    whole: Annotated[bool, typer.Option("--whole-collection", help="Delete the collection itself.")] = False,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Delete records by id, or (--whole-collection) a collection."""
    from nestvec.errors import InvalidInput

    if bool(ids) == whole:
        raise InvalidInput("delete needs either ids or --whole-collection, and not both")
    with opened(db) as database:
        if whole:
            database.delete_collection(collection)
            _report(json, {"deleted_collection": collection}, f"deleted collection {collection}")
        else:
            deleted = database.collection(collection).delete(ids or [])
            _report(json, {"deleted": deleted}, f"deleted {deleted:,} records")


def count(collection: Collection, db: Db = DEFAULT_DB, json: Json = False) -> None:
    """Print how many records a collection holds."""
    with opened_collection(db, collection) as target:
        number = target.count()
    _report(json, {"count": number}, str(number))


def collections(db: Db = DEFAULT_DB, json: Json = False) -> None:
    """List the collections of a database."""
    with opened(db) as database:
        infos = database.collections()
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
    _report(json, result, f"sealed {result.rows:,} rows")


def compact(
    collection: Collection,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train a new generation as well.")] = False,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Merge a collection's segments and drop deleted rows."""
    with opened_collection(db, collection) as target:
        result = target.compact(retrain=retrain)
    _report(json, result, f"{result.segments_before} segments merged: {result.rows:,} rows, {result.dropped:,} dropped")


def _report(json: bool, value: object, line: str) -> None:
    if json:
        print_json(value)
    else:
        print_line(line)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (search, get, delete, count, collections, seal, compact):
        app.command()(command)
