"""Calibrations in a collection's catalog: one row for each generation that has one."""

from __future__ import annotations

import json
from typing import cast

import apsw
from crc32c import crc32c

from nestvec.engine.calibration.points import Calibration
from nestvec.engine.storage import catalog
from nestvec.errors import Damaged, InvalidInput

# Made by the first calibration: collections of earlier releases have no such table.
TABLE = (
    "CREATE TABLE IF NOT EXISTS calibration(generation INTEGER PRIMARY KEY REFERENCES generation ON DELETE CASCADE, "
    "data BLOB NOT NULL, crc INTEGER NOT NULL)"
)


def read_calibration(connection: apsw.Connection, generation: int) -> Calibration | None:
    """The calibration of a generation, None where it has none that this release reads."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name='calibration'").get:
        return None
    row = connection.execute("SELECT data, crc FROM calibration WHERE generation=?", (generation,)).fetchone()
    if row is None:
        return None
    data, crc = cast(tuple[bytes, int], row)
    if crc32c(data) != crc:
        raise Damaged(connection.filename, f"the calibration of generation {generation} fails its checksum")
    try:
        return Calibration.from_json(json.loads(data))
    except InvalidInput:
        return None


def write_calibration(held: catalog.Catalog, result: Calibration) -> None:
    """Keep a calibration, in place of the generation's earlier one; every reader's next search sees it."""
    data = json.dumps(result.to_json(), separators=(",", ":")).encode()
    with held.write() as connection:
        connection.execute(TABLE)
        if catalog.meta_value(connection, "current_generation") != result.generation:
            return  # retrained meanwhile: these are another model's figures
        row = (result.generation, data, crc32c(data))
        connection.execute("INSERT OR REPLACE INTO calibration VALUES (?, ?, ?)", row)
        catalog.bump_epoch(connection)
