"""Options that several commands share, declared once."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from nestvec.cli.completion import collection_names

DEFAULT_DB = Path("nestvec-data")

Db = Annotated[Path, typer.Option("--db", envvar="NESTVEC_DB", help="The database directory.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Ask the service at this address (its key: NESTVEC_API_KEY) instead of opening --db.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="JSON", help='Only records that match, such as \'{"field": "lang", "eq": "en"}\'.'
    ),
]
Recall = Annotated[
    float | None, typer.Option("--recall", help="Mean share of the true best to find, such as 0.95. [default: 0.95]")
]
BudgetMs = Annotated[float | None, typer.Option("--budget-ms", help="Instead: the best for so many milliseconds.")]
BudgetBytes = Annotated[float | None, typer.Option("--budget-bytes", help="Instead: the best for so many bytes read.")]
Sources = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE...", help=".npy .npz .fvecs .bvecs .parquet .jsonl .jsonl.gz", show_default=False),
]
IdColumn = Annotated[str | None, typer.Option("--id-column", help="Column or key of the ids.")]
VectorColumn = Annotated[str | None, typer.Option("--vector-column", help="Column or key of the vectors.")]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column or key of the texts.")]
PayloadColumns = Annotated[str | None, typer.Option("--payload-columns", help="Columns or keys of the payload: a,b.")]
Collection = Annotated[
    str, typer.Option("--collection", "-c", help="Name of the collection.", autocompletion=collection_names)
]


def comma_list(value: str | None) -> list[str] | None:
    """`"a, b"` → `["a", "b"]`; None stays None."""
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def comma_ints(value: str | None, option: str) -> tuple[int, ...] | None:
    """`"64,128"` → `(64, 128)`.

    Raises InvalidInput, naming `option`, where a part is not a whole number.
    """
    from nestvec.errors import InvalidInput

    try:
        return None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise InvalidInput(
            f"{option} must be whole numbers with commas between, such as 64,128; got {value!r}"
        ) from None


def json_object(value: str | None, option: str) -> dict[str, Any] | None:
    """A JSON object given as an option's value; None stays None.

    Raises InvalidInput, naming `option`, for anything else.
    """
    from nestvec.errors import InvalidInput

    if value is None:
        return None
    try:
        parsed = jsonlib.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{option} must be a JSON object: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidInput(f"{option} must be a JSON object, got {type(parsed).__name__}")
    return parsed
