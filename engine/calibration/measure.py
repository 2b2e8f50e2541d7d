"""Measure frontiers: the truth once, one generous recorded search a query and filter, then plans replayed from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.bounds import binomial_lower_bound, lower_bound
from nestvec.engine.calibration.path import Margins, Shape, Step, descend, shrunk_together, spread_out
from nestvec.engine.calibration.points import Calibration, Frontier, OperatingPoint, Source
from nestvec.engine.calibration.trial import Band, CostModel, Ground, Outcome, Recordings, Trial, nested_filters
from nestvec.engine.calibration.truth import Levels, Truth, find_truth
from nestvec.engine.plan import Plan
from nestvec.engine.progress import Progress
from nestvec.index.lists.model import ListModel
from nestvec.index.scan import exact_search

F32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Run = Callable[[Trial, Sequence[Plan]], list[Outcome]]

KS = (1, 10, 100, 1000)
SELECTIVITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
DELTA = 0.05
_DEEPEST = 3600  # k / share; deeper, as for k 100 behind a filter of 1 %, the exact scan is cheaper anyway
_MOST_OF_ROWS = 0.05
EXACT_ROWS = 4000  # fewer that pass a filter are scanned: no plan is cheaper
_GROUPS = ((10, 1), (100,), (1000,))  # those of a group share a recording: for more neighbours it holds more
_PATH_OF = {1: 10, 1000: 100}  # one neighbour says too little to find a path by, and a thousand cost too much
_EXPLORED, _LEAST_EXPLORED, _MOST_EXPLORED = 2000, 24, 128  # neighbours, queries, queries that find a path
_EXPLORING = 7  # one query in so many does, where they are few: the others can promise
_PROMISED = {100: 1000, 1000: 100}  # queries that measure a path, at most; all for fewer neighbours, which say less
_LEAST_RECALL = 0.7
_FINE, _COARSE = 0.02, 0.1  # recall between neighbouring points
_BANDS_AT_ONCE = 2  # what one does in Python does not keep the cores waiting then
_AT_ONCE = 6  # points replayed together: few in vain where a path ends early
_TURNED = 1.25  # a point that much dearer than one more careful, and what follows, nobody wants
_START: Margins = (0.4, 0.2, 0.12, 0.08)  # generous, in units of the spread: probes, codes, stages
_START_NATS = 15.0  # the probes' where a tree routes
_WIDER = 1.3  # for many neighbours
_MORE, _ENOUGH = 1.5, 0.985  # margins of a path found for fewer neighbours, widened where they find less than enough
_SAME_SCORE = 2e-5  # of the spread: what float32 products and their order of addition leave open


def measure(ground: Ground, generation: int, queries: F32, source: Source, progress: Progress) -> Calibration:
    """Measure the frontiers of a generation with stored-form queries f32 [b, dims] in random order."""
    started = time.monotonic()
    rows = int(np.count_nonzero(ground.allowed))
    wanted = {share: ks for share in SELECTIVITIES if (ks := _worthwhile(share, rows))}
    levels = nested_filters(ground.allowed, list(wanted))
    truths = _truths(ground, levels, queries, list(wanted.values()), progress)
    exact_micros = _exact_micros(ground, queries)  # the pages of the rows are at hand by now
    slack = np.float32(-_SAME_SCORE) * _units(ground.model, queries)
    bands: list[_Measurement] = []
    for truth, (share, ks) in zip(truths, wanted.items(), strict=True):
        progress("calibrate", 0, len(wanted))
        band = Band(ground, share, levels > len(bands))
        bands.append(_Measurement(band, ks, truth, slack, queries, exact_micros))
    frontiers: list[Frontier] = []
    with ThreadPoolExecutor(_BANDS_AT_ONCE) as pool:  # nothing is timed any more
        for done, found in enumerate(pool.map(_Measurement.frontiers, bands), 1):
            frontiers += found
            progress("calibrate", done, len(wanted))
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


def _worthwhile(share: float, rows: int) -> list[int]:
    """The numbers of hits for which a plan could be cheaper than scanning what passes the filter."""
    if share * rows < EXACT_ROWS:
        return []
    return [k for group in _GROUPS for k in group if k / share <= min(_DEEPEST, _MOST_OF_ROWS * rows)]


@dataclass(frozen=True)
class _Group:
    """Of ks that share a recording: trials of the queries that find their paths, and of those that promise; where the
    paths start that are not another k's."""

    ks: list[int]
    explored: dict[int, Trial]
    promised: dict[int, Trial]
    opened: dict[int, list[Margins]]
    cost: CostModel


