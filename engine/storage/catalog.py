"""The catalog: one SQLite file per collection, the write-ahead truth (WAL, synchronous=FULL) through apsw.

Readers follow three counters, read in the same transaction as the rows: `epoch` (bumped by every change of segments or
generation), the last record sequence number and the last tombstone number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import apsw
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from nestvec.engine.chunking import chunk_id
from nestvec.engine.storage.sqlite import SqliteFile, create_file
from nestvec.engine.storage.sqlite import meta_value as meta_value
from nestvec.engine.storage.sqlite import rows_of as rows_of
from nestvec.errors import Damaged

FORMAT_VERSION = 1
FILE_NAME = "catalog.sqlite"

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE record(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, payload BLOB NOT NULL, text TEXT,
                    crc INTEGER NOT NULL);
CREATE TABLE growing(seq INTEGER PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE tombstone(n INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER NOT NULL);
CREATE TABLE segment(segment INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, manifest_crc INTEGER NOT NULL);
CREATE TABLE generation(generation INTEGER PRIMARY KEY AUTOINCREMENT, manifest_crc INTEGER NOT NULL,
                        partitions INTEGER NOT NULL);
CREATE TABLE postings(generation INTEGER NOT NULL REFERENCES generation ON DELETE CASCADE,
                      segment INTEGER NOT NULL REFERENCES segment ON DELETE CASCADE, manifest_crc INTEGER NOT NULL,
                      PRIMARY KEY(generation, segment)) WITHOUT ROWID;
INSERT INTO sqlite_sequence(name, seq) VALUES ('record', 0), ('tombstone', 0), ('segment', 0), ('generation', 0);
"""

# One statement for any number of records, which come in the order asked for: a carray is a table with the numbers.
_READ_RECORDS = """
SELECT record.seq, id, payload, text, crc FROM carray(?) AS wanted CROSS JOIN record ON record.seq=wanted.value
"""


_FACTS, _CRC = ("name", "identity", "config"), "facts_crc"


StoredRecord = tuple[str, bytes, str | None]
"""Id, payload and text of a record; the payload is JSON, b"null" for none."""


class State(NamedTuple):
    """Equal states are equal contents: what a reader compares to know whether its snapshot is current."""

    epoch: int
    seq: int
    tombstone: int


def create_catalog(path: Path, meta: dict[str, Any], more: str = "") -> None:
    """Create the file with its tables, those of the statements `more`, and facts, closed again and free of a WAL."""
    crc = _facts_crc(meta["name"], meta["identity"], meta["config"])
    fixed = {"format": FORMAT_VERSION, "epoch": 0, "current_generation": None, _CRC: crc}
    create_file(path, SCHEMA + more, {**fixed, **meta})


def record_crc(id: str, payload: bytes, text: str | None) -> int:
    """crc32c over id, payload and text."""
    return crc32c(id.encode() + payload + text.encode() if text else id.encode() + payload)


