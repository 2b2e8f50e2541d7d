"""Run queries over a snapshot: every segment, the delta, one merged order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.coordinates import F32, rotate
from nestvec.engine.plan import Plan
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Delta, SegmentView, Snapshot
from nestvec.index import funnel
from nestvec.index.protocol import Prepared
from nestvec.index.scan import exact_search_batch
from nestvec.index.work import Work

EXACT = Plan("exact")


@dataclass(frozen=True, eq=False)
class Found:
    """The best rows of one query: sequence numbers i64 [m] and scores f32 [m], in order, and how they were found."""

    seqs: NDArray[np.int64]
    scores: NDArray[np.float32]
    plan: Plan
    work: Work


def execute(snapshot: Snapshot, config: CollectionConfig, queries: F32, k: int, plan: Plan) -> list[Found]:
    """Answer prepared, unrotated queries f32 [b, dims]: min(k, live rows) hits each, score descending, then seq.

    Where a soar plan finds fewer than that, the query is answered exactly instead, and its plan says so.
    """
    rotated = rotate(queries, snapshot.rotation)
    if plan.route == "exact" or snapshot.max_probes == 0:
        return _exact(snapshot, config, rotated, k, [Work() for _ in rotated])
    found = [_soar(snapshot, config, query, k, plan) for query in rotated]
    wanted = min(k, snapshot.rows)
    short = [i for i, answer in enumerate(found) if len(answer.seqs) < wanted]
    if short:
        widened = _exact(snapshot, config, rotated[short], k, [found[i].work for i in short])
        for i, answer in zip(short, widened, strict=True):
            found[i] = answer
    return found


def _exact(snapshot: Snapshot, config: CollectionConfig, queries: F32, k: int, works: list[Work]) -> list[Found]:
    """Scan every live row once for all queries; each query's work counts the whole scan that it needed."""
    parts: list[list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = [[] for _ in queries]
    total = Work()
    for part in _parts(snapshot):
        seqs = part.segment.seqs if isinstance(part, SegmentView) else part.seqs
        vectors = part.segment.vectors if isinstance(part, SegmentView) else part.vectors
        answers = exact_search_batch(vectors, queries, k, metric=config.index_metric, allowed=part.live, work=total)
        for collected, (rows, scores) in zip(parts, answers, strict=True):
            collected.append((seqs[rows], scores))
    for work in works:
        work.add(total)
    return [Found(*_merge(collected, k), EXACT, work) for collected, work in zip(parts, works, strict=True)]


def _parts(snapshot: Snapshot) -> list[SegmentView | Delta]:
    every: list[SegmentView | Delta] = [*snapshot.segments, snapshot.delta]
    return [part for part in every if part.live_rows]


def _soar(snapshot: Snapshot, config: CollectionConfig, query: F32, k: int, plan: Plan) -> Found:
    work, collected = Work(), []
    prepared: Prepared | None = None
    for view in snapshot.segments:
        if not view.live_rows:
            continue
        if view.first is not None and prepared is None:
            prepared = view.first.prepare(query, min(plan.probes, snapshot.max_probes))
        rows, scores = funnel.search(
            view.segment.vectors,
            view.first,
            prepared if view.first else None,
            query,
            k,
            stages=plan.stages,
            metric=config.index_metric,
            stage_metric=plan.stage_metric,
            allowed=view.live,
            work=work,
        )
        collected.append((view.segment.seqs[rows], scores))
    delta = snapshot.delta
    if delta.live_rows:
        rows, scores = funnel.search(
            delta.vectors, None, None, query, k, metric=config.index_metric, allowed=delta.live, work=work
        )
        collected.append((delta.seqs[rows], scores))
    return Found(*_merge(collected, k), plan, work)


def _merge(
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    seqs = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    best = np.lexsort((seqs, -scores))[:k]
    return seqs[best], scores[best]
