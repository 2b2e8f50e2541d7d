"""Live recall: a small share of searches is answered again, exactly, in the background, and compared.

Calibration promises something about queries like its own. Whether today's queries are like them, only measuring them
tells: the monitor does, within a bounded share of one core, and says when the promise no longer holds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, Full, Queue

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.bounds import lower_bound
from nestvec.engine.calibration.measure import KS, SELECTIVITIES
from nestvec.engine.calibration.run import calibrate
from nestvec.engine.calibration.store import write_calibration
from nestvec.engine.coordinates import F32
from nestvec.engine.execute import EXACT, Found, execute
from nestvec.engine.maintenance import Part
from nestvec.engine.planner import Choice
from nestvec.engine.progress import silent
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.errors import InvalidInput, NestvecError

log = logging.getLogger("nestvec")

DEFAULT_SHARE = 0.001
_DELTA = 0.05
_KEPT = 1000  # the newest comparisons of a cell
_ENOUGH = 100  # comparisons before anything is said to be wrong
_RECENT = 2000  # queries kept to calibrate with
_WAITING = 64
ENOUGH_QUERIES = 500  # to calibrate with
_COST_SHARE = 0.02  # of the time, that one thread may spend on exact answers


@dataclass(frozen=True)
class LiveRecall:
    """Recall of live searches of about this k and selectivity: mean and 95 % interval over the newest `queries`.

    `target` is the mean recall that these searches were promised, None where they were promised nothing.
    """

    k: int
    selectivity: float
    queries: int
    recall: float
    low: float
    high: float
    target: float | None

    @property
    def missed(self) -> bool:
        """Whether the promise is broken beyond doubt."""
        return self.target is not None and self.queries >= _ENOUGH and self.high < self.target


@dataclass(frozen=True)
class _Sample:
    """One answered query: f32 [dims] as prepared, unrotated; the snapshot that it saw; the scores that it got."""

    query: F32
    k: int
    snapshot: Snapshot
    scores: F32
    target: float


@dataclass
class _Cell:
    recalls: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    targets: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))


class RecallMonitor:
    """Watches the searches of one collection in this process, from `start` to `close`."""

    def __init__(self, config: CollectionConfig, share: float, missed: Callable[[LiveRecall], None]) -> None:
        """`share` of the searches is compared; `missed` is called when a promise is found broken."""
        if not 0 < share <= 1:
            raise InvalidInput(f"the share of searches to compare is above 0 and at most 1, got {share!r}")
        self._config, self._share, self._missed = config, share, missed
        self._waiting: Queue[_Sample] = Queue(_WAITING)
        self._cells: dict[tuple[float, float], _Cell] = {}
        self._recent: deque[F32] = deque(maxlen=_RECENT)
        self._rng, self._lock, self._stop = np.random.default_rng(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="nestvec-recall", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, after the comparison under way."""
        self._stop.set()
        self._thread.join()

    def offer(self, queries: F32, k: int, snapshot: Snapshot, choice: Choice, answers: Sequence[Found]) -> None:
        """Tell of answered queries f32 [b, dims]; costs a few microseconds unless one is chosen, and never waits."""
        self._recent.extend(queries)
        if choice.target is None or choice.plan.route == "exact":
            return
        for i in np.flatnonzero(self._rng.random(len(queries)) < self._share).tolist():
            try:
                self._waiting.put_nowait(_Sample(queries[i].copy(), k, snapshot, answers[i].scores, choice.target))
            except Full:
                return

    def report(self) -> list[LiveRecall]:
        """What is known now, by k and selectivity."""
        with self._lock:
            return [_report(key, cell) for key, cell in sorted(self._cells.items())]

    def recent(self) -> F32:
        """The newest queries f32 [b, dims], as prepared: what a calibration would want to know of."""
        return np.array(self._recent, np.float32).reshape(-1, self._config.dims)

    def reset(self) -> None:
        """Forget all comparisons: after a calibration they are of another promise."""
        with self._lock:
            self._cells.clear()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                sample = self._waiting.get(timeout=0.2)
            except Empty:
                continue
            started = time.monotonic()
            try:
                self._compare(sample)
            except NestvecError as error:
                log.warning("a search could not be compared with the exact answer: %s", error)
            self._stop.wait((time.monotonic() - started) * (1 / _COST_SHARE - 1))

    def _compare(self, sample: _Sample) -> None:
        (truth,) = execute(sample.snapshot, self._config, sample.query[None], sample.k, EXACT)
        found = share_found(sample.scores, truth.scores)
        key = _band(sample.k, KS), _band(sample.snapshot.selectivity, SELECTIVITIES)
        with self._lock:
            cell = self._cells.setdefault(key, _Cell())
            cell.recalls.append(found)
            cell.targets.append(sample.target)
            report = _report(key, cell)
        if report.missed:
            self._missed(report)


class Watch:
    """A monitor, and what happens when it finds a promise broken."""

    def __init__(self, part: Part, share: float, recalibrate: bool) -> None:
        """`share` of the searches is compared; `recalibrate`: measure again by itself, with the newest queries."""
        self._part, self._recalibrate = part, recalibrate
        self.monitor = RecallMonitor(part.config, share, self._missed)

    def close(self) -> None:
        """Stop watching."""
        self.monitor.close()

    def _missed(self, found: LiveRecall) -> None:
        with self._part.keeper.current() as (_, snapshot):
            held = snapshot.calibration
        queries = self.monitor.recent()
        if held is None or (held.stale and not self._recalibrate):
            return
        reason = (
            f"live searches for {found.k} reached recall {found.recall:.3f} (at most {found.high:.3f}) of the promised "
            f"{found.target:.3f}: calibrate with queries like today's"
        )
        log.warning("%s: %s", self._part.layout.root, reason)
        write_calibration(self._part.catalog, replace(held, stale=reason))
        if self._recalibrate and len(queries) >= ENOUGH_QUERIES:
            calibrate(self._part, queries, None, silent)
            self.monitor.reset()


def share_found(scores: F32, truth: F32) -> float:
    """recall@k of one query from the scores found and the true ones, both descending: ties count as found."""
    return min(np.count_nonzero(scores >= truth[-1]) / len(truth), 1.0) if len(truth) else 1.0


def recall_report(k: int, selectivity: float, recalls: NDArray[np.float64], target: float | None) -> LiveRecall:
    """What recalls of queries, float64 [b] in [0, 1], say about the mean."""
    low, high = lower_bound(recalls, _DELTA / 2), 1 - lower_bound(1 - recalls, _DELTA / 2)
    return LiveRecall(k, selectivity, len(recalls), float(recalls.mean()), low, high, target)


def _report(key: tuple[float, float], cell: _Cell) -> LiveRecall:
    return recall_report(int(key[0]), key[1], np.array(cell.recalls), float(np.mean(cell.targets)))


def _band(value: float, bands: Sequence[float]) -> float:
    """The closest of the bands, by ratio."""
    return min(bands, key=lambda band: abs(math.log(max(value, 1e-12) / band)))
