"""The calls of the system that make, name and remove files of a database; `files` alone uses them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
"""What is stored is its owner's to read, nobody else's."""


class Disk:
    """The calls by which files of ours are made, made durable, named and removed. Tests put a disk in place of this one
    that records them and loses what was not synced."""

    def create(self, path: Path) -> int:
        """A descriptor of a new file."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Append; how many bytes were taken."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Make a file's bytes durable. A failed fsync is never tried again: the bytes may be gone."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def make(self, directory: Path) -> None:
        """A new directory."""
        directory.mkdir(DIRECTORY_MODE)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        path.unlink()

    def remove(self, directory: Path) -> None:
        """Remove a directory and all in it."""
        shutil.rmtree(directory)

    def fsync_directory(self, path: Path) -> None:
        """Make names created in, renamed into or removed from a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
