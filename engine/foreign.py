"""What comes out of a snapshot's file is checked as if a stranger had written it: one may have."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import numpy as np

from nestvec.engine import lexical
from nestvec.engine.calibration.store import TABLE as CALIBRATION_TABLE
from nestvec.engine.collection import Collection
from nestvec.engine.progress import Progress
from nestvec.engine.routes import LIBRARIES, SOAR
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage import files
from nestvec.engine.storage.catalog import FILE_NAME, Catalog, change_facts, meta_value, rows_of
from nestvec.engine.storage.catalog import SCHEMA as CATALOG_SCHEMA
from nestvec.engine.storage.generation import KIND as GENERATION
from nestvec.engine.storage.generation import ROTATION
from nestvec.engine.storage.layout import Layout
from nestvec.errors import Damaged, InvalidInput, MissingDependency, NoSpace

_NONSENSE = (
    apsw.Error, InvalidInput, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, FileNotFoundError,
    RecursionError,
)  # fmt: skip
"""What reading facts that nobody of ours wrote ends in."""

log = logging.getLogger("nestvec")


def admit(directory: Path, source: Path, name: str, rows: int, progress: Progress) -> None:
    """Make the collection that was extracted from `source` one of ours, of the name `name` and with `rows` records.

    Progress is told as stage "verify". Raises Damaged, naming `source`, for whatever is not as we write it.
    """
    with _foreign(source):
        _check_schema(directory / FILE_NAME)
        _check_generations(Layout(directory))
        _rename(directory, name)
        _check_collection(directory, rows, progress)


@contextmanager
def _foreign(source: Path) -> Iterator[None]:
    """What is wrong inside a whole file is the file's fault: one that we wrote opens without complaint."""
    try:
        yield
    except Damaged as error:
        raise Damaged(str(source), f"holds a collection that is damaged: {error.reason}") from error
    except apsw.FullError as error:
        raise NoSpace(f"restore of {source}: no space left; nothing was changed. Free some and try again") from error
    except _NONSENSE as error:
        raise Damaged(str(source), f"holds no collection that can be opened: {error!r:.200}") from error


def _check_schema(path: Path) -> None:
    """The statements of a foreign file shall never run: its tables, views and triggers must be those that we make."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        found = _schema(connection)
        config = CollectionConfig.from_json(json.loads(meta_value(connection, "config")))
    finally:
        connection.close(True)
    model = apsw.Connection(":memory:")
    try:
        model.execute(CATALOG_SCHEMA + lexical.schema(config))
        needed = _schema(model)
        model.execute(CALIBRATION_TABLE)  # made by the first calibration only
        odd = (needed - found) | (found - _schema(model))
    finally:
        model.close()
    if odd:
        raise Damaged(str(path), f"its schema differs from ours in {sorted(odd)[0][:2]!r:.200}")


def _schema(connection: apsw.Connection) -> set[tuple[str, str, str]]:
    """(type, name, statement) of all that is in a database; blanks do not count."""
    rows = rows_of(connection, "SELECT type, name, coalesce(sql, '') FROM sqlite_schema")
    return {(kind, name, " ".join(sql.split())) for kind, name, sql in rows}


def _check_generations(layout: Layout) -> None:
    """A library trusts what it reads: nothing in a library's own form is taken from a file."""
    held = Catalog(layout.catalog)
    try:
        with held.read() as connection:
            coded = {owner for (owner,) in rows_of(connection, "SELECT DISTINCT generation FROM postings")}
            for number, crc in rows_of(connection, "SELECT generation, manifest_crc FROM generation"):
                meta = files.read_manifest(layout.generation(number), GENERATION, crc).meta
                strange = set(meta["arrays"]) - {ROTATION} or number in coded
                if meta["facts"]["format"] in LIBRARIES and strange:
                    raise Damaged(str(layout.root), "holds an index in a library's own form, which is never restored")
    finally:
        held.close()


def _train_again(collection: Collection, progress: Progress) -> None:
    """The index of a library, which no snapshot holds, from the vectors."""
    with collection.part.keeper.current() as (_, snapshot):
        route = snapshot.generation.route if snapshot.generation else SOAR
    if route in LIBRARIES:
        try:
            collection.compact(retrain=True, progress=progress)
        except MissingDependency as error:
            log.warning("%s; searching exactly until it is there and compact(retrain=True) was called", error)


def _rename(directory: Path, name: str) -> None:
    held = Catalog(directory / FILE_NAME)
    try:
        with held.write() as connection:
            if meta_value(connection, "name") is None:
                raise Damaged(str(directory), "has no name")
            change_facts(connection, name=name, identity=uuid.uuid4().hex)
    finally:
        held.close()


def _check_collection(directory: Path, rows: int, progress: Progress) -> None:
    """Open it as every collection is opened, read every byte, and let it answer a query."""
    collection = Collection(directory)
    try:
        _train_again(collection, progress)
        progress("verify", 0, None)
        collection.verify()
        found = collection.info()
        if found.growing + found.sealed != rows:
            raise Damaged(str(directory), f"has {found.growing + found.sealed} records, its snapshot says {rows}")
        collection.search(np.ones(collection.config.dims, np.float32), k=1)
    finally:
        collection.close()