class _Measurement:
    """Of some ks in one band: made, it knows where paths start and what searches cost; `frontiers` does the rest."""

    def __init__(self, band: Band, ks: Sequence[int], truth: Truth, slack: F32, queries: F32, exact: float) -> None:
        """`slack` f32 [b] is added to the k-th best score of each of queries f32 [b, dims]; `truth`: the band's;
        `exact`: what its scan takes for a row, in microseconds. A k whose path serves others is among `ks` with
        them."""
        self._band, self._truth, self._slack, self._queries, self._exact = band, truth, slack, queries, exact
        self._starts: dict[int, Margins] = {}
        self._paths: dict[int, list[Step]] = {}
        groups = [[k for k in group if k in ks] for group in _GROUPS]
        self._groups = [self._group(group) for group in groups if group]

    def frontiers(self) -> list[Frontier]:
        """Those of all ks."""
        return [frontier for group in self._groups for frontier in self._together(group)]

    def _group(self, ks: list[int]) -> _Group:
        batch = self._queries[: max(_split(k, len(self._queries))[1].stop for k in ks)]
        explored, promised = {}, {}
        for k in ks:
            kth = (self._truth.kth(k) + self._slack)[: len(batch)]
            true = self._truth.reaching(kth)
            explored[k], promised[k] = (Trial(self._band, k, batch, kth, true, some) for some in _split(k, len(batch)))
        opened = {k: self._opened(explored[k]) for k in ks if _PATH_OF.get(k) not in ks}
        self._starts.update((k, each[0]) for k, each in opened.items())
        first = explored[ks[0]]
        return _Group(
            ks, explored, promised, opened, CostModel(first, _shape(first).plan(opened[ks[0]][-1]), self._exact)
        )

    def _together(self, group: _Group) -> list[Frontier]:
        """Frontiers that share a recording."""
        ks, promised, opened = group.ks, group.promised, group.opened
        widest = group.explored[max(ks)]
        # Who takes no part in finding a path need not be recorded where it is known.
        first = min(promised[k].chosen.start if _PATH_OF.get(k) in self._paths else 0 for k in ks)
        depths = np.maximum.reduce([trial.true for trial in promised.values()])
        run = self._runner(widest, range(first, len(widest.batch)), list(opened.values()), depths, group.cost)
        found = []
        for k in ks:
            path = self._paths.get(_PATH_OF.get(k, 0)) or _path(group.explored[k], opened[k], run)
            self._paths[k] = path
            margins = spread_out(path, _COARSE if k == KS[-1] else _FINE)
            found.append(_frontier(promised[k], [*dict.fromkeys([*opened.get(k, [])[:1], *margins])], run))
        return found

    def _opened(self, trial: Trial) -> list[Margins]:
        """Where the path of a trial starts."""
        shape, recordings = _shape(trial), None
        start = _start(trial.k, shape)
        if (margins := self._starts.get(_PATH_OF.get(trial.k, 0))) is not None:
            if trial.recall(shape.plan(margins), None) < _ENOUGH:
                margins = tuple(min(_MORE * each, most) for each, most in zip(margins, start, strict=True))
            return [margins]
        if shape.route == "soar":
            recordings = Recordings(
                self._band, trial.batch, trial.chosen, trial.k, shape.plan(start), self._truth, trial.true
            )
        filtered = self._band.selectivity < 1
        return shrunk_together(lambda each: trial.recall(shape.plan(each), recordings), start, filtered=filtered)

    def _runner(self, trial: Trial, asked: range, opened: list[list[Margins]], depths: Int64, cost: CostModel) -> Run:
        """What runs plans up to the most generous start, with the `asked` of a trial's batch: by replays where searches
        can be recorded."""
        if self._band.ground.route == "ehi":
            return lambda trial, plans: trial.search(plans, cost)
        widest = tuple(max(margins) for margins in zip(*(one[0] for one in opened), strict=True))
        plan = _shape(trial).plan(widest)
        recordings = Recordings(self._band, trial.batch, asked, trial.k, plan, self._truth, depths)
        return lambda trial, plans: trial.replay(recordings, plans, cost)


