"""The names of collections, read without opening them: for a shell that waits after a Tab, and for damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw


def collection_names(root: Path) -> Iterator[str]:
    """Names as the catalogs tell them, unchecked. Nothing is locked, made or written. Any error may come out."""
    for catalog in sorted(root.glob("collections/[0-9]*/catalog.sqlite")):
        name = collection_name(catalog)
        if name is not None:
            yield name


def collection_name(catalog: Path) -> str | None:
    """The name in one catalog, unchecked, None where it has none. Raises apsw.Error where it cannot be read."""
    # immutable: no lock and no shared-memory file. A name never changes, so a page seen half-way does no harm.
    connection = apsw.Connection(
        f"{catalog.resolve().as_uri()}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    try:
        name = connection.execute("SELECT value FROM meta WHERE key='name'").get
        return None if name is None else str(name)
    finally:
        connection.close()
