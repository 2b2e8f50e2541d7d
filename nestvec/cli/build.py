"""`nestvec build`: files in, a searchable collection out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from nestvec.cli.options import (
    DEFAULT_DB,
    Collection,
    Db,
    IdColumn,
    Json,
    PayloadColumns,
    Sources,
    TextColumn,
    VectorColumn,
    comma_ints,
    comma_list,
    json_object,
)
from nestvec.cli.output import ProgressCallback, note, print_json, print_line, progress_reporter
from nestvec.cli.signals import stops_interrupt, uninterrupted

if TYPE_CHECKING:
    import nestvec
    from nestvec.engine.collection import Collection as EngineCollection
    from nestvec.train.ehi.choose import Choice

DEFAULT_ENCODER = "static"
Rotation = Literal["auto", "pca", "none"]


def build(
    sources: Sources,
    collection: Collection,
    dims: Annotated[int | None, typer.Option(help="Length of the vectors. [default: the source's]")] = None,
    metric: Annotated[str | None, typer.Option(help="cosine, dot or l2. [default: cosine]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float16. [default: float32]")] = None,
    granularities: Annotated[str | None, typer.Option(help="Allowed prefix lengths, such as 64,128,256.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder of texts. [default: static where the source has no vectors]")
    ] = None,
    id_column: IdColumn = None,
    vector_column: VectorColumn = None,
    text_column: TextColumn = None,
    payload_columns: PayloadColumns = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME:TYPE", help="Declare a payload field: string, number, bool, datetime."),
    ] = None,
    bm25: Annotated[
        bool | None,
        typer.Option("--bm25/--no-bm25", help="Search texts by their words too. [default: with an encoder]"),
    ] = None,
    bm25_fields: Annotated[str | None, typer.Option(help="Payload fields whose strings are searched so: a,b.")] = None,
    chunk_words: Annotated[
        int | None, typer.Option(help="Cut texts into chunks of at most so many words. [default: not at all]")
    ] = None,
    chunk_overlap: Annotated[int | None, typer.Option(help="Words that two chunks share. [default: a fifth]")] = None,
    rotate: Annotated[
        str, typer.Option(help="auto, pca or none: make prefixes meaningful by principal axes.")
    ] = "auto",
    skip_bad: Annotated[Path | None, typer.Option(help="Write bad rows to this .jsonl file and go on.")] = None,
    route: Annotated[
        str | None,
        typer.Option(help="soar, faiss or scann: whose index; auto: soar or a tree from --pairs. [default: soar]"),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="For the route auto: queries and the documents they want (.jsonl, .parquet, .tsv)."),
    ] = None,
    measure: Annotated[
        str, typer.Option(help="What the route auto compares on queries held out: ndcg or recall.")
    ] = "ndcg",
    library: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Its settings, such as \'{"factory": "IVF256,PQ48x4fs"}\' for faiss.'),
    ] = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Number of partitions. [default: by size]")] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore/--no-rescore", help="Keep int8 rows; without: smaller index, slower search.")
    ] = True,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Measure which plans give which recall; without: later.")
    ] = True,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Build a collection from files of vectors or texts.

    The collection is made if it does not exist. If this command made it and then fails or is interrupted, the
    collection is removed again.
    """
    import nestvec
    from nestvec.engine.sources import open_source

    rotation, settings = _rotation(rotate), json_object(library, "--library")
    chooses = _chooses(route, pairs)
    source = open_source(
        sources,
        id_column=id_column,
        vector_column=vector_column,
        text_column=text_column,
        payload_columns=comma_list(payload_columns),
    )
    wanted = {
        "dims": dims,
        "metric": metric,
        "dtype": dtype,
        "granularities": comma_ints(granularities, "--granularities"),
        "encoder": encoder,
        "fields": _fields(field),
        "bm25": bm25,
        "bm25_fields": None if bm25_fields is None else tuple(comma_list(bm25_fields) or ()),
        "chunking": _chunking(chunk_words, chunk_overlap),
    }
    with (
        nestvec.open(db) as database,
        _target(database, collection, wanted, source.dims) as target,
        progress_reporter() as progress,
    ):
        report = target.build(
            source,
            rotate=rotation,
            rejects=skip_bad,
            progress=progress,
            partitions=partitions,
            rescore=rescore,
            route=None if chooses else route,
            library=settings,
            calibrate=calibrate,
        )
        choice = _choice(target, pairs, measure, progress) if chooses and pairs is not None else None
    if json:
        chosen = {} if choice is None else {"choice": choice}
        told = {each.name: getattr(report, each.name) for each in fields(report)}
        print_json({"collection": collection, **told, **chosen})
    else:
        _print_report(collection, report, skip_bad)
        if choice is not None:
            _print_choice(choice)


