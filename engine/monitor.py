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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Full, Queue
from typing import NamedTuple

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
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.errors import InvalidInput

log = logging.getLogger("nestvec")

DEFAULT_SHARE = 0.001
_DELTA = 0.05
_KEPT = 1000  # the newest comparisons of a cell
_ENOUGH = 100  # comparisons before anything is said to be wrong
_RECENT = 2000  # queries kept to calibrate with
_WAITING = 64
ENOUGH_QUERIES = 500  # to calibrate with
_COST_SHARE = 0.02  # of the time, that one thread may spend on exact answers
_CALIBRATING_SHARE = 0.05  # of the time, for calibrations that do not help


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


class Comparison(NamedTuple):
    """One search that was answered exactly as well: the measured k and selectivity closest to its own; its recall."""

    k: int
    selectivity: float
    recall: float


Told = Callable[[Comparison], None]
"""What is to hear of every comparison, in the monitor's thread."""


Promise = tuple[int, str]
"""Which calibration a search was promised by: its generation, and when it was made. A later one is greater."""


@dataclass(frozen=True)
class _Sample:
    """One answered query: f32 [dims] as prepared, unrotated; the snapshot that it saw; the scores that it got."""

    query: F32
    k: int
    snapshot: Snapshot
    scores: F32
    target: float
    promise: Promise


@dataclass
class _Cell:
    recalls: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    targets: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))


class _Stopped(Exception):
    """Raised in a calibration that is not wanted any more."""


class RecallMonitor:
    """Watches the searches of one collection in this process until `close`; its thread begins with the first sample."""

    def __init__(
        self,
        config: CollectionConfig,
        share: float,
        missed: Callable[[LiveRecall, Promise], None],
        told: Told | None = None,
        keep_queries: bool = False,
    ) -> None:
        """`share` of the searches is compared; `missed` is called when a promise is found broken.

        `keep_queries`: the newest ones, to calibrate with.
        """
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InvalidInput(f"the share of searches to compare is above 0 and at most 1, got {share!r}")
        self._config, self._share, self._missed, self._told = config, share, missed, told
        self._waiting: Queue[_Sample | None] = Queue(_WAITING)
        self._cells: dict[tuple[int, float], _Cell] = {}
        self._promise: Promise = (0, "")
        self._recent: deque[F32] | None = deque(maxlen=_RECENT) if keep_queries else None
        self._rng, self._lock, self._stop = np.random.default_rng(), threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._ahead = self._gap()

    def close(self) -> None:
        """Stop, after the comparison under way."""
        with self._lock:
            self._stop.set()
            thread = self._thread
        if thread is not None:
            with suppress(Full):  # a full queue is no wait that this would have to end
                self._waiting.put_nowait(None)
            thread.join()

    def offer(self, queries: F32, k: int, snapshot: Snapshot, choice: Choice, answers: Sequence[Found]) -> None:
        """Tell of answered queries f32 [b, dims]; costs a microsecond unless one is chosen, and never waits."""
        if self._recent is not None:
            self._recent.extend(queries.copy())
        if choice.target is None or choice.basis is None:
            return
        with self._lock:
            if self._ahead >= len(queries):
                self._ahead -= len(queries)
                return
            chosen = []
            while self._ahead < len(queries):
                chosen.append(self._ahead)
                self._ahead += 1 + self._gap()
            self._ahead -= len(queries)
            self._begin()
        promise = choice.basis.generation, choice.basis.created
        for i in chosen:
            sample = _Sample(queries[i].copy(), k, snapshot, answers[i].scores, choice.target, promise)
            with suppress(Full):
                self._waiting.put_nowait(sample)

    def report(self) -> list[LiveRecall]:
        """What is known now, by k and selectivity."""
        with self._lock:
            return [_report(key, cell) for key, cell in sorted(self._cells.items())]

    def recent(self) -> F32:
        """The newest queries f32 [b, dims], as prepared: what a calibration would want to know of."""
        return np.array(list(self._recent or ()), np.float32).reshape(-1, self._config.dims)

    def go_on(self, stage: str, done: int, total: int | None) -> None:
        """A progress callback for work in the monitor's thread: ends it when the monitor is closed."""
        if self._stop.is_set():
            raise _Stopped

    def _gap(self) -> int:
        """How many searches pass before the next one that is compared, if each is with the same chance."""
        return int(self._rng.geometric(self._share)) - 1

    def _begin(self) -> None:
        """Start the thread, once. The caller holds the lock."""
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="nestvec-recall", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            sample = self._waiting.get()
            if sample is None:
                return
            started = time.monotonic()
            try:
                report = self._compare(sample)
                spent = time.monotonic() - started
                if report is not None and report.missed:
                    self._missed(report, sample.promise)
            except _Stopped:
                return
            except Exception as error:  # whatever it was, the next search can be compared
                spent = time.monotonic() - started
                log.warning("a search could not be compared with the exact answer: %s", error)
            del sample  # and with it the files of its snapshot
            self._stop.wait(spent * (1 / _COST_SHARE - 1))

    def _compare(self, sample: _Sample) -> LiveRecall | None:
        """What is known after this sample of searches like it; None where it was promised by an older calibration."""
        (truth,) = execute(sample.snapshot, self._config, sample.query[None], sample.k, EXACT)
        found = share_found(sample.scores, truth.scores)
        key = int(_band(sample.k, KS)), _band(sample.snapshot.selectivity, SELECTIVITIES)
        with self._lock:
            if sample.promise < self._promise:
                return None
            if sample.promise > self._promise:
                self._cells.clear()
                self._promise = sample.promise
            cell = self._cells.setdefault(key, _Cell())
            cell.recalls.append(found)
            cell.targets.append(sample.target)
            report = _report(key, cell)
        if self._told is not None:
            self._told(Comparison(*key, found))
        return report


