"""Commands about recall: calibrate, frontier, explain, recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from nestvec.cli.output import note, print_json, print_line, print_result, print_table, progress_reporter
from nestvec.cli.targets import reached

if TYPE_CHECKING:
    from nestvec.engine.calibration.points import Calibration, Frontier

K = Annotated[int, typer.Option("-k", "--k", help="How many hits.")]
Queries = Annotated[
    Path, typer.Option("--queries", help="Real queries: a .npy file of vectors, or a .jsonl file of texts.")
]


def calibrate(
    collection: Collection,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Real queries: .npy vectors or .jsonl texts, best 1,000 to 3,000. [default: made from what is stored]"
        ),
    ] = None,
    db: Db = DEFAULT_DB,
    url: Url = None,
    json: Json = False,
) -> None:
    """Measure which plans give which recall at which cost, for searches to choose from."""
    asked: dict[str, Any] = {} if queries is None else read_queries(queries)
    with reached(db, url) as store, progress_reporter() as progress:
        made = store.collection(collection).calibrate(asked.get("vectors"), texts=asked.get("texts"), progress=progress)
    if json:
        print_json(made)
    elif made is None:
        print_line(f"{collection}: there is no index yet whose plans could be chosen from; nestvec compact makes one")
    else:
        count = max((each.queries for each in made.frontiers), default=0)
        print_line(f"{collection}: {len(made.frontiers)} frontiers from {count:,} queries ({made.source}) "
                   f"in {made.seconds:.1f} s")  # fmt: skip


def frontier(
    collection: Collection,
    k: Annotated[
        int | None, typer.Option("-k", "--k", help="Only this many hits. [default: all that were measured]")
    ] = None,
    selectivity: Annotated[
        float | None, typer.Option(help="Only filters that let this share of the rows pass.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the frontiers of one selectivity into this file.")] = None,
    db: Db = DEFAULT_DB,
    url: Url = None,
    json: Json = False,
) -> None:
    """Print the operating points of a collection: what each plan finds, is sure to find, and costs."""
    from nestvec.errors import NotFound

    with reached(db, url) as store:
        made = store.collection(collection).calibration()
    if made is None:
        raise NotFound(f"{collection!r} is not calibrated: build an index, then run nestvec calibrate -c {collection}")
    chosen = chosen_frontiers(made, k, selectivity)
    if png is not None:
        from nestvec.cli.drawing import draw_frontiers

        draw_frontiers(png, collection, made, [each for each in chosen if each.selectivity == chosen[0].selectivity])
        note(f"drew {png}")
    if json:
        print_json({**made.to_json(), "frontiers": chosen})
    else:
        _print_frontiers(made, chosen)


def chosen_frontiers(made: Calibration, k: int | None, selectivity: float | None) -> list[Frontier]:
    """The frontiers of this k and this selectivity (None: any). Raises NotFound, listing what there is, for none."""
    from nestvec.errors import NotFound

    found = [
        each
        for each in sorted(made.frontiers, key=lambda each: (-each.selectivity, each.k))
        if k in (None, each.k) and selectivity in (None, each.selectivity)
    ]
    if not found:
        measured = ", ".join(f"{each.k} at {each.selectivity:g}" for each in made.frontiers) or "nothing: too few rows"
        raise NotFound(f"no frontier for that k and selectivity; measured were {measured}")
    return found


def _print_frontiers(made: Calibration, chosen: Sequence[Frontier]) -> None:
    rows = [
        [
            str(each.k),
            f"{each.selectivity:g}",
            f"{point.recall:.4f}",
            f"{point.floor:.4f}",
            f"{point.micros:,.0f}",
            f"{point.bytes:,.0f}",
        ]
        for each in chosen
        for point in each.points
    ]
    print_table(["k", "selectivity", "recall", "floor", "µs", "bytes"], rows)
    note(f"measured {made.created} on {made.rows:,} rows ({made.source}), exact scan {made.exact_micros:.3f} µs a row")
    if made.stale is not None:
        note(f"stale: {made.stale}")


def explain(
    collection: Collection,
    query: Annotated[str | None, typer.Argument(help="A text to run the search with.")] = None,
    vector_file: Annotated[
        str | None, typer.Option(help="A .npy file with one vector instead; '-' reads .npy or JSON from stdin.")
    ] = None,
    k: K = 10,
    filter: Filter = None,
    recall: Recall = None,
    budget_ms: BudgetMs = None,
    budget_bytes: BudgetBytes = None,
    plan: Annotated[str | None, typer.Option(metavar="JSON", help="Explain this plan instead of a chosen one.")] = None,
    db: Db = DEFAULT_DB,
    url: Url = None,
    json: Json = False,
) -> None:
    """Say why a search runs as it does; with a text or a vector run it, and draw what each step did."""
    from nestvec.cli.drawing import funnel
    from nestvec.cli.records import read_vector
    from nestvec.engine.plan import Plan

    wanted, how = json_object(filter, "--filter"), json_object(plan, "--plan")
    vector = None if vector_file is None else read_vector(vector_file)
    asked: dict[str, Any] = {"k": k, "filter": wanted, "recall": recall, "budget_ms": budget_ms}
    asked |= {"budget_bytes": budget_bytes, "plan": None if how is None else Plan.from_json(how)}
    with reached(db, url) as store:
        target = store.collection(collection)
        found = target.explain(vector, text=query, **asked)
        if found.work is not None:  # once more: the first run also waited for files to come into memory
            found = target.explain(vector, text=query, **asked)
    if json:
        print_json(found)
    else:
        print_line("\n".join(funnel(found)))


def recall(
    collection: Collection,
    queries: Queries,
    k: K = 10,
    filter: Filter = None,
    target: Recall = None,
    db: Db = DEFAULT_DB,
    url: Url = None,
    json: Json = False,
) -> None:
    """Measure recall now, on given queries: each is answered as asked, and exactly."""
    asked, wanted = read_queries(queries), json_object(filter, "--filter")
    with reached(db, url) as store:
        found = store.collection(collection).measure_recall(
            asked.get("vectors"), texts=asked.get("texts"), k=k, filter=wanted, recall=target
        )
    promised = "" if found.target is None else f", target {found.target:g}{' is missed' if found.missed else ''}"
    line = (
        f"recall@{k} {found.recall:.4f} on {found.queries:,} queries (95 % interval {found.low:.4f} to "
        f"{found.high:.4f}{promised})"
    )
    print_result(json, found, line)


def read_queries(path: Path) -> dict[str, Any]:
    """{"vectors": f32 [b, dims]} from a .npy file, {"texts": [...]} from a .jsonl file: strings, or objects with the
    key "text". Raises InvalidInput for anything else."""
    import json

    import numpy as np

    from nestvec.errors import InvalidInput

    if path.suffix == ".npy":
        try:
            vectors = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise InvalidInput(f"{path}: expected a .npy file of vectors: {error}") from None
        if vectors.ndim != 2:
            raise InvalidInput(f"{path}: expected vectors of shape [n, dims], got {vectors.shape}")
        return {"vectors": vectors}
    if path.suffix != ".jsonl":
        raise InvalidInput(f"{path}: queries are a .npy file of vectors or a .jsonl file of texts")
    texts = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise InvalidInput(f"{path}, line {number}: no JSON: {error}") from None
        text = value.get("text") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts.append(text)
        elif value is not None:
            raise InvalidInput(f'{path}, line {number}: expected a string, or an object with "text"')
    return {"texts": texts}


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (calibrate, frontier, explain, recall):
        app.command()(command)
