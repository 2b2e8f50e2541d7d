"""Collections that cannot be opened: the rest of their database goes on without them."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import apsw

from nestvec.engine.collection import Collection
from nestvec.engine.storage.names import collection_name
from nestvec.errors import Damaged, InvalidInput

log = logging.getLogger("nestvec")

_RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class DamagedCollection:
    """A collection that cannot be opened. `name` is None where not even that can be read; `damage` names the file and
    says what is wrong with it."""

    name: str | None
    path: str
    damage: str


@dataclass(frozen=True)
class _Wreck:
    what: DamagedCollection
    reason: Damaged
    tried: float


class Wrecks:
    """The damaged collections of one database. Each is tried again after some seconds: it may have been repaired."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], _Wreck] = {}

    def open(self, directory: Path) -> Collection | None:
        """The collection in a directory, None where it is damaged; that is logged."""
        known = self._found.get(self._key(directory))
        if known is not None and time.monotonic() - known.tried < _RETRY_SECONDS:
            return None
        try:
            collection = open_collection(directory)
        except Damaged as error:
            self.add(directory, error)
            return None
        self._found.pop(self._key(directory), None)
        return collection

    def add(self, directory: Path, error: Damaged) -> None:
        """The collection in a directory turned out to be damaged."""
        log.error("%s; the other collections are served without this one", error)
        found = DamagedCollection(_name(directory), str(directory), str(error))
        self._found[self._key(directory)] = _Wreck(found, error, time.monotonic())

    def reason(self, directory: Path) -> Damaged:
        """Why `open` gave None."""
        return self._found[self._key(directory)].reason

    def all(self) -> list[DamagedCollection]:
        """Those that are still there."""
        return [one.what for key, one in self._found.items() if self._key(Path(one.what.path)) == key]

    def check(self, name: str) -> None:
        """Raise Damaged where the collection of this name is damaged, or one that may be: its name cannot be read."""
        for one in self.all():
            if one.name in (name, None):
                raise self.reason(Path(one.path))

    def _key(self, directory: Path) -> tuple[str, int]:
        return str(directory), directory.stat().st_ino if directory.exists() else 0


def open_collection(directory: Path) -> Collection:
    """Open the collection in a directory. Raises Damaged for whatever a damaged file makes its opening raise."""
    try:
        return Collection(directory)
    except Damaged:
        raise
    except (apsw.SQLError, InvalidInput, ValueError, KeyError, TypeError) as error:
        raise Damaged(str(directory), f"cannot be opened: {error!r:.200}") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Damaged(str(error.filename or directory), "the disk cannot read it") from error


def _name(directory: Path) -> str | None:
    try:
        return collection_name(directory / "catalog.sqlite")
    except (apsw.Error, OSError):
        return None
