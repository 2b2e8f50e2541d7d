"""Scroll: all records, or those that match, in the order of their writing, page by page."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.answers import WithPayload, check_with_payload, selected, user_vectors
from nestvec.engine.filters.tree import Filter
from nestvec.engine.maintenance import Part
from nestvec.engine.record import Page, Record, payload_of
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage import catalog
from nestvec.errors import InvalidInput

MAX_PAGE = 1000

_PROOF_BYTES = 8


def scroll(
    part: Part,
    identity: str,
    *,
    cursor: str | None,
    limit: int,
    filter: Filter | None,
    with_payload: WithPayload,
    with_vector: bool,
) -> Page:
    """See `Collection.scroll`. `identity` tells the collection from every other one."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit must be an integer from 1 to {MAX_PAGE}, got {limit!r}")
    check_with_payload(with_payload)
    scope = f"{identity}\n{filter.key if filter else ''}"
    after = 0 if cursor is None else _read_cursor(cursor, scope)
    with part.keeper.current() as (connection, snapshot):
        seen = snapshot if filter is None else snapshot.matching(connection, filter)
        seqs = _following(seen, after, limit + 1)
        page, more = seqs[:limit], len(seqs) > limit
        vectors = user_vectors(snapshot, part.config, page) if with_vector else None
        records = []
        for i, (id, payload, text) in enumerate(catalog.read_records(connection, page)):
            record = Record(id, None if vectors is None else vectors[i])
            if with_payload is not False:
                stored = payload if with_payload is True else selected(payload, with_payload)
                record.payload, record.text = payload_of(stored), text
            records.append(record)
        return Page(records, _cursor(int(page[-1]), scope) if more else None)


def _following(snapshot: Snapshot, after: int, limit: int) -> NDArray[np.int64]:
    """The lowest live sequence numbers above `after`, at most `limit` of them, ascending."""
    parts = [(view.segment.seqs, view.live) for view in snapshot.segments] + [
        (snapshot.delta.seqs, snapshot.delta.live)
    ]
    found = []
    for seqs, live in parts:
        start = int(np.searchsorted(seqs, after, "right"))
        if live is None:
            found.append(seqs[start : start + limit])
        else:
            found.append(seqs[start + np.flatnonzero(live[start:])[:limit]])
    return np.sort(np.concatenate(found))[:limit]


def _cursor(seq: int, scope: str) -> str:
    """The last sequence number of a page, and the proof that it is one of this collection and filter."""
    return urlsafe_b64encode(struct.pack("<q", seq) + _proof(seq, scope)).decode().rstrip("=")


def _read_cursor(cursor: str, scope: str) -> int:
    try:
        data = urlsafe_b64decode(cursor.encode("ascii") + b"==")
        (seq,) = struct.unpack_from("<q", data)
        if seq >= 0 and _cursor(seq, scope) == cursor:
            return int(seq)
    except (ValueError, AttributeError, struct.error):
        pass
    raise InvalidInput(
        "this cursor is none of this collection with this filter: send the cursor of the page before unchanged, with "
        "the same filter"
    )


def _proof(seq: int, scope: str) -> bytes:
    return blake2b(f"{seq}\n{scope}".encode(), digest_size=_PROOF_BYTES).digest()