def _split(k: int, queries: int) -> tuple[range, range]:
    """The queries that find the path, and those that measure it: they took no part, and so can promise.

    A query for many neighbours says more about a path, and takes longer: fewer of them do.
    """
    many = min(_MOST_EXPLORED, max(_LEAST_EXPLORED, queries // _EXPLORING))
    cut = min(max(_EXPLORED // k, _LEAST_EXPLORED), many, queries // 4)
    return range(cut), range(cut, min(queries, cut + _PROMISED.get(k, queries)))


def _shape(trial: Trial) -> Shape:
    """What the plans of a trial have in common. Caps are wide: margins decide, and caps only bound an odd query."""
    k, ground = trial.k, trial.band.ground
    probes, dims = ground.model.config.partitions, ground.model.config.rescore_dims
    shortlist, last = max(4000, 60 * k), max(400, 6 * k)
    if dims:
        first = min(192, dims)
        stages = [(first, max(1000, 20 * k), True)] if dims > first else []
        return Shape(ground.route, probes, shortlist, (*stages, (dims, last, True)))
    least = min(ground.model.dims, max(256, ground.model.dims // 2))
    stored = next(g for g in ground.granularities if g >= least)
    return Shape(ground.route, probes, shortlist, ((stored, last, False),))


def _start(k: int, shape: Shape) -> Margins:
    wider = _WIDER if k > _PATH_OF[1] else 1.0
    first = _START_NATS if shape.route == "ehi" else _START[0]
    return tuple(margin * wider for margin in (first, *_START[1 : 2 + len(shape.stages)]))


def _truths(
    ground: Ground, levels: Levels, queries: F32, wanted: Sequence[Sequence[int]], progress: Progress
) -> list[Truth]:
    """Of each filter, as deep as the ks that are wanted behind it ask for."""
    if not wanted:  # few rows: no plan is cheaper than scanning them
        return []
    total, done = sum(view.segment.rows for view in ground.views), 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        progress("truth", done, total)

    vectors, depths = [view.segment.vectors for view in ground.views], np.zeros((len(wanted), len(queries)), np.int64)
    for depth, ks in zip(depths, wanted, strict=True):
        for k in sorted(ks):
            depth[: _split(k, len(queries))[1].stop] = k
    return find_truth(vectors, levels, queries, depths, ground.metric, tick)


def _units(model: ListModel, queries: F32) -> F32:
    units: F32 = (np.linalg.norm(queries - model.centre, axis=1) * model.spread).astype(np.float32)
    return units


def _path(trial: Trial, opened: list[Margins], run: Run) -> list[Step]:
    shape = _shape(trial)

    def step(margins: Margins) -> Step:
        (outcome,) = run(trial, [shape.plan(margins)])
        return Step(margins, float(outcome.recalls.mean()), outcome.micros)

    return descend(step, opened, _LEAST_RECALL)


def _frontier(trial: Trial, path: list[Margins], run: Run) -> Frontier:
    """Points along a path, until recall is too low to want, or cost rises: then searches find too few rows."""
    shape, points = _shape(trial), list[OperatingPoint]()
    bound = binomial_lower_bound if trial.k == 1 else lower_bound
    plans = [shape.plan(margins) for margins in path]
    for start in range(0, len(plans), _AT_ONCE):
        together = plans[start : start + _AT_ONCE]
        for plan, outcome in zip(together, run(trial, together), strict=True):
            recall, floor = float(outcome.recalls.mean()), bound(outcome.recalls, DELTA)
            points.append(OperatingPoint(plan, recall, floor, outcome.micros, outcome.bytes, outcome.rows))
            dear = outcome.micros > _TURNED * min(point.micros for point in points)
            if recall < _LEAST_RECALL or dear:
                return Frontier(
                    trial.k, trial.band.selectivity, len(trial.chosen), tuple(points[: -1 if dear else None])
                )
    return Frontier(trial.k, trial.band.selectivity, len(trial.chosen), tuple(points))


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
