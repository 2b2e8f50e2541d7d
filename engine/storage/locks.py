"""Locks that hold between processes as well as between threads."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from nestvec.engine.storage.files import FILE_MODE
from nestvec.errors import Busy


class FileLock:
    """An flock on a file, held by one open file description: excludes other threads and other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def try_acquire(self) -> bool:
        """True when the lock is held now."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def acquire(self, seconds: float, what: str) -> None:
        """Wait up to `seconds`; then raise Busy naming `what`."""
        deadline = time.monotonic() + seconds
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                raise Busy(f"{what}: another thread or process holds {self.path}; try again when it has finished")
            time.sleep(0.01)

    def write_pid(self) -> None:
        """Say in the file who holds it."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def holder(self) -> int:
        """The pid that the holder wrote, 0 if unknown."""
        text = self.path.read_text() if self.path.exists() else ""
        return int(text) if text.strip().isdigit() else 0

    def release(self) -> None:
        """Let go; fine if not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
