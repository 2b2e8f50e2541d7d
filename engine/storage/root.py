"""The root of a database directory: the file that says that it is one, and of which format."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from nestvec.engine.storage import files
from nestvec.errors import Conflict, Damaged, NotFound

FORMAT_VERSION = 1
_FORMAT_FILE = "nestvec.json"
SERVICE_LOCK = "SERVICE.lock"


def open_root(root: Path, create: bool) -> None:
    """Check that `root` is a database that this nestvec reads; with `create`, make one where nothing is.

    Raises NotFound, Conflict where the directory holds something else, Damaged for another format.
    """
    if not (root / _FORMAT_FILE).is_file():
        _create(root, create)
    _check_format(root / _FORMAT_FILE)


def _create(root: Path, create: bool) -> None:
    if not create:
        raise NotFound(f"{root} holds no nestvec database; `nestvec build` or nestvec.open(create=True) makes one")
    if root.exists() and not root.is_dir():
        raise Conflict(f"{root} is a file; a database is a directory")
    if root.is_dir() and any(not name.startswith("tmp-") for name in os.listdir(root) if name != _FORMAT_FILE):
        raise Conflict(
            f"{root} is not empty and has no {_FORMAT_FILE}: it is no nestvec database. If it was one, "
            f"restore {_FORMAT_FILE}; otherwise choose another directory"
        )
    files.new_directory(root, parents=True)
    _write(root, {})


def _write(root: Path, more: dict[str, bool]) -> None:
    temporary = root / f"tmp-{uuid.uuid4().hex}.json"
    files.write_file(temporary, json.dumps({"format": "nestvec", "version": FORMAT_VERSION, **more}).encode())
    files.publish(temporary, root / _FORMAT_FILE)


def note_ledger(root: Path) -> None:
    """From now on a missing ledger is damage: without its keys anybody would be let in."""
    _write(root, {"ledger": True})


def has_ledger(root: Path) -> bool:
    """Whether a ledger was made, as far as this file knows: those of the first release do not."""
    return bool(json.loads((root / _FORMAT_FILE).read_bytes()).get("ledger"))


def _check_format(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
        found = (content["format"], content["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(str(path), f"is unreadable: {error!r}") from None
    if found != ("nestvec", FORMAT_VERSION):
        raise Damaged(
            str(path),
            f"says format {found[0]} version {found[1]}; this nestvec reads nestvec version "
            f"{FORMAT_VERSION}. Open it with the release that wrote it",
        )
