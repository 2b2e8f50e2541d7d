"""From found rows to hits: ids, payloads, texts and vectors, read in the transaction of the search."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.chunking import document_of
from nestvec.engine.coordinates import F32, to_user
from nestvec.engine.execute import Found
from nestvec.engine.plan import Plan
from nestvec.engine.record import CollectionInfo, FilterReport, FoundRows, Hits, payload_of
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Delta, Snapshot
from nestvec.engine.storage.catalog import StoredRecord
from nestvec.engine.storage.segment import Segment
from nestvec.errors import InvalidInput

WithPayload = bool | Sequence[str]
"""Whether to read payload and text; names: of the payload only these fields."""


def to_hits(
    records: Sequence[StoredRecord],
    snapshot: Snapshot,
    config: CollectionConfig,
    answers: Sequence[Found],
    with_payload: WithPayload,
    with_vector: bool,
) -> list[Hits]:
    """The hits of some queries, from the records of all their rows, one after the other."""
    scores = [score for found in answers for score in found.scores.tolist()]
    if with_payload is False:
        records = [(record[0], b"null", None) for record in records]
    elif with_payload is not True:
        records = [(id, selected(payload, with_payload), text) for id, payload, text in records]
    seqs = [found.seqs for found in answers]
    vectors = user_vectors(snapshot, config, together(seqs)) if with_vector else None
    generation = snapshot.generation.number if snapshot.generation else None
    grouped, start = [], 0
    for found in answers:
        end = start + len(found.seqs)
        rows = FoundRows(records[start:end], scores[start:end])
        filtered = filter_report(snapshot, found.plan)
        hits = Hits(rows, found.plan, found.work, generation, filtered, found.choice)
        if config.chunking is not None:
            for hit in hits:
                hit.document = document_of(hit.id)
        if vectors is not None:
            for hit, vector in zip(hits, vectors[start:end], strict=True):
                hit.vector = vector
        grouped.append(hits)
        start = end
    return grouped


def together(seqs: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The rows of all answers, one after the other."""
    return seqs[0] if len(seqs) == 1 else np.concatenate(seqs)


def filter_report(snapshot: Snapshot, plan: Plan | None) -> FilterReport:
    """What a filter left of the live rows, for an answer by this plan."""
    if snapshot.whole is None:
        return FilterReport("none", snapshot.rows, 1.0)
    exact = plan is not None and plan.route == "exact"
    return FilterReport("exact" if exact else "scan", snapshot.rows, snapshot.selectivity)


def check_with_payload(with_payload: WithPayload) -> None:
    """Raise InvalidInput unless it is a bool or names."""
    if isinstance(with_payload, bool):
        return
    if isinstance(with_payload, str) or not all(isinstance(name, str) for name in with_payload):
        raise InvalidInput(f"with_payload is True, False or a list of field names, got {with_payload!r:.100}")


def selected(stored: bytes, names: Sequence[str]) -> bytes:
    """A stored payload with these fields only."""
    payload = payload_of(stored)
    if payload is None:
        return stored
    return json.dumps({name: payload[name] for name in names if name in payload}, ensure_ascii=False).encode()


def collection_info(name: str, config: CollectionConfig, snapshot: Snapshot) -> CollectionInfo:
    """Facts about a collection at one instant."""
    views, growing, generation = snapshot.segments, snapshot.delta.live_rows, snapshot.generation
    return CollectionInfo(
        name,
        config,
        snapshot.rows,
        growing,
        snapshot.rows - growing,
        len(views),
        generation.number if generation else None,
        sum(view.first.resident_bytes for view in views if view.first),
        generation.route if generation else None,
        snapshot.turn.adapter is not None,
    )


def user_vectors(snapshot: Snapshot, config: CollectionConfig, seqs: NDArray[np.int64]) -> F32:
    """The user's vectors f32 [n, dims] of live rows, wherever they are."""
    vectors = np.empty((len(seqs), config.dims), np.float32)
    parts: list[Segment | Delta] = [*(view.segment for view in snapshot.segments), snapshot.delta]
    for part in parts:
        positions, rows = part.find(seqs)
        norms = None if part.norms is None else part.norms[rows]
        vectors[positions] = to_user(part.vectors[rows], norms, snapshot.turn)
    return vectors
