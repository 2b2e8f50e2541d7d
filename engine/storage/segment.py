"""A sealed segment: vectors.bin (row-major, stored form), seqs.bin (i64, ascending), norms.bin (f32, cosine only)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage import files
from nestvec.errors import Damaged

KIND = "segment"
VERIFY_AT_OPEN_BYTES = 64 << 20
"""Larger files are read in full by `verify_segment` only, so that opening 3 GB stays quick."""


@dataclass(frozen=True, eq=False)
class Segment:
    """An open segment: row i has sequence number `seqs[i]` and the stored vector `vectors[i]`."""

    number: int
    path: Path
    vectors: NDArray[Any]
    seqs: NDArray[np.int64]
    norms: NDArray[np.float32] | None
    in_memory: bool = False

    @property
    def rows(self) -> int:
        """Rows, dead ones included."""
        return len(self.seqs)

    def resident(self) -> Segment:
        """The same with its vectors copied into huge pages: the rows that a search scores in full lie far apart, and
        a mapped file is spread over 4 KiB pages, most of which the processor has to look up first."""
        return self if self.in_memory else replace(self, vectors=files.resident(self.vectors), in_memory=True)

    def find(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions in the argument, rows here) of the sequence numbers that are in this segment."""
        if not len(seqs):
            return seqs, seqs
        rows = np.searchsorted(self.seqs, seqs)
        inside = rows < self.rows
        inside[inside] = self.seqs[rows[inside]] == seqs[inside]
        return np.flatnonzero(inside).astype(np.int64), rows[inside].astype(np.int64)


class SegmentWriter:
    """Writes a segment's files into a staging directory, block by block."""

    def __init__(self, directory: Path, config: CollectionConfig) -> None:
        self._directory, self._config = directory, config
        self._vectors = files.FileWriter(directory / "vectors.bin")
        self._norms = files.FileWriter(directory / "norms.bin") if config.metric == "cosine" else None

    def append(self, vectors: NDArray[Any], norms: NDArray[np.float32] | None) -> None:
        """Add stored vectors [n, dims] in the collection's dtype, and their norms under cosine."""
        self._vectors.append(vectors)
        if self._norms is not None and norms is not None:
            self._norms.append(norms)

    def finish(self, seqs: NDArray[np.int64]) -> int:
        """Make it durable under its staging name; the manifest's crc32c."""
        entries = [self._vectors.finish()]
        if self._norms is not None:
            entries.append(self._norms.finish())
        files.crash_point("segment-vectors-written")
        return finish_segment(self._directory, self._config, seqs, entries)

    def close(self) -> None:
        """Close the files after an error."""
        self._vectors.close()
        if self._norms is not None:
            self._norms.close()


def finish_segment(
    directory: Path, config: CollectionConfig, seqs: NDArray[np.int64], entries: list[files.FileEntry]
) -> int:
    """Write seqs.bin and, last, the manifest that lists it and `entries`; the manifest's crc32c."""
    entries = [*entries, files.write_file(directory / "seqs.bin", seqs.astype("<i8"))]
    meta = {"dims": config.dims, "dtype": config.dtype, "metric": config.metric, "rows": len(seqs)}
    return files.write_manifest(directory, KIND, meta, entries)


def open_segment(path: Path, number: int, manifest_crc: int, config: CollectionConfig) -> Segment:
    """Map a published segment: manifest, file kinds and sizes are checked; seqs.bin and files up to 64 MiB wholly.

    Raises FileNotFoundError when the directory is gone, Damaged for anything that does not fit.
    """
    manifest = files.read_manifest(path, KIND, manifest_crc)
    meta = manifest.meta
    rows = meta.get("rows")
    said = (meta.get("dims"), meta.get("dtype"), meta.get("metric"))
    if said != (config.dims, config.dtype, config.metric) or type(rows) is not int:
        raise Damaged(str(path / files.MANIFEST), f"describes {meta!r:.200}, the collection is {config}")
    for entry in manifest.files.values():
        if entry.name == "seqs.bin" or entry.size <= VERIFY_AT_OPEN_BYTES:
            files.verify_file(path / entry.name, entry)
    missing = next((name for name in _files_of(config) if name not in manifest.files), None)
    if missing is not None:
        raise Damaged(str(path / files.MANIFEST), f"does not list {missing}")
    norms = files.map_array(path / "norms.bin", "float32", (rows,)) if config.metric == "cosine" else None
    return Segment(
        number,
        path,
        files.map_array(path / "vectors.bin", config.dtype, (rows, config.dims)),
        files.map_array(path / "seqs.bin", "int64", (rows,)),
        norms,
    )


def _files_of(config: CollectionConfig) -> tuple[str, ...]:
    return ("vectors.bin", "seqs.bin") + (("norms.bin",) if config.metric == "cosine" else ())


def verify_segment(path: Path, manifest_crc: int) -> None:
    """Read every byte of a segment and compare it with its checksums. Raises Damaged naming file and block."""
    files.verify_directory(path, KIND, manifest_crc)
