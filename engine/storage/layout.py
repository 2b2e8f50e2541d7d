"""Where things are inside one collection's directory. Names are numbers that the catalog gave out, never a client's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nestvec.engine.storage import files
from nestvec.engine.storage.catalog import FILE_NAME, Catalog
from nestvec.engine.storage.locks import FileLock


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

        The caller holds the maintenance lock.
        """
        files.sweep_temporary(self.root)
        with held.read() as connection:
            segments = {str(row[0]) for row in connection.execute("SELECT segment FROM segment")}
            generations = {str(row[0]) for row in connection.execute("SELECT generation FROM generation")}
            postings = {f"{row[0]}-{row[1]}" for row in connection.execute("SELECT generation, segment FROM postings")}
        files.sweep(self.segments, segments)
        files.sweep(self.generations, generations)
        files.sweep(self.postings, postings)
