"""The names of a database's collections, read without opening it: for a shell that waits after a Tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw


def collection_names(root: Path) -> Iterator[str]:
    """Names as the catalogs tell them, unchecked. Nothing is locked, made or written. Any error may come out."""
    for catalog in sorted(root.glob("collections/[0-9]*/catalog.sqlite")):
        # immutable: no lock and no shared-memory file. A name never changes, so a page seen half-way does no harm.
        connection = apsw.Connection(
            f"{catalog.resolve().as_uri()}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        )
        try:
            yield str(connection.execute("SELECT value FROM meta WHERE key='name'").get)
        finally:
            connection.close()
