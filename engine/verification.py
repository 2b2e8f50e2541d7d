"""Verification: every stored byte is read and compared with its checksum, without opening anything for use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.store import read_calibration
from nestvec.engine.lexical import verify_words
from nestvec.engine.progress import silent
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage import catalog, files, generation, segment
from nestvec.engine.storage.archive import open_archive, snapshot_files, verify_archive
from nestvec.engine.storage.catalog import Catalog
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.ledger import FILE_NAME as LEDGER_FILE
from nestvec.engine.storage.ledger import Ledger
from nestvec.engine.storage.root import has_ledger, open_root
from nestvec.engine.storage.sqlite import check_integrity
from nestvec.errors import Damaged, NestvecError

Seqs = NDArray[np.int64]

_ROWS = 1000
_RETRIES = 5


@dataclass(frozen=True)
class VerifyReport:
    """What was found in one part of a database: `what` is "collection", "ledger" or "snapshot"; `name` is None where
    it cannot be read; `damage` names the file and says what is wrong, None where all is well."""

    what: str
    path: str
    name: str | None
    damage: str | None

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return self.damage is None


def verify_files(layout: Layout, held: Catalog, config: CollectionConfig) -> None:
    """Read all files that the catalog lists, and the catalog. Raises Damaged naming the first bad file."""
    for _ in range(_RETRIES):
        with held.read() as connection:
            before = catalog.read_state(connection).epoch
            try:
                alive = _verify_directories(layout, connection, config)
                _verify_catalog(connection, config, alive)
                return
            except FileNotFoundError as error:
                missing = error
        with held.read() as connection:
            if catalog.read_state(connection).epoch == before:  # no compaction took it away
                raise Damaged(str(missing.filename), "is listed in the catalog and missing") from missing
    raise Damaged(str(layout.root), "changed faster than it could be read")


def verify_database(root: Path) -> list[VerifyReport]:
    """A report on each collection, readable or not, on the ledger if there is one, and on each snapshot.

    Raises NotFound where there is no database, Damaged for a format that this nestvec does not read.
    """
    open_root(root, create=False)
    reports = [_collection(path) for path in sorted((root / "collections").glob("*")) if path.name.isdigit()]
    if (root / LEDGER_FILE).exists() or has_ledger(root):
        reports.append(VerifyReport("ledger", str(root / LEDGER_FILE), None, _damage(partial(_ledger, root))))
    for path in snapshot_files(root):
        reports.append(VerifyReport("snapshot", str(path), path.stem, _damage(partial(_snapshot, path))))
    return reports


def _verify_directories(layout: Layout, connection: apsw.Connection, config: CollectionConfig) -> list[Seqs]:
    """Read every listed file; the sequence numbers of the live rows of each segment."""
    dead, alive = catalog.tombstones_after(connection, 0), []
    for number, crc in catalog.rows_of(connection, "SELECT segment, manifest_crc FROM segment"):
        segment.verify_segment(layout.segment(number), crc)
        seqs = segment.open_segment(layout.segment(number), number, crc, config).seqs
        alive.append(seqs[~np.isin(seqs, dead)])
    for number, crc in catalog.rows_of(connection, "SELECT generation, manifest_crc FROM generation"):
        files.verify_directory(layout.generation(number), generation.KIND, crc)
    for owner, number, crc in catalog.rows_of(connection, "SELECT generation, segment, manifest_crc FROM postings"):
        files.verify_directory(layout.posting_lists(owner, number), generation.POSTINGS_KIND, crc)
    for (number,) in catalog.rows_of(connection, "SELECT generation FROM generation"):
        read_calibration(connection, number)
    return alive


def _verify_catalog(connection: apsw.Connection, config: CollectionConfig, sealed: list[Seqs]) -> None:
    """Read every row; each record has one vector, and each live vector its record."""
    growing = [numbers for numbers, _ in catalog.growing_after(connection, 0, config.dims, 4096)]
    vectors = np.sort(np.concatenate([np.empty(0, np.int64), *sealed, *growing]))
    rows = catalog.rows_of(connection, "SELECT seq FROM record ORDER BY seq")
    seqs = np.fromiter((seq for (seq,) in rows), np.int64, len(rows))
    if not np.array_equal(seqs, vectors):
        raise Damaged(
            connection.filename, f"holds {len(seqs)} records, which are not those of the {len(vectors)} vectors"
        )
    for start in range(0, len(seqs), _ROWS):
        catalog.read_records(connection, seqs[start : start + _ROWS])
    verify_words(connection, config)
    check_integrity(connection)


def _collection(directory: Path) -> VerifyReport:
    names: list[str] = []

    def check() -> None:
        layout = Layout(directory)
        held = Catalog(layout.catalog)
        try:
            with held.read() as connection:
                names.append(str(catalog.meta_value(connection, "name")))
                stored = json.loads(catalog.meta_value(connection, "config"))
            verify_files(layout, held, CollectionConfig.from_json(stored))
        finally:
            held.close()

    damage = _damage(check)
    return VerifyReport("collection", str(directory), names[0] if names else None, damage)


def _ledger(root: Path) -> None:
    held = Ledger(root / LEDGER_FILE)
    try:
        with held.read() as connection:
            check_integrity(connection)
    finally:
        held.close()


def _snapshot(path: Path) -> None:
    verify_archive(open_archive(path), silent)


def _damage(check: Callable[[], None]) -> str | None:
    """Why the check failed, whatever a damaged file made it raise; None where it passed."""
    try:
        check()
    except (NestvecError, apsw.Error, OSError, ValueError, KeyError, TypeError) as error:
        return str(error) if isinstance(error, NestvecError) else repr(error)
    return None
