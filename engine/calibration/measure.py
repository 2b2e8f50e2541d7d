"""Run calibration queries: truth once, then plans, with their recall and what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.bounds import lower_bound
from nestvec.engine.calibration.path import Margins, Shape, Step, descend, spread_out
from nestvec.engine.calibration.points import Calibration, Frontier, OperatingPoint, Source
from nestvec.engine.calibration.truth import Truth, find_truth
from nestvec.engine.plan import ListRoute, Plan, wider
from nestvec.engine.progress import Progress
from nestvec.engine.snapshot import SegmentView
from nestvec.index.lists.model import ListModel
from nestvec.index.lists.search import ListIndex, ListSearcher, SearchPart
from nestvec.index.metric import Metric
from nestvec.index.scan import exact_search
from nestvec.index.work import Work

F32 = NDArray[np.float32]

KS = (1, 10, 100, 1000)
SELECTIVITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
DELTA = 0.05
DEPTH = 5000  # of the truth; deeper, as for k 100 behind a filter of 1 %, the exact scan is cheaper anyway
_MOST_OF_ROWS = 0.05
EXACT_ROWS = 4000  # fewer that pass a filter are scanned: no plan is cheaper
_ORDER = (10, 1, 100, 1000)
_PATH_OF = {1: 10, 1000: 100}  # one neighbour says too little to find a path by, and a thousand cost too much
_EXPLORED, _LEAST_EXPLORED, _MOST_EXPLORED = 2000, 24, 128  # neighbours, queries, queries that find a path
_PROMISED = {100: 500, 1000: 100}  # queries that measure a path; all for fewer neighbours
_LEAST_RECALL = 0.7
_FINE, _COARSE = 0.02, 0.1  # recall between neighbouring points
_START: Margins = (0.4, 0.2, 0.12, 0.08)  # generous, in units of the spread: probes, codes, stages
_START_NATS = 15.0  # the probes' where a tree routes
_WIDER = 1.3  # for many neighbours
_SAME_SCORE = 2e-5  # of the spread: what float32 products and their order of addition leave open
_TIMED = 24


@dataclass(frozen=True)
class Ground:
    """What is calibrated: coded segments of one model, and which of all their rows count (a mask over all).

    `rows`: live rows of the whole collection.
    """

    views: Sequence[SegmentView]
    allowed: NDArray[np.bool_]
    model: ListModel
    metric: Metric
    granularities: tuple[int, ...]
    row_bytes: int
    rows: int
    threads: int
    route: ListRoute


class Band:
    """The rows that one random filter lets through, and their searcher. `allowed` is a mask over all rows."""

    def __init__(self, ground: Ground, selectivity: float) -> None:
        self.ground, self.selectivity = ground, selectivity
        self.allowed = ground.allowed
        if selectivity < 1:
            self.allowed = self.allowed & (np.random.default_rng(7).random(len(self.allowed), np.float32) < selectivity)
        self.rows = int(np.count_nonzero(self.allowed))
        ends = np.cumsum([view.segment.rows for view in ground.views])
        masks = np.split(self.allowed, ends[:-1])
        self.searcher = ListSearcher(
            [
                SearchPart(view.first, view.segment.vectors, view.segment.seqs, None if mask.all() else mask.copy())
                for view, mask in zip(ground.views, masks, strict=True)
                if isinstance(view.first, ListIndex)
            ]
        )


@dataclass(frozen=True)
class Outcome:
    """recall@k of each query float64 [b]; mean microseconds by the cost model, mean bytes and rows."""

    recalls: NDArray[np.float64]
    micros: float
    bytes: float
    rows: float


@dataclass(frozen=True)
class _Trial:
    """Queries with their truth for one k in one band."""

    band: Band
    k: int
    queries: F32
    floors: F32  # a hit that scores at least this is a true neighbour

    def run(self, plan: Plan, cost: CostModel) -> Outcome:
        """Search as the engine does: what finds too few rows is asked again, with a wider plan, then exactly."""
        recalls = np.ones(len(self.queries))
        spent = np.zeros(3)
        left = np.arange(len(self.queries))
        for again in (plan, wider(plan)):
            _, scores, works = self.band.searcher.search_batch(
                self.queries[left], self.k, again.funnel, self.band.ground.threads
            )
            spent += np.sum([(cost.micros(work), work.bytes, work.rows) for work in works], axis=0)
            wanted = min(self.k, self.band.rows)
            found = np.count_nonzero(scores >= self.floors[left, None], axis=1)
            recalls[left] = np.minimum(found / wanted, 1.0)
            left = left[scores[:, wanted - 1] == -np.inf]
            if not len(left):
                break
        recalls[left] = 1.0
        scanned = len(left) * self.band.rows
        spent += scanned * np.array([cost.exact_micros, self.band.ground.row_bytes, 1])
        return Outcome(recalls, *(spent / len(self.queries)).tolist())

    @property
    def shape(self) -> Shape:
        """What its plans have in common. Caps are wide: margins decide, and caps only bound an odd query."""
        k, model, route = self.k, self.band.ground.model, self.band.ground.route
        probes, dims = model.config.partitions, model.config.rescore_dims
        shortlist, last = max(4000, 60 * k), max(400, 6 * k)
        if dims:
            first = min(192, dims)
            stages = [(first, max(1000, 20 * k), True)] if dims > first else []
            return Shape(route, probes, shortlist, (*stages, (dims, last, True)))
        granularities = self.band.ground.granularities
        stored = next(g for g in granularities if g >= min(model.dims, max(256, model.dims // 2)))
        return Shape(route, probes, shortlist, ((stored, last, False),))


def _split(band: Band, k: int, queries: F32, floors: F32) -> tuple[_Trial, _Trial]:
    """The queries that find the path, and those that measure it: they took no part, and so can promise.

    A query for many neighbours says more about a path, and takes longer: fewer of them do.
    """
    cut = min(max(_EXPLORED // k, _LEAST_EXPLORED), _MOST_EXPLORED, len(queries) // 4)
    end = cut + _PROMISED.get(k, len(queries))
    return _Trial(band, k, queries[:cut], floors[:cut]), _Trial(band, k, queries[cut:end], floors[cut:end])


class CostModel:
    """Microseconds of a query on one thread, from how much it touches: steadier than a clock, and the same for all."""

    def __init__(self, trial: _Trial, plan: Plan, exact_micros: float) -> None:
        """Timed on a few queries of `trial`; `exact_micros`: what the exact scan takes for a row."""
        search = trial.band.searcher.search_counted
        works = [search(query, trial.k, plan.funnel)[2] for query in trial.queries[:_TIMED]]
        # Medians: one query that the system interrupted would count for all.
        self._route = float(np.median([work.micros["route"] for work in works]))
        self._scan = float(np.median([work.micros["scan"] / max(work.codes, 1) for work in works]))
        stages = [[cut["micros"] / max(cut["in"], 1) for cut in work.stages[1:]] for work in works]
        self._stages: list[float] = np.median(np.array(stages), axis=0).tolist()
        self.exact_micros = exact_micros

    def micros(self, work: Work) -> float:
        """What this much work takes."""
        micros = self._route + self._scan * work.codes
        for price, cut in zip(self._stages, work.stages[1:], strict=True):
            micros += price * cut["in"]
        return micros


def measure(ground: Ground, generation: int, queries: F32, source: Source, progress: Progress) -> Calibration:
    """Measure the frontiers of a generation with stored-form queries f32 [b, dims] in random order."""
    started = time.monotonic()
    exact_micros = _exact_micros(ground, queries)
    truth = _truth(ground, queries, progress)
    floors = np.float32(-_SAME_SCORE) * _units(ground.model, queries)
    whole = band = Band(ground, 1.0)
    cells = [(k, share) for share in SELECTIVITIES for k in _ORDER if _worth(k, share, whole.rows)]
    frontiers: list[Frontier] = []
    paths: dict[int, list[Step]] = {}
    for k, share in cells:
        progress("calibrate", len(frontiers), len(cells))
        if share != band.selectivity:
            band, paths = Band(ground, share), {}
        kth = truth.kth(k, None if band is whole else band.allowed)
        explored, promised = _split(band, k, queries, kth + floors)
        cost = CostModel(explored, explored.shape.plan(_start(explored)), exact_micros)
        paths[k] = paths.get(_PATH_OF.get(k, k)) or _path(explored, cost)
        frontiers.append(_frontier(promised, paths[k], cost))
    progress("calibrate", len(cells), len(cells))
    return Calibration(
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        generation,
        ground.rows,
        source,
        DELTA,
        exact_micros,
        round(time.monotonic() - started, 3),
        tuple(frontiers),
    )


def _worth(k: int, share: float, rows: int) -> bool:
    """Whether a plan could be cheaper than scanning what passes the filter."""
    return share * rows >= EXACT_ROWS and k / share <= min(DEPTH, _MOST_OF_ROWS * rows)


def _truth(ground: Ground, queries: F32, progress: Progress) -> Truth:
    total, done = sum(view.segment.rows for view in ground.views), 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        progress("truth", done, total)

    vectors = [view.segment.vectors for view in ground.views]
    return find_truth(vectors, ground.allowed, queries, DEPTH, ground.metric, tick)


def _units(model: ListModel, queries: F32) -> F32:
    units: F32 = (np.linalg.norm(queries - model.centre, axis=1) * model.spread).astype(np.float32)
    return units


def _start(trial: _Trial) -> Margins:
    wider = _WIDER if trial.k > _PATH_OF[1] else 1.0
    shape = trial.shape
    first = _START_NATS if shape.route == "ehi" else _START[0]
    return tuple(margin * wider for margin in (first, *_START[1 : 2 + len(shape.stages)]))


def _path(trial: _Trial, cost: CostModel) -> list[Step]:
    shape = trial.shape

    def run(margins: Margins) -> Step:
        outcome = trial.run(shape.plan(margins), cost)
        return Step(margins, float(outcome.recalls.mean()), outcome.micros)

    return descend(run, _start(trial), _LEAST_RECALL)


def _frontier(trial: _Trial, path: list[Step], cost: CostModel) -> Frontier:
    """Points along a path, until recall is too low to want."""
    points: list[OperatingPoint] = []
    for margins in spread_out(path, _COARSE if trial.k == KS[-1] else _FINE):
        points.append(_point(trial, trial.shape.plan(margins), cost))
        if points[-1].recall < _LEAST_RECALL:
            break
    return Frontier(trial.k, trial.band.selectivity, len(trial.queries), tuple(points))


def _point(trial: _Trial, plan: Plan, cost: CostModel) -> OperatingPoint:
    outcome = trial.run(plan, cost)
    floor = lower_bound(outcome.recalls, DELTA)
    return OperatingPoint(plan, float(outcome.recalls.mean()), floor, outcome.micros, outcome.bytes, outcome.rows)


def _exact_micros(ground: Ground, queries: F32) -> float:
    """Microseconds that the exact scan takes for a row of which a filter leaves few."""
    view = max(ground.views, key=lambda each: each.segment.rows)
    rows = view.segment.rows
    allowed = np.zeros(rows, np.bool_)
    allowed[:: max(1, rows // EXACT_ROWS)] = True
    times = []
    for query in queries[:5]:
        started = time.perf_counter()
        exact_search(view.segment.vectors, query, 10, metric=ground.metric, allowed=allowed)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e6 / int(np.count_nonzero(allowed))
