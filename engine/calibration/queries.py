"""Queries to calibrate with: real ones where there are some, else the nearest thing to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.points import Source
from nestvec.engine.coordinates import prepare_queries
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import SegmentView, Snapshot
from nestvec.engine.storage import catalog
from nestvec.engine.writer import Encode

F32 = NDArray[np.float32]

MOST = 3000  # given ones: more are not worth the time
_MOST_MADE = 1000
_LEAST, _ROWS_TIMES_QUERIES = 512, 576_000_000  # truth costs their product
_ENOUGH_TEXTS = 300
_SPAN = (4, 12)  # words of a text that stand for a question about it
_MIXED = 0.3  # a held-out document is moved up to this share of the way to another one
_WORD = re.compile(r"\w+(?:['’.-]\w+)*")


@dataclass(frozen=True)
class CalibrationQueries:
    """`vectors` f32 [b, dims] in stored form and random order; `held_out`: sequence numbers that must not be found."""

    vectors: F32
    source: Source
    held_out: NDArray[np.int64]


def wanted(rows: int, most: int = _MOST_MADE) -> int:
    """How many queries are worth their truth in a collection of this size."""
    return int(min(most, max(_LEAST, _ROWS_TIMES_QUERIES // max(rows, 1))))


def given_queries(vectors: F32, snapshot: Snapshot, config: CollectionConfig) -> CalibrationQueries:
    """The caller's own, f32 [b, dims] as a search takes them: at most as many as are worth it, chosen at random."""
    order = np.random.default_rng(3).permutation(len(vectors))[: wanted(snapshot.rows, MOST)]
    prepared = prepare_queries(np.ascontiguousarray(vectors[order]), config)
    return _stored(prepared, "queries", snapshot)


def text_queries(
    connection: apsw.Connection, snapshot: Snapshot, config: CollectionConfig, encode: Encode
) -> CalibrationQueries | None:
    """Short pieces of stored texts, encoded as questions; None where too few records have a text."""
    rng = np.random.default_rng(4)
    count = wanted(snapshot.rows)
    seqs = snapshot.live_seqs()
    chosen = rng.permutation(seqs)[: 2 * count].tolist()
    texts: list[str] = []
    for start in range(0, len(chosen), 500):
        texts += [text for _, _, text in catalog.read_records(connection, chosen[start : start + 500]) if text]
    spans = [span for span in (_span(text, rng) for text in texts) if span][:count]
    if len(spans) < _ENOUGH_TEXTS:
        return None
    return _stored(prepare_queries(encode(spans), config), "texts", snapshot)


def document_queries(views: Sequence[SegmentView], snapshot: Snapshot, config: CollectionConfig) -> CalibrationQueries:
    """Stored vectors, moved towards others at random, as queries of an index that does not hold them."""
    rng = np.random.default_rng(5)
    seqs = np.concatenate([view.segment.seqs if view.live is None else view.segment.seqs[view.live] for view in views])
    chosen = rng.permutation(seqs)[: 2 * min(wanted(snapshot.rows), len(seqs) // 4)]
    vectors = np.concatenate([_vectors_of(view, chosen) for view in views])
    first, second = np.split(rng.permutation(vectors), 2)
    share = rng.random((len(first), 1), np.float32) * np.float32(_MIXED)
    mixed = (1 - share) * first + share * second
    lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
    if config.metric != "l2":  # an average is shorter than what it is the average of
        mixed *= np.linalg.norm(first, axis=1, keepdims=True) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return CalibrationQueries(np.ascontiguousarray(mixed, np.float32), "documents", np.sort(chosen))


def _vectors_of(view: SegmentView, seqs: NDArray[np.int64]) -> F32:
    rows = np.sort(view.segment.find(seqs)[1])
    return np.asarray(view.segment.vectors[rows], np.float32)


def _stored(prepared: F32, source: Source, snapshot: Snapshot) -> CalibrationQueries:
    return CalibrationQueries(snapshot.turn.queries(prepared), source, np.empty(0, np.int64))


def _span(text: str, rng: np.random.Generator) -> str:
    words = _WORD.findall(text[:20_000])
    if len(words) < _SPAN[0]:
        return ""
    length = int(rng.integers(_SPAN[0], min(_SPAN[1], len(words)) + 1))
    start = int(rng.integers(0, len(words) - length + 1))
    return " ".join(words[start : start + length])
