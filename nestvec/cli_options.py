"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Db = Annotated[Path, typer.Option("--db", envvar="NESTVEC_DB", help="The database directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Collection = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]

DEFAULT_DB = Path("nestvec-data")


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
