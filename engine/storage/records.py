"""The records found lately, in memory: a popular one is not read from disk, and checked, for every answer it is in."""

from __future__ import annotations

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.storage.catalog import StoredRecord, read_records

MOST_BYTES = 16 * 1024 * 1024
"""Of one collection's records, about, that are kept."""

_EACH = 400  # bytes that Python's objects around a record take


class RecordMemory:
    """What `read_records` found lately. Safe to use from many threads.

    A sequence number is given to one version of one record and never again, so what was read once stays true; who asks
    knows from its snapshot which numbers are alive. Two generations: when the younger is full it becomes the older, and
    what is asked for again moves to the younger, so that a record found often is kept and counting costs nothing.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._half = most_bytes // 2
        self._young: dict[int, StoredRecord] = {}
        self._old: dict[int, StoredRecord] = {}
        self._bytes = 0

    def known(self, seqs: NDArray[np.int64]) -> list[StoredRecord] | None:
        """`read` without the disk; None where one of them is not in memory."""
        young = self._young
        try:
            return [young[seq] for seq in seqs.tolist()]
        except KeyError:
            return None

    def read(self, connection: apsw.Connection, seqs: NDArray[np.int64]) -> list[StoredRecord]:
        """`read_records`: (id, payload, text) of live records i64 [n], in the order asked for. Raises Damaged."""
        known = self.known(seqs)
        return self._completed(connection, seqs.tolist()) if known is None else known

    def _completed(self, connection: apsw.Connection, wanted: list[int]) -> list[StoredRecord]:
        young, old = self._young, self._old
        found = {seq: record for seq in wanted if (record := young.get(seq) or old.get(seq)) is not None}
        missing = [seq for seq in dict.fromkeys(wanted) if seq not in found]
        fresh = dict(zip(missing, read_records(connection, missing), strict=True))
        found |= fresh
        for seq, record in found.items():
            if seq not in young:
                self._keep(seq, record)
        return [found[seq] for seq in wanted]

    def _keep(self, seq: int, record: StoredRecord) -> None:
        id, payload, text = record
        size = _EACH + len(id) + len(payload) + len(text or "")
        if size > self._half:
            return
        if self._bytes + size > self._half:
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[seq] = record
        self._bytes += size
