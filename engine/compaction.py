"""Seal: growing rows become a segment. Compact: all segments become one without dead rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.coordinates import PLAIN, Turn, to_stored
from nestvec.engine.maintenance import (
    Coded,
    Part,
    Published,
    Trained,
    code_segments,
    list_generation,
    list_postings,
    list_publication,
    list_segment,
    maintenance,
    publish_generation,
    publish_postings,
    publish_segment,
)
from nestvec.engine.progress import Progress, silent
from nestvec.engine.record import CompactResult, SealResult
from nestvec.engine.routes import Model, lists_of
from nestvec.engine.snapshot import SegmentView, Snapshot
from nestvec.engine.storage import catalog, files
from nestvec.engine.storage.segment import Segment, SegmentWriter, open_segment, verify_segment
from nestvec.engine.training import MIN_TRAINING_ROWS, SAMPLE_ROWS, retrain_model, sample_rows, train_model

_BLOCK_ROWS = 4096


def seal(part: Part, progress: Progress = silent) -> SealResult:
    """Write the growing rows to a segment. Rows written or deleted meanwhile keep their own state."""
    with maintenance(part, "seal"):
        with part.keeper.current() as (_, snapshot):
            generation = snapshot.generation
        staged = _stage_growing(part, snapshot, progress)
        number = generation.number if generation else None
        if staged is None:
            return SealResult(0, None, number)
        published, seqs = staged
        files.crash_point("seal-published")
        segment = open_segment(
            part.layout.segment(published.number), published.number, published.manifest_crc, part.config
        )
        model, trained = snapshot.model, None
        if generation is None and len(seqs) + _sealed(snapshot) >= MIN_TRAINING_ROWS:
            progress("train", 0, None)
            model, trained = _first_generation(part, snapshot, segment)
        coded: Coded = (None, [])
        number = trained.number if trained else number
        if model is not None and number is not None:
            older = [view.segment for view in snapshot.segments] if trained else []
            coded = code_segments(part, number, model, [*older, segment], progress)
        _publish_seal(part, published, seqs, (trained, model), coded)
        files.crash_point("seal-committed")
        return SealResult(len(seqs), published.number, number)


def _sealed(snapshot: Snapshot) -> int:
    return sum(view.segment.rows for view in snapshot.segments)


def _first_generation(part: Part, snapshot: Snapshot, segment: Segment) -> tuple[Model, Published]:
    """A model for everything that is sealed. Rotation belongs to build: what seal stores is not rotated."""
    sample = _sample([view.segment for view in snapshot.segments] + [segment])
    model = train_model(sample, part.config, _sealed(snapshot) + segment.rows)
    return model, publish_generation(part, model, PLAIN)


def _sample(segments: list[Segment]) -> NDArray[np.float32]:
    """A sample over several segments, each in proportion to its rows."""
    total = sum(segment.rows for segment in segments)
    shares = [max(1, SAMPLE_ROWS * segment.rows // total) for segment in segments]
    samples = [sample_rows(segment.vectors, share) for segment, share in zip(segments, shares, strict=True)]
    return np.concatenate(samples)


def _stage_growing(part: Part, snapshot: Snapshot, progress: Progress) -> tuple[Published, NDArray[np.int64]] | None:
    """Publish a segment of the rows that grow now; None when there are none."""
    seqs: list[NDArray[np.int64]] = []
    done = 0
    with files.staging(part.layout.root, "segment") as directory:
        writer = SegmentWriter(directory, part.config)
        try:
            with part.catalog.read() as connection:
                for numbers, vectors in catalog.growing_after(connection, 0, part.config.dims, _BLOCK_ROWS):
                    writer.append(*to_stored(vectors, part.config, snapshot.turn))
                    seqs.append(numbers)
                    done += len(numbers)
                    progress("seal", done, None)
            if not seqs:
                return None
            files.crash_point("seal-written")
            every = np.concatenate(seqs)
            crc = writer.finish(every)
        finally:
            writer.close()
        return publish_segment(part, directory, crc), every


def _publish_seal(part: Part, segment: Published, seqs: NDArray[np.int64], generation: Trained, coded: Coded) -> None:
    """The swap. Seqs only grow, so every growing row up to the last sealed seq is in the segment."""
    with part.catalog.write() as connection:
        list_publication(connection, segment, len(seqs), generation, coded)
        connection.execute("DELETE FROM growing WHERE seq<=?", (int(seqs[-1]),))
        files.crash_point("seal-before-commit")


def compact(part: Part, *, retrain: bool, progress: Progress = silent) -> CompactResult:
    """Merge all segments into one without dead rows; with `retrain`, under a newly trained generation."""
    with maintenance(part, "compact"):
        with part.keeper.current() as (connection, snapshot):
            crcs = dict(catalog.rows_of(connection, "SELECT segment, manifest_crc FROM segment"))
        views = snapshot.segments
        dropped = sum(view.segment.rows - view.live_rows for view in views)
        rows = sum(view.live_rows for view in views)
        if (len(views) <= 1 and not dropped and not retrain) or not views:
            return CompactResult(len(views), rows, 0)
        renewal = Renewal(lambda vectors: retrain_model(snapshot, vectors, part.config), snapshot.turn)
        rewrite(part, snapshot, crcs, renewal if retrain else None, progress)
        return CompactResult(len(views), rows, dropped)


@dataclass(frozen=True)
class Renewal:
    """A generation that takes the place of the current one: trained by `train` on all stored vectors [n, dims] of live
    rows, after those went through `change`. `turn`: all that they went through then."""

    train: Callable[[NDArray[Any]], Model]
    turn: Turn
    change: Turn = PLAIN


def rewrite(
    part: Part, snapshot: Snapshot, crcs: Mapping[int, int], renewal: Renewal | None, progress: Progress
) -> int | None:
    """Merge all segments into one without dead rows, perhaps under a new generation, and publish it by one transaction.

    The caller holds the maintenance lock. `crcs`: manifests' crc32c by segment. Returns the generation current then.
    """
    views = snapshot.segments
    for view in views:
        verify_segment(view.segment.path, crcs[view.segment.number])
        progress("verify", 0, None)
    live = any(view.live_rows for view in views)
    merged = _merge_segments(part, views, renewal.change if renewal else PLAIN, progress) if live else None
    files.crash_point("compact-merged")
    model, trained = snapshot.model, None
    if renewal is not None and merged is not None:
        progress("train", 0, None)
        model = renewal.train(merged[1].vectors)
        trained = publish_generation(part, model, renewal.turn)
    number = _swap(part, snapshot, merged, model, trained, progress)
    files.crash_point("compact-committed")
    part.layout.sweep(part.catalog)
    files.crash_point("compact-swept")
    return number


def _merge_segments(
    part: Part, views: tuple[SegmentView, ...], change: Turn, progress: Progress
) -> tuple[Published, Segment]:
    """Publish one segment of all live rows, in the order of their seqs, block by block."""
    owner, row = _merged_order(views)
    seqs = np.empty(len(row), np.int64)
    with files.staging(part.layout.root, "segment") as directory:
        writer = SegmentWriter(directory, part.config)
        try:
            for start in range(0, len(row), _BLOCK_ROWS):
                block = slice(start, start + _BLOCK_ROWS)
                seqs[block] = _append_block(part, writer, views, owner[block], row[block], change)
                progress("merge", min(start + _BLOCK_ROWS, len(row)), len(row))
            files.crash_point("compact-written")
            crc = writer.finish(seqs)
        finally:
            writer.close()
        published = publish_segment(part, directory, crc)
    return published, open_segment(part.layout.segment(published.number), published.number, crc, part.config)


def _merged_order(views: tuple[SegmentView, ...]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(which view, which row in it) of every live row, by seq."""
    rows = [np.arange(view.segment.rows) if view.live is None else np.flatnonzero(view.live) for view in views]
    owner = np.repeat(np.arange(len(views), dtype=np.int32), [len(each) for each in rows])
    seqs = np.concatenate([view.segment.seqs[each] for view, each in zip(views, rows, strict=True)])
    order = np.argsort(seqs, kind="stable")
    return owner[order], np.concatenate(rows)[order].astype(np.int64)


