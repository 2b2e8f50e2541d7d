"""The ledger: one SQLite file per database, for what belongs to no collection: aliases, API keys and jobs."""

from __future__ import annotations

import uuid
from pathlib import Path

from nestvec.engine.storage import files
from nestvec.engine.storage.sqlite import SqliteFile, create_file
from nestvec.engine.storage.sqlite import rows_of as rows_of

FORMAT_VERSION = 1
FILE_NAME = "database.sqlite"

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE alias(alias TEXT PRIMARY KEY, collection TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE api_key(name TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, scope TEXT NOT NULL, collections TEXT,
                     created TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE job(id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, collection TEXT, state TEXT NOT NULL,
                 progress TEXT, result TEXT, error TEXT, created TEXT NOT NULL, finished TEXT,
                 cancel INTEGER NOT NULL DEFAULT 0, pid INTEGER NOT NULL, request_key TEXT UNIQUE,
                 request_digest BLOB);
CREATE INDEX job_state ON job(state);
"""


class Ledger(SqliteFile):
    """This process' connections to the ledger of one database."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "the database", FORMAT_VERSION)


def create_ledger(path: Path) -> None:
    """Make an empty ledger at `path`, whole or not at all. The caller holds the lock of the directory."""
    temporary = path.parent / f"tmp-{uuid.uuid4().hex}.sqlite"
    create_file(temporary, _SCHEMA, {"format": FORMAT_VERSION})
    files.publish(temporary, path)
