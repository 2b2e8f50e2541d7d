"""What the engine logs while a command runs, as lines of the command's own, and none of them said twice."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_said: list[str] = []


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        _said.append(message)
        sys.stderr.write(f"nestvec: {message}\n")


@contextmanager
def notes() -> Iterator[None]:
    """Write the engine's warnings to standard error."""
    logger, handler = logging.getLogger("nestvec"), _Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def said(message: str) -> bool:
    """Whether a note has said this already."""
    return any(message in line for line in _said)