def _print_report(collection: str, report: nestvec.BuildReport, rejects: Path | None) -> None:
    total = sum(report.seconds.values())
    print_line(f"{collection}: {report.rows:,} rows in {total:.1f} s, generation {report.generation}")
    for step, seconds in report.seconds.items():
        print_line(f"  {step}: {seconds:.2f} s")
    rotation = "rotated by principal axes" if report.rotated else "not rotated"
    recall = "" if report.prefix_recall is None else f", prefix recall {report.prefix_recall:.3f}"
    print_line(f"  {rotation}{recall}")
    if report.rejected:
        print_line(f"  {report.rejected:,} bad rows skipped, listed in {rejects}")


def _chooses(route: str | None, pairs: Path | None) -> bool:
    """Whether the route is to be chosen by pairs."""
    from nestvec.errors import InvalidInput

    if (route == "auto") != (pairs is not None):
        raise InvalidInput("--route auto needs --pairs to measure with, and --pairs are for --route auto")
    return route == "auto"


def _choice(target: EngineCollection, pairs: Path, measure: str, progress: ProgressCallback) -> Choice:
    from nestvec.train.ehi.choose import choose
    from nestvec.train.ehi.config import TreeSettings, default_branches, default_epochs
    from nestvec.train.ehi.pairs import read_pairs

    asked = read_pairs(pairs)
    for_adapter, for_router = default_epochs(len(asked))
    settings = TreeSettings(branches=default_branches(target.count()), adapter_epochs=for_adapter, epochs=for_router)
    return choose(target, asked, settings, measure=measure, progress=progress)  # type: ignore[arg-type]


def _print_choice(choice: Choice) -> None:
    name = {"ndcg": "nDCG@10", "recall": "recall@10"}[choice.measure]
    print_line(
        f"  kept {choice.route}: {name} {choice.ehi:.3f} by a learned tree, {choice.soar:.3f} by soar, on "
        f"{choice.report.held:,} queries held out, at the cost of scoring {choice.share:.1%} of the documents"
    )
    if choice.why is not None:
        print_line(f"  the tree could not be kept: {choice.why}")


def _rotation(value: str) -> Rotation:
    from nestvec.errors import InvalidInput

    if value not in ("auto", "pca", "none"):
        raise InvalidInput(f"--rotate must be auto, pca or none; got {value!r}")
    return cast("Rotation", value)


def _fields(given: list[str] | None) -> dict[str, str] | None:
    """`["year:number"]` → `{"year": "number"}`; the collection checks the types."""
    from nestvec.errors import InvalidInput

    if given is None:
        return None
    pairs = [text.rpartition(":") for text in given]
    for (name, colon, _), text in zip(pairs, given, strict=True):
        if not colon or not name:
            raise InvalidInput(f"--field must be NAME:TYPE, such as year:number; got {text!r}")
    return {name: kind for name, _, kind in pairs}


def _chunking(words: int | None, overlap: int | None) -> nestvec.Chunking | None:
    from nestvec.engine.chunking import Chunking
    from nestvec.errors import InvalidInput

    if words is None:
        if overlap is not None:
            raise InvalidInput("--chunk-overlap needs --chunk-words")
        return None
    return Chunking(words, words // 5 if overlap is None else overlap)


@contextmanager
def _target(
    database: nestvec.Database, name: str, wanted: dict[str, Any], source_dims: int | None
) -> Iterator[EngineCollection]:
    """The collection to build into; if it is made here, it is removed again when the block fails."""
    exists = any(info.name == name for info in database.collections())
    if exists:
        target = database.collection(name)
        _check_same(target, wanted)
        yield target
        return
    with stops_interrupt():
        target = database.create_collection(name, **_creation(wanted, source_dims))
        try:
            yield target
        except BaseException:
            with uninterrupted():
                database.delete_collection(name)
                note(f"removed collection {name!r}: the build did not finish")
            raise


def _creation(wanted: dict[str, Any], source_dims: int | None) -> dict[str, Any]:
    """Arguments of create_collection: what was asked, then what the source says, then the default encoder."""
    given = {key: value for key, value in wanted.items() if value is not None}
    if "encoder" not in given and "dims" not in given:
        if source_dims is None:
            given["encoder"] = DEFAULT_ENCODER
        else:
            given["dims"] = source_dims
    return given


def _check_same(target: EngineCollection, wanted: dict[str, Any]) -> None:
    """Refuse options that contradict the existing collection."""
    from nestvec.errors import Conflict

    for key, value in wanted.items():
        existing = getattr(target.config, key)
        if value is not None and value != existing:
            raise Conflict(f"collection {target.name!r} exists with {key} {existing}; --{key} asks for {value}")


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(build)
