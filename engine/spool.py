"""The files that jobs read and write, in the database directory: bodies that wait for their import, and exports."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nestvec.engine.storage import files
from nestvec.engine.storage.scratch import scratch
from nestvec.errors import NotFound

FOLDER = "jobs"
KEPT_EXPORTS = 16
_EXPORT = re.compile(r"[0-9a-f]{32}\.(?:parquet|jsonl|npz|npy)")
_PIECE = 1 << 20


class Spool:
    """A body that comes in piece by piece, kept in one file until `close`, at the latest until this process ends."""

    def __init__(self, root: Path, suffix: str) -> None:
        """`suffix` says what will be in it, such as "jsonl": a word of ours, never a client's."""
        self._stack = ExitStack()
        home = self._stack.enter_context(scratch(root / FOLDER, "spool"))
        self.path = home / f"body.{suffix}"
        self._writer = files.FileWriter(self.path)

    def append(self, data: bytes) -> None:
        """Add a piece."""
        with files.clean_disk_errors("upload"):
            self._writer.append(data)

    def finish(self) -> None:
        """All pieces are there."""
        with files.clean_disk_errors("upload"):
            self._writer.finish()

    def pieces(self) -> Iterator[bytes]:
        """What came in, again in pieces."""
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def close(self) -> None:
        """Remove the file; fine if that is done."""
        self._writer.close()
        self._stack.close()


@contextmanager
def new_export(root: Path, format: str) -> Iterator[Path]:
    """Where to write the next export; at the end it is among those that are kept, the newest few."""
    with scratch(root / FOLDER, "export") as home:
        path = home / f"{uuid.uuid4().hex}.{format}"
        yield path
        kept = sorted(
            (old for old in (root / FOLDER).iterdir() if _EXPORT.fullmatch(old.name)),
            key=lambda old: old.stat().st_mtime,
        )
        for old in kept[: max(0, len(kept) + 1 - KEPT_EXPORTS)]:
            files.remove_file(old)
        files.publish(path, root / FOLDER / path.name)


def export_file(root: Path, name: str) -> Path:
    """The file of an export that was made. Raises NotFound: only the newest are kept."""
    path = root / FOLDER / name
    if not _EXPORT.fullmatch(name) or not path.is_file():
        raise NotFound(f"this export is not kept any more: only the newest {KEPT_EXPORTS} are; export again")
    return path
