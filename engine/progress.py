"""How long work tells where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""`progress(stage, done, total)`; `total` is None while it is not known.

Stages: read, rotate, train, assign (rows filed and coded), rescore (int8 rows written), publish.
"""


def silent(stage: str, done: int, total: int | None) -> None:
    """No progress wanted."""
