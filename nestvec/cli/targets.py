"""What a command works on: a database directory opened here, or a service asked over REST."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import nestvec
    from nestvec.client import RemoteCollection

    Collection: TypeAlias = nestvec.Collection | RemoteCollection
    Store: TypeAlias = nestvec.Database | nestvec.Client


@contextmanager
def opened(db: Path) -> Iterator[nestvec.Database]:
    """The existing database at `db`, closed at the end."""
    import nestvec
    from nestvec.cli.notes import notes

    with notes(), nestvec.open(db, create=False) as database:
        yield database


@contextmanager
def opened_collection(db: Path, name: str) -> Iterator[nestvec.Collection]:
    """Collection `name` of the existing database at `db`."""
    with opened(db) as database:
        yield database.collection(name)


@contextmanager
def reached(db: Path, url: str | None) -> Iterator[Store]:
    """The service at `url`, with the key in NESTVEC_API_KEY if there is one; without `url` the database at `db`."""
    if url is None:
        with opened(db) as database:
            yield database
        return
    import nestvec

    with nestvec.Client(url, api_key=os.environ.get("NESTVEC_API_KEY", "").strip() or None) as client:
        yield client
