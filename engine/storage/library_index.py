"""A library's index of one segment on disk: files in the library's own form, under a manifest of ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nestvec.engine.storage import files
from nestvec.index.library.search import LibraryIndex, LibraryModel


def write(directory: Path, kind: str, index: LibraryIndex) -> int:
    """Have the library fill a staging directory, and make that durable. Returns the manifest's crc32c."""
    try:
        facts = index.save(directory)
    except RuntimeError as error:
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, f"{os.strerror(number)}: {error}", str(directory)) from error
    meta = {"facts": facts, "rows": index.n_rows}
    return files.write_manifest(directory, kind, meta, files.adopt(directory))


def read(path: Path, kind: str, manifest_crc: int, model: LibraryModel) -> LibraryIndex:
    """Open a published index. Every byte is verified before the library sees it: libraries trust what they read.

    Raises FileNotFoundError, or Damaged where the files do not fit their manifest or the model.
    """
    manifest = files.read_manifest(path, kind, manifest_crc)
    for entry in manifest.files.values():
        files.verify_file(path / entry.name, entry)
    return model.load(path, manifest.meta["facts"], int(manifest.meta["rows"]))
