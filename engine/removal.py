"""Delete by filter: what matches at the instant of the commit, in one transaction."""

from __future__ import annotations

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine import documents, writer
from nestvec.engine.filters.columns import SealedColumns
from nestvec.engine.filters.tree import Filter
from nestvec.engine.maintenance import Part
from nestvec.engine.storage import catalog
from nestvec.engine.storage.catalog import State
from nestvec.errors import Busy

_TRIES = 10


def delete_matching(part: Part, filter: Filter) -> int:
    """Delete the records that match; how many did (with chunking, documents). Durable on return.

    The filter is evaluated on a snapshot, outside the write transaction, so that it keeps no writer waiting. Inside,
    what died since is left out and what is new is evaluated: a payload never changes under its sequence number. So
    exactly the records that match when the transaction commits are deleted, never a later version that does not.
    """
    for _ in range(_TRIES):
        with part.keeper.current() as (connection, snapshot):
            matched, seen = snapshot.matching(connection, filter).live_seqs(), snapshot.state
        with part.catalog.write() as connection:
            now = catalog.read_state(connection)
            if now.epoch != seen.epoch:
                continue  # a build may have listed records between those seen: look again
            alive = np.setdiff1d(matched, catalog.tombstones_after(connection, seen.tombstone), assume_unique=True)
            doomed = np.concatenate([alive, _new(connection, seen, now, filter)])
            folds = part.config.chunking is not None
            count = documents.count_documents(connection, doomed) if folds else len(doomed)
            writer.bury(connection, doomed)
            return count
    raise Busy(f"{part.layout.root}: its segments changed {_TRIES} times meanwhile; nothing was deleted, try again")


def _new(connection: apsw.Connection, seen: State, now: State, filter: Filter) -> NDArray[np.int64]:
    """The records written after `seen` that match."""
    rows = catalog.rows_of(connection, "SELECT seq FROM record WHERE seq>? ORDER BY seq", (seen.seq,))
    seqs = np.array([row[0] for row in rows], np.int64)
    return seqs[SealedColumns(seqs).mask(connection, now, filter)] if len(seqs) else seqs
