"""Scratch directories: `tmp-*`, each with a lock inside that is held while its owner lives, and swept after that."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestvec.engine.storage import files
from nestvec.engine.storage.locks import FileLock

_LOCK = "LOCK"


@contextmanager
def scratch(parent: Path, what: str) -> Iterator[Path]:
    """A new directory in `parent`, whose own files may be renamed out of it; gone at the end."""
    path, held = _claim(parent, what)
    try:
        yield path
    finally:
        try:
            files.remove_tree(path)
        finally:
            held.release()


def sweep(parent: Path) -> None:
    """Remove what killed processes left in `parent`; nothing if somebody is making or sweeping one just now."""
    if not parent.is_dir():
        return
    gate = FileLock(parent / _LOCK)
    if gate.try_acquire():
        try:
            _sweep(parent)
        finally:
            gate.release()


def _claim(parent: Path, what: str) -> tuple[Path, FileLock]:
    files.new_directory(parent)
    gate = FileLock(parent / _LOCK)
    gate.acquire(5.0, what)
    try:
        _sweep(parent)
        path = files.new_directory(parent / f"tmp-{what}-{uuid.uuid4().hex[:12]}")
        held = FileLock(path / _LOCK)
        held.try_acquire()
        return path, held
    finally:
        gate.release()


def _sweep(parent: Path) -> None:
    for path in parent.glob("tmp-*"):
        if not path.is_dir():  # of an export by a release that wrote them beside each other, killed meanwhile
            files.remove_file(path)
            continue
        owner = FileLock(path / _LOCK)
        if owner.try_acquire():
            files.remove_tree(path)
            owner.release()
