"""Run queries over a snapshot: coded segments in one call, everything else exactly, one merged order."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.coordinates import F32
from nestvec.engine.plan import Plan, check_int8, wider
from nestvec.engine.planner import Choice
from nestvec.engine.routes import Searcher, require
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Delta, SegmentView, Snapshot
from nestvec.errors import InvalidInput
from nestvec.index.scan import best_reaching, exact_search_batch
from nestvec.index.work import Work

EXACT = Plan("exact")
_FEW = 16384  # growing rows times queries: more are scored block by block

Rows = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Sequence numbers [m] and scores [m], score descending, then sequence number ascending."""


@dataclass(eq=False, slots=True)
class Found:
    """The best rows of one query: sequence numbers i64 [m] and scores f32 [m], in order, and how they were found.

    `plan` is None where no vectors were searched, `choice` where the caller said how.
    """

    seqs: NDArray[np.int64]
    scores: NDArray[np.float32]
    plan: Plan | None
    work: Work
    choice: Choice | None = None


def execute(snapshot: Snapshot, config: CollectionConfig, queries: F32, k: int, plan: Plan) -> list[Found]:
    """Answer prepared, unturned queries f32 [b, dims]: min(k, live rows) hits each, score descending, then seq.

    Where a plan finds fewer than that, a wider one is tried, then the exact scan, and the answer's plan says so; its
    work is that of all tries. Raises InvalidInput where the plan needs another index than the snapshot's, or more than
    it holds, MissingDependency where that index is a library's that is not installed.
    """
    turned = snapshot.turn.queries(queries)
    searcher = _searcher(snapshot, plan)
    if searcher is None:
        return _exact(snapshot, config, turned, k, [Work() for _ in turned])
    check_int8(plan, snapshot.rescore_dims)
    found = _indexed(snapshot, searcher, config, turned, k, plan)
    wanted = min(k, snapshot.rows)
    for last in (False, True):
        short = [i for i, answer in enumerate(found) if len(answer.seqs) < wanted]
        if not short:
            break
        if last:
            redone = _exact(snapshot, config, turned[short], k, [Work() for _ in short])
        else:
            redone = _indexed(snapshot, searcher, config, turned[short], k, wider(plan))
        for i, answer in zip(short, redone, strict=True):
            answer.work.add(found[i].work)
            found[i] = answer
    return found


def _searcher(snapshot: Snapshot, plan: Plan) -> Searcher | None:
    """What runs the plan; None: the exact scan, which also stands in for an index that there is not."""
    generation = snapshot.generation
    if plan.route == "exact" or generation is None:
        return None
    if plan.route != generation.route:
        raise InvalidInput(
            f"this collection's index is for the route {generation.route!r}, got a plan for {plan.route!r}: "
            f"use a plan for {generation.route!r} or 'exact', or none"
        )
    if generation.model is None:
        require(generation.route)
    return snapshot.sealed.searcher


def _exact(snapshot: Snapshot, config: CollectionConfig, queries: F32, k: int, works: list[Work]) -> list[Found]:
    """Scan every live row once for all queries; each query's work counts the whole scan that it needed."""
    scanned, total = _scan([*snapshot.sealed.coded, *snapshot.scanned], config, queries, k)
    for work in works:
        work.add(total)
    return [Found(*_merge(parts, k), EXACT, work) for parts, work in zip(scanned, works, strict=True)]


def _scan(
    parts: list[SegmentView | Delta], config: CollectionConfig, queries: F32, k: int
) -> tuple[list[list[Rows]], Work]:
    """(per query: the best rows of every part, the work of the scan)."""
    found: list[list[Rows]] = [[] for _ in queries]
    total = Work()
    for part in parts:
        seqs = part.segment.seqs if isinstance(part, SegmentView) else part.seqs
        vectors = part.segment.vectors if isinstance(part, SegmentView) else part.vectors
        answers = exact_search_batch(vectors, queries, k, metric=config.index_metric, allowed=part.live, work=total)
        for collected, (rows, scores) in zip(found, answers, strict=True):
            collected.append((seqs[rows], scores))
    return found, total


def _indexed(
    snapshot: Snapshot, searcher: Searcher, config: CollectionConfig, queries: F32, k: int, plan: Plan
) -> list[Found]:
    """One call over all coded segments; segments without an index, and growing rows, are scanned exactly."""
    if len(queries) == 1:
        seqs, scores, work = searcher.search_counted(queries[0], k, plan.funnel)
        answers = [Found(seqs, scores, plan, work)]
    else:
        every_seq, every_score, works = searcher.search_batch(queries, k, plan.funnel)
        held = np.count_nonzero(every_seq >= 0, axis=1).tolist()
        answers = [Found(every_seq[i, :m], every_score[i, :m], plan, works[i]) for i, m in enumerate(held)]
    others = snapshot.scanned
    if others == [snapshot.delta] and snapshot.delta.live_rows * len(queries) <= _FEW:
        _add_growing(snapshot.delta, config, queries, k, answers)
    elif others:
        scanned, total = _scan(others, config, queries, k)
        for found, parts in zip(answers, scanned, strict=True):
            found.seqs, found.scores = _merge([(found.seqs, found.scores), *parts], k)
            found.work.add(total)
    return answers


def _add_growing(delta: Delta, config: CollectionConfig, queries: F32, k: int, answers: list[Found]) -> None:
    """Put the growing rows among what the index found, where they score as much: few do."""
    read = delta.live_rows * config.dims * delta.vectors.itemsize
    for query, found in zip(queries, answers, strict=True):
        start = perf_counter()
        floor = float(found.scores[-1]) if len(found.seqs) == k else -np.inf
        rows, scores = best_reaching(delta.vectors, query, delta.alive, k, floor, metric=config.index_metric)
        if len(rows):
            found.seqs, found.scores = _merge([(found.seqs, found.scores), (delta.seqs[rows], scores)], k)
        found.work.rows += delta.live_rows
        found.work.bytes += read
        found.work.add_micros("exact", (perf_counter() - start) * 1e6)


def _merge(parts: list[Rows], k: int) -> Rows:
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if len(parts) == 1:
        return parts[0]
    seqs = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    best = np.lexsort((seqs, -scores))[:k]
    return seqs[best], scores[best]
