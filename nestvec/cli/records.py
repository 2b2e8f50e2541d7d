"""Commands that read and change the records of one collection: search, get, delete, count."""

from __future__ import annotations

import json as jsonlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nestvec.cli.options import (
    DEFAULT_DB,
    BudgetBytes,
    BudgetMs,
    Collection,
    Db,
    Filter,
    Json,
    Recall,
    Url,
    json_object,
)
from nestvec.cli.output import note, print_json, print_line, print_result, print_table, printable
from nestvec.cli.targets import reached

if TYPE_CHECKING:
    import numpy as np

    import nestvec
    from nestvec.engine.planner import Choice
    from nestvec.engine.ranking import Rank
    from nestvec.engine.record import Hits


def search(
    collection: Collection,
    query: Annotated[str | None, typer.Argument(help="The text to look for.")] = None,
    vector_file: Annotated[
        str | None, typer.Option(help="A .npy file with one vector instead of text; '-' reads .npy or JSON from stdin.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many hits.")] = 10,
    filter: Filter = None,
    rank: Annotated[str, typer.Option(help="dense, bm25 or hybrid: by the vectors, the words, or both.")] = "dense",
    fusion: Annotated[
        str | None, typer.Option(metavar="JSON", help='How a hybrid order is made, such as \'{"kind": "rrf"}\'.')
    ] = None,
    recall: Recall = None,
    budget_ms: BudgetMs = None,
    budget_bytes: BudgetBytes = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every record: slower, and always right.")] = False,
    plan: Annotated[
        str | None, typer.Option(metavar="JSON", help="How to search: the form in which --json prints a plan.")
    ] = None,
    db: Db = DEFAULT_DB,
    url: Url = None,
    json: Json = False,
) -> None:
    """Find the records nearest to a text or a vector."""
    from nestvec.engine.explain import recall_json
    from nestvec.engine.fusion import Fusion
    from nestvec.engine.plan import Plan
    from nestvec.errors import InvalidInput

    if query is None and vector_file is None:
        raise InvalidInput("search needs a query text or --vector-file")
    wanted, how, mix = json_object(filter, "--filter"), json_object(plan, "--plan"), json_object(fusion, "--fusion")
    vector = None if vector_file is None else read_vector(vector_file)
    with reached(db, url) as store:
        hits = store.collection(collection).search(
            vector,
            text=query,
            k=k,
            filter=wanted,
            rank=cast("Rank", rank),
            fusion=None if mix is None else Fusion.from_json(mix),
            recall=recall,
            budget_ms=budget_ms,
            budget_bytes=budget_bytes,
            plan=None if how is None else Plan.from_json(how),
            exact=exact,
        )
    if json:
        promised = None if hits.choice is None else recall_json(hits.choice)
        told = {name: getattr(hits, name) for name in ("hits", "plan", "work", "generation", "filter")}
        print_json({**told, "recall": promised})
    else:
        _print_hits(hits)


def _print_hits(hits: Hits) -> None:
    work = hits.work
    rows = [[hit.id, f"{hit.score:.4f}", printable(hit_text(hit.text, hit.payload))] for hit in hits.hits]
    print_table(["id", "score", "text"], rows)
    matching = "" if hits.filter.mode == "none" else f" of {hits.filter.matching:,} matching"
    how = describe_plan(hits.plan)
    note(f"{len(rows)} hits{matching} by {how}: {work.rows:,} rows scored, {work.bytes:,} bytes read")
    if hits.choice is not None:
        note(describe_promise(hits.choice))


def describe_promise(choice: Choice) -> str:
    """One line for what a plan promises: target, estimate and what they rest on; or that it is stale, or nothing."""
    if choice.stale is not None:
        return f"recall is not promised any more: {choice.stale}"
    if choice.estimate is None:
        return f"recall is not promised: {choice.reason}"
    target = "" if choice.target is None else f" (target {choice.target:g})"
    basis = choice.basis
    if basis is None:
        return f"recall {choice.estimate:g}{target}: all that matches is compared"
    return f"recall about {choice.estimate:.3f}{target}, measured on {basis.queries:,} queries ({basis.source})"


def describe_plan(plan: nestvec.Plan | None) -> str:
    """One short line for a plan: route, probes, shortlist, stages; margins after the numbers that they cut."""
    if plan is None:
        return "words alone"
    if plan.route == "exact":
        return "exact"
    steps = [f"{plan.route} {plan.probes} probes{_within(plan.probe_margin)}"]
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
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
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
    url: Url = None,
    json: Json = False,
) -> None:
    """Print records by id."""
    from nestvec.errors import NotFound

    with reached(db, url) as store:
        records = store.collection(collection).get(ids, with_vector=with_vector)
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
    filter: Filter = None,
    whole: Annotated[bool, typer.Option("--whole-collection", help="Delete the collection itself.")] = False,
    db: Db = DEFAULT_DB,
    url: Url = None,
    json: Json = False,
) -> None:
    """Delete records by id, those that match a filter, or (--whole-collection) a collection."""
    from nestvec.errors import InvalidInput

    if bool(ids) + (filter is not None) + whole != 1:
        raise InvalidInput("delete needs ids, --filter or --whole-collection: exactly one of them")
    wanted = json_object(filter, "--filter")
    with reached(db, url) as store:
        if whole:
            store.delete_collection(collection)
            print_result(json, {"deleted_collection": collection}, f"deleted collection {collection}")
        else:
            deleted = store.collection(collection).delete(ids or None, filter=wanted)
            print_result(json, {"deleted": deleted}, f"deleted {deleted:,} records")


def count(
    collection: Collection, filter: Filter = None, db: Db = DEFAULT_DB, url: Url = None, json: Json = False
) -> None:
    """Print how many records a collection holds, or how many of them match."""
    wanted = json_object(filter, "--filter")
    with reached(db, url) as store:
        number = store.collection(collection).count(filter=wanted)
    print_result(json, {"count": number}, str(number))


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (search, get, delete, count):
        app.command()(command)
