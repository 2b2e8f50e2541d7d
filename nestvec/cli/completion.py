"""What a Tab offers: it must come at once, and say nothing where it cannot."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import typer


def collection_names(context: typer.Context, incomplete: str) -> list[str]:
    """The collections of the database that the command line names so far."""
    from nestvec.cli.options import DEFAULT_DB

    found: list[str] = []
    with suppress(Exception):  # an error printed here would land in the middle of the line that is being typed
        from nestvec.engine.storage.names import collection_names

        found = [name for name in collection_names(Path(context.params.get("db") or DEFAULT_DB))]
    return sorted(name for name in found if name.startswith(incomplete))
