"""Where things are inside one collection's directory. Names are numbers that the catalog gave out, never a client's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import apsw

from nestvec.engine.storage import files
from nestvec.engine.storage.catalog import FILE_NAME, Catalog, last_number
from nestvec.engine.storage.locks import FileLock
from nestvec.errors import Damaged


@dataclass(frozen=True)
class Layout:
    """The paths of a collection directory."""

    root: Path

    @property
    def catalog(self) -> Path:
        return self.root / FILE_NAME

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    @property
    def generations(self) -> Path:
        return self.root / "generations"

    @property
    def postings(self) -> Path:
        return self.root / "postings"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def segment(self, number: int) -> Path:
        return self.segments / str(number)

    def generation(self, number: int) -> Path:
        return self.generations / str(number)

    def posting_lists(self, generation: int, segment: int) -> Path:
        return self.postings / f"{generation}-{segment}"

    def create(self) -> None:
        """Make the sub-directories."""
        for path in (self.segments, self.generations, self.postings):
            files.new_directory(path)

    def maintenance_lock(self) -> FileLock:
        """Held by whoever seals, compacts, builds or sweeps: one at a time, over all processes."""
        return FileLock(self.root / "MAINTENANCE.lock")

    def sweep(self, held: Catalog) -> None:
        """Remove what a killed maintenance left: `tmp-*` and directories that the catalog does not list.

        The caller holds the maintenance lock. Raises Damaged, and removes nothing, where the catalog cannot be that of
        these files.
        """
        with held.read() as connection:
            segments = {str(row[0]) for row in connection.execute("SELECT segment FROM segment")}
            generations = {str(row[0]) for row in connection.execute("SELECT generation FROM generation")}
            postings = {f"{row[0]}-{row[1]}" for row in connection.execute("SELECT generation, segment FROM postings")}
            self._check_listed(connection, segments)
        if not all(path.is_dir() for path in (self.segments, self.generations, self.postings)):
            self.create()
        files.sweep_temporary(self.root)
        files.sweep(self.segments, segments)
        files.sweep(self.generations, generations)
        files.sweep(self.postings, postings)

    def _check_listed(self, connection: apsw.Connection, segments: set[str]) -> None:
        """A kill before the commit leaves at most the one directory whose number comes next."""
        for number in segments:
            if not self.segment(int(number)).is_dir():
                raise Damaged(str(self.segment(int(number))), "is listed in the catalog and missing")
        for table, home in (("segment", self.segments), ("generation", self.generations)):
            last = last_number(connection, table)
            held = os.listdir(home) if home.is_dir() else []  # archives and object stores drop empty directories
            newest = max((int(name) for name in held if name.isdigit()), default=0)
            if newest > last + 1:
                raise Damaged(str(self.catalog), f"is older than {home / str(newest)}: it knows {table}s up to {last}")
