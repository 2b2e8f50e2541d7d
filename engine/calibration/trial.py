"""Run calibration queries under plans: recall and cost, measured once and replayed for every stricter plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.truth import Levels, Truth
from nestvec.engine.plan import WIDER, ListRoute, Plan, wider
from nestvec.engine.snapshot import SegmentView
from nestvec.index.funnel import Cut
from nestvec.index.lists.model import ListModel
from nestvec.index.lists.search import Counts, ListIndex, ListSearcher, Recording, SearchPart
from nestvec.index.metric import Metric

F32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

Ask = Callable[[Sequence[Plan], Int64], list[tuple[Int64, Counts]]]
"""Of plans and numbers of queries: for each plan how many true neighbours each query finds, and what it touches."""

_TIMED, _TIMED_OF_MANY, _MANY = 12, 4, 1000  # queries; a thousand neighbours take long, and vary less
_SEED = 7


@dataclass(frozen=True)
class Ground:
    """What is calibrated: coded segments of one model, and which of all their rows count (a mask over all).

    `rows`: live rows of the whole collection.
    """

    views: tuple[SegmentView, ...]
    allowed: NDArray[np.bool_]
    model: ListModel
    metric: Metric
    granularities: tuple[int, ...]
    row_bytes: int
    rows: int
    threads: int
    route: ListRoute


def nested_filters(allowed: NDArray[np.bool_], shares: Sequence[float]) -> Levels:
    """Random filters, each inside the one before: how many of them, widest first, let each row through."""
    draws = np.random.default_rng(_SEED).random(len(allowed), np.float32)
    levels = np.zeros(len(allowed), np.uint8)
    for share in shares:
        levels += allowed & (draws < share)
    return levels


class Band:
    """The rows that one filter lets through, and their searchers.

    `searcher` finds and counts what `timed` does, in less time where the filter is narrow.
    """

    def __init__(self, ground: Ground, selectivity: float, passes: NDArray[np.bool_]) -> None:
        """`passes` is a mask over all rows."""
        self.ground, self.selectivity, self.rows = ground, selectivity, int(np.count_nonzero(passes))
        ends = np.cumsum([view.segment.rows for view in ground.views])
        masks = np.split(passes, ends[:-1])
        parts = [
            SearchPart(view.first, view.segment.vectors, view.segment.seqs, None if mask.all() else mask.copy())
            for view, mask in zip(ground.views, masks, strict=True)
            if isinstance(view.first, ListIndex)
        ]
        self.timed = ListSearcher(parts)
        self.searcher = ListSearcher(parts, narrowed=ground.threads)


@dataclass(frozen=True)
class Outcome:
    """recall@k of each query float64 [b]; mean microseconds by the cost model, mean bytes and rows."""

    recalls: NDArray[np.float64]
    micros: float
    bytes: float
    rows: float


@dataclass(frozen=True)
class Trial:
    """Some queries of a batch f32 [b, dims], for one k in one band.

    `floors` f32 [b]: a hit that scores at least this is a true neighbour; `true` int64 [b]: how many rows do.
    """

    band: Band
    k: int
    batch: F32
    floors: F32
    true: Int64
    chosen: range

    @property
    def queries(self) -> F32:
        """Those that are tried, f32 [len(chosen), dims]."""
        return self.batch[self.chosen.start : self.chosen.stop]

    def recall(self, plan: Plan, recordings: Recordings | None) -> float:
        """Mean recall@k of one search each, or of its replay; who finds too few rows is not asked again."""
        ask = self._searched if recordings is None else self._replayed(recordings)
        ((found, _),) = ask([plan], np.arange(len(self.chosen)))
        return float(np.minimum(found / min(self.k, self.band.rows), 1.0).mean())

    def search(self, plans: Sequence[Plan], cost: CostModel) -> list[Outcome]:
        """What the engine would find and spend with each of these plans."""
        return self._outcomes(self._searched, plans, cost)

    def replay(self, recordings: Recordings, plans: Sequence[Plan], cost: CostModel) -> list[Outcome]:
        """The same from recordings of the whole batch in this band."""
        return self._outcomes(self._replayed(recordings), plans, cost)

    def _replayed(self, recordings: Recordings) -> Ask:
        def ask(plans: Sequence[Plan], some: Int64) -> list[tuple[Int64, Counts]]:
            queries = some + self.chosen.start
            return recordings.replay(queries, self.k, plans, self.true[queries])

        return ask

    def _searched(self, plans: Sequence[Plan], some: Int64) -> list[tuple[Int64, Counts]]:
        queries, floors = self.queries[some], self.floors[self.chosen.start : self.chosen.stop][some]
        found = []
        for plan in plans:
            scores, counts = self.band.searcher.count_batch(queries, self.k, plan.funnel, self.band.ground.threads)
            found.append((np.count_nonzero(scores >= floors[:, None], axis=1), counts))
        return found

    def _outcomes(self, ask: Ask, plans: Sequence[Plan], cost: CostModel) -> list[Outcome]:
        """As the engine does: what finds too few rows is asked again, with a wider plan, then exactly."""
        wanted, outcomes = min(self.k, self.band.rows), list[Outcome]()
        for plan, (found, counts) in zip(plans, ask(plans, np.arange(len(self.chosen))), strict=True):
            recalls, spent = np.minimum(found / wanted, 1.0), cost.spent(counts)
            left = np.flatnonzero(counts.hits < wanted)
            if len(left):
                ((found, counts),) = ask([wider(plan)], left)
                recalls[left] = np.minimum(found / wanted, 1.0)
                spent += cost.spent(counts)
                left = left[counts.hits < wanted]
            recalls[left] = 1.0
            spent += len(left) * self.band.rows * np.array([cost.exact_micros, self.band.ground.row_bytes, 1])
            outcomes.append(Outcome(recalls, *(spent / len(recalls)).tolist()))
        return outcomes


class CostModel:
    """Microseconds of a query on one thread, from how much it touches: steadier than a clock, and the same for all."""

    def __init__(self, trial: Trial, plan: Plan, exact_micros: float) -> None:
        """Timed on a few queries of `trial`; `exact_micros`: what the exact scan takes for a row."""
        search = trial.band.timed.search_counted
        timed = trial.queries[: _TIMED if trial.k < _MANY else _TIMED_OF_MANY]
        works = [search(query, trial.k, plan.funnel)[2] for query in timed]
        # Medians: one query that the system interrupted would count for all.
        self._route = float(np.median([work.micros["route"] for work in works]))
        self._scan = float(np.median([work.micros["scan"] / max(work.codes, 1) for work in works]))
        self._steps = np.median(
            [[cut["micros"] / max(cut["in"], 1) for cut in work.stages[1:]] for work in works], axis=0
        )
        self.exact_micros = exact_micros

    def spent(self, counts: Counts) -> NDArray[np.float64]:
        """Microseconds, bytes and rows of all these searches together."""
        micros = len(counts.codes) * self._route + self._scan * counts.codes.sum() + (counts.rows @ self._steps).sum()
        return np.array([micros, counts.bytes.sum(), counts.rows[:, 0].sum()], np.float64)


class Recordings:
    """The searches of a batch in one band, recorded under a generous plan; who finds too few rows then is asked again
    with a wider plan, which is recorded for those that need it."""

    def __init__(self, band: Band, batch: F32, chosen: range, k: int, plan: Plan, truth: Truth, depths: Int64) -> None:
        """Of the `chosen` queries of a batch. `plan`: the most generous one that will be replayed, for up to k hits.
        Of the band's `truth` the first `depths` int64 [b] rows of each query of the batch are true neighbours."""
        self._band, self._batch, self._k, self._plan, self._truth, self._depths = band, batch, k, plan, truth, depths
        self._start = chosen.start
        self._first = self._record(np.arange(chosen.start, chosen.stop), plan)
        self._again: Recording | None = None
        self._place = np.full(len(batch), -1, np.int64)  # of a query in the second recording

    def replay(self, queries: Int64, k: int, plans: Sequence[Plan], true: Int64) -> list[tuple[Int64, Counts]]:
        """How many of their first `true` int64 [m] neighbours some queries, int64 [m], find under each plan, and what
        they touch.

        A shortlist's margin beyond the recorded one is cut to it: of rows that are few it takes hardly less.
        """
        recording, places = self._first, queries - self._start
        if not all(recording.covers(plan.funnel) for plan in plans):
            recording, places = self._wider(queries)
        cut = [self._cut(plan).funnel for plan in plans]
        return recording.replay(places, k, cut, true, self._band.ground.threads)

    def _cut(self, plan: Plan) -> Plan:
        cut, most = plan.shortlist, self._plan.shortlist
        assert cut is not None
        assert most is not None
        if cut.keep <= most.keep and cut.margin <= most.margin:
            return plan
        return replace(plan, shortlist=Cut(min(cut.keep, most.keep), min(cut.margin, most.margin)))

    def _wider(self, queries: Int64) -> tuple[Recording, Int64]:
        """A recording of these queries under a wider plan, and their places in it."""
        missing = queries[self._place[queries] < 0]
        if len(missing):
            more = self._record(missing, replace(self._plan, probe_margin=WIDER * self._plan.probe_margin))
            self._place[missing] = np.arange(len(missing)) + self._place.max() + 1
            if self._again is None:
                self._again = more
            else:
                self._again.extend(more)
        assert self._again is not None
        return self._again, self._place[queries]

    def _record(self, queries: Int64, plan: Plan) -> Recording:
        starts, depths = self._truth.starts[queries].tolist(), self._depths[queries]
        rows = [self._truth.rows[start : start + depth] for start, depth in zip(starts, depths.tolist(), strict=True)]
        truth = np.append(0, np.cumsum(depths)), np.concatenate(rows)
        return self._band.searcher.record(self._batch[queries], self._k, plan.funnel, truth, self._band.ground.threads)