class Watch:
    """A monitor, and what happens when it finds a promise broken."""

    def __init__(self, part: Part, share: float, recalibrate: bool, told: Told | None = None) -> None:
        """`share` of the searches is compared; `recalibrate`: measure again by itself, with the newest queries."""
        self._part, self._recalibrate = part, recalibrate
        self._rest_until = 0.0
        self.monitor = RecallMonitor(part.config, share, self._missed, told, keep_queries=recalibrate)

    def close(self) -> None:
        """Stop watching."""
        self.monitor.close()

    def _missed(self, found: LiveRecall, promise: Promise) -> None:
        with self._part.keeper.current() as (_, snapshot):
            held = snapshot.calibration
        if held is None or (held.generation, held.created) != promise:
            return  # what was found says nothing about this calibration
        if held.stale is None:
            reason = (
                f"live searches for {found.k} reached recall {found.recall:.3f} (at most {found.high:.3f}) of the "
                f"promised {found.target:.3f}: calibrate with queries like today's"
            )
            log.warning("%s: %s", self._part.layout.root, reason)
            write_calibration(self._part.catalog, replace(held, stale=reason))
        if self._recalibrate and time.monotonic() >= self._rest_until:
            self._calibrate()

    def _calibrate(self) -> None:
        queries = self.monitor.recent()
        if len(queries) < ENOUGH_QUERIES:
            return
        started = time.monotonic()
        calibrate(self._part, queries, None, self.monitor.go_on)
        spent = time.monotonic() - started
        self._rest_until = time.monotonic() + spent * (1 / _CALIBRATING_SHARE - 1)


def share_found(scores: F32, truth: F32) -> float:
    """recall@k of one query from the scores found and the true ones, both descending: ties count as found."""
    return min(np.count_nonzero(scores >= truth[-1]) / len(truth), 1.0) if len(truth) else 1.0


def recall_report(k: int, selectivity: float, recalls: NDArray[np.float64], target: float | None) -> LiveRecall:
    """What recalls of queries, float64 [b] in [0, 1], say about the mean."""
    low, high = lower_bound(recalls, _DELTA / 2), 1 - lower_bound(1 - recalls, _DELTA / 2)
    return LiveRecall(k, selectivity, len(recalls), float(recalls.mean()), low, high, target)


def _report(key: tuple[int, float], cell: _Cell) -> LiveRecall:
    return recall_report(*key, np.array(cell.recalls), math.fsum(cell.targets) / len(cell.targets))


def _band(value: float, bands: Sequence[float]) -> float:
    """The closest of the bands, by ratio."""
    return min(bands, key=lambda band: abs(math.log(max(value, 1e-12) / band)))
