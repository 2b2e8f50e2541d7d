"""How long work tells where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""`progress(stage, done, total)`; `total` is None while it is not known.

Stages of builds: read, rotate, train, assign (rows filed and coded), rescore (int8 rows written), publish. Of seal and
compact: seal, verify, merge (rows), then train, assign and rescore. Of snapshots: catalog (pages), write (bytes); of
restores: copy (bytes), verify. Of exports and imports: export, import (rows).
"""


def silent(stage: str, done: int, total: int | None) -> None:
    """No progress wanted."""