class Catalog(SqliteFile):
    """This process' connections to one catalog. `config` is the stored configuration that it knows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "the collection", FORMAT_VERSION)
        try:
            with self.read() as connection:
                _check_facts(connection)
                self.config: str = meta_value(connection, "config")
        except BaseException:
            self.close()
            raise

    def reread_config(self) -> bool:
        """Bring `config` up to date: another process may have changed it. Whether one had."""
        with self.read() as connection:
            before, self.config = self.config, meta_value(connection, "config")
        return self.config != before


def change_facts(connection: apsw.Connection, **facts: str) -> None:
    """Change some of name, identity and config; they are checksummed together."""
    connection.executemany("UPDATE meta SET value=? WHERE key=?", [(value, key) for key, value in facts.items()])
    crc = _facts_crc(*(meta_value(connection, key) for key in _FACTS))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_CRC, crc))


def _check_facts(connection: apsw.Connection) -> None:
    """Collections of the first release have no checksum here."""
    expected = meta_value(connection, _CRC)
    if expected is None:
        return
    values = [meta_value(connection, key) for key in _FACTS]
    if not all(isinstance(value, str) for value in values) or expected != _facts_crc(*values):
        raise Damaged(connection.filename, "the collection's name or configuration fails its checksum")


def _facts_crc(name: str, identity: str, config: str) -> int:
    return crc32c("\0".join((name, identity, config)).encode())


def read_state(connection: apsw.Connection) -> State:
    """The three counters (a few microseconds)."""
    row = connection.execute(
        "SELECT (SELECT value FROM meta WHERE key='epoch'),"
        "(SELECT seq FROM sqlite_sequence WHERE name='record'),"
        "(SELECT seq FROM sqlite_sequence WHERE name='tombstone')"
    ).get
    return State(*row)


def check_alive(connection: apsw.Connection, live: NDArray[np.int64]) -> None:
    """Raise Damaged unless the rows that are alive, i64 [n], are those that have a record: counts and sums are
    compared, which takes 85 ms for a million. A tombstone, a listed segment or a growing row that was changed shows."""
    found = connection.execute("SELECT count(*), coalesce(sum(seq), 0) FROM record").fetchone()
    if found != (len(live), int(live.sum())):
        raise Damaged(
            connection.filename,
            f"holds records of count and sum {found}, the vectors alive are {(len(live), int(live.sum()))}",
        )


def bump_epoch(connection: apsw.Connection) -> None:
    """Tell every reader that segments or generation changed."""
    connection.execute("UPDATE meta SET value=value+1 WHERE key='epoch'")


def last_number(connection: apsw.Connection, table: str) -> int:
    """The highest key that an AUTOINCREMENT table ever gave out."""
    value: int = connection.execute("SELECT seq FROM sqlite_sequence WHERE name=?", (table,)).get
    return value


def reserve_seqs(connection: apsw.Connection, count: int) -> int:
    """Set `count` record sequence numbers aside; the first of them."""
    first = last_number(connection, "record") + 1
    connection.execute("UPDATE sqlite_sequence SET seq=seq+? WHERE name='record'", (count,))
    return first


def growing_after(
    connection: apsw.Connection, seq: int, dims: int, limit: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Blocks of (seqs i64 [n], the user's vectors f32 [n, dims]) of growing rows with a higher seq, checked."""
    cursor = iter(connection.execute("SELECT seq, vector, crc FROM growing WHERE seq>? ORDER BY seq", (seq,)))
    while rows := cast(list[tuple[int, bytes, int]], list(islice(cursor, limit))):
        for number, blob, crc in rows:
            if crc32c(blob) != crc or len(blob) != 4 * dims:
                raise Damaged(connection.filename, f"the vector of growing record seq {number} fails its checksum")
        seqs = np.array([row[0] for row in rows], np.int64)
        yield seqs, np.frombuffer(b"".join(row[1] for row in rows), "<f4").reshape(-1, dims)


def tombstones_after(connection: apsw.Connection, number: int) -> NDArray[np.int64]:
    """Sequence numbers that died after tombstone `number`."""
    rows = rows_of(connection, "SELECT seq FROM tombstone WHERE n>?", (number,))
    return np.fromiter((row[0] for row in rows), np.int64, len(rows))


def chunk_ids(connection: apsw.Connection, document: str) -> list[str]:
    """The ids of a document's chunks, in order: they are numbered from 0 without a gap, for they change together."""
    ids: list[str] = []
    while connection.execute("SELECT 1 FROM record WHERE id=?", (id := chunk_id(document, len(ids)),)).get is not None:
        ids.append(id)
    return ids


def read_ids(connection: apsw.Connection, seqs: NDArray[np.int64]) -> list[str]:
    """The ids of live records i64 [n], in the order asked for. Raises Damaged where one is missing."""
    if not len(seqs):
        return []
    wanted = np.ascontiguousarray(seqs, np.int64)
    query = "SELECT id FROM carray(?) AS wanted CROSS JOIN record ON record.seq=wanted.value"
    ids = [row[0] for row in connection.execute(query, (apsw.carray(wanted),))]
    if len(ids) != len(wanted):
        raise Damaged(connection.filename, f"has {len(ids)} of {len(wanted)} records that segments hold alive")
    return ids


def read_records(connection: apsw.Connection, seqs: Sequence[int] | NDArray[np.int64]) -> list[StoredRecord]:
    """(id, payload, text) of live records, in the order asked for.

    Raises Damaged where one is missing or fails its checksum.
    """
    wanted = np.ascontiguousarray(seqs, np.int64)
    if not len(wanted):
        return []
    rows = cast(
        list[tuple[int, str, bytes, str | None, int]],
        connection.execute(_READ_RECORDS, (apsw.carray(wanted),)).fetchall(),
    )
    if len(rows) != len(wanted):
        missing = min(set(wanted.tolist()) - {row[0] for row in rows})
        raise Damaged(connection.filename, f"has no record seq {missing}, which a segment holds alive")
    found = []
    for seq, id, payload, text, crc in rows:
        if crc32c(id.encode() + payload + text.encode() if text else id.encode() + payload) != crc:
            raise Damaged(connection.filename, f"record seq {seq} fails its checksum")
        found.append((id, payload, text))
    return found