def _append_block(
    part: Part,
    writer: SegmentWriter,
    views: tuple[SegmentView, ...],
    owner: NDArray[np.int32],
    row: NDArray[np.int64],
    change: Turn,
) -> NDArray[np.int64]:
    vectors = np.empty((len(row), part.config.dims), part.config.dtype)
    norms = np.empty(len(row), np.float32)
    seqs = np.empty(len(row), np.int64)
    for number in np.unique(owner):
        mine = np.flatnonzero(owner == number)
        segment = views[number].segment
        vectors[mine], seqs[mine] = segment.vectors[row[mine]], segment.seqs[row[mine]]
        if segment.norms is not None:
            norms[mine] = segment.norms[row[mine]]
        files.release(segment.vectors)
    if not change.plain:
        vectors = np.ascontiguousarray(change.rows(vectors.astype(np.float32)), dtype=part.config.dtype)
    writer.append(vectors, norms)
    return seqs


def _swap(
    part: Part,
    snapshot: Snapshot,
    merged: tuple[Published, Segment] | None,
    model: Model | None,
    trained: Published | None,
    progress: Progress,
) -> int | None:
    """One transaction: the new segment (and generation) replace all old ones; their tombstones go too. The number of
    the generation that is current then."""
    current = snapshot.generation.number if snapshot.generation else None
    generation = trained.number if trained else current
    crc = None
    if merged is not None and model is not None and generation is not None:
        crc = publish_postings(part, generation, merged[0].number, model, merged[1].vectors, progress)
    with part.catalog.write() as connection:
        connection.execute("DELETE FROM segment")
        if trained is not None and model is not None:
            list_generation(connection, trained, lists_of(model))
            connection.execute("DELETE FROM generation WHERE generation<>?", (trained.number,))
        if merged is not None:
            list_segment(connection, merged[0], merged[1].rows)
        if crc is not None and generation is not None and merged is not None:
            list_postings(connection, generation, merged[0].number, crc)
        connection.execute("DELETE FROM tombstone WHERE n<=?", (snapshot.state.tombstone,))
        catalog.bump_epoch(connection)
        files.crash_point("compact-before-commit")
    return generation
