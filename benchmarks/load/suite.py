"""The checks L1 to L5: capacity, open loops below it, twice of it, and after."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np

from nestvec.benchmarks.load.checks import Report
from nestvec.benchmarks.load.closed import measure
from nestvec.benchmarks.load.openloop import LATE, LOST, Answers, poisson, send
from nestvec.benchmarks.load.service import Service
from nestvec.benchmarks.load.subject import CHURN, Subject

CLIENTS = 8
_WRITES = 0.05
_MOST_LAG = 0.01
_SPARSE = 0.05


@dataclass(frozen=True)
class Spans:
    """Seconds that each part takes. `scale`: of the rates below the capacity; a slice on a machine that others use too
    is to show errors, and not the overload that the others make."""

    closed: float
    half: float
    most: float
    overload: float
    after: float
    settled: float
    """How long after the overload its traces may still be seen."""
    swaps: int
    slow: float
    slow_cut: float
    writes: int
    scale: float


FULL = Spans(
    closed=60,
    half=120,
    most=120,
    overload=60,
    after=30,
    settled=10,
    swaps=10,
    slow=40,
    slow_cut=30,
    writes=300,
    scale=1,
)
QUICK = Spans(
    closed=2, half=3, most=2, overload=4, after=3, settled=1, swaps=2, slow=6, slow_cut=2, writes=60, scale=0.2
)


class Runner:
    """The service under load, what it is asked, and what was found so far. Times are in seconds, as measured."""

    def __init__(self, service: Service, subject: Subject, report: Report, spans: Spans, seed: int) -> None:
        self.service, self.subject, self.report, self.spans = service, subject, report, spans
        self.searches = subject.searches
        self.requests = self.searches + subject.writes
        self._seeds = count(seed)
        self.unloaded, self.capacity = 0.0, 0.0
        self.half_p99, self.most_p99 = 0.0, 0.0

    def open(self, name: str, rate: float, seconds: float, *, writes: bool = False, **options: object) -> Answers:
        """Searches at `rate`, with one write in twenty if asked; answers of all."""
        kinds = [(1.0 - _WRITES * writes, 0, len(self.searches))]
        if writes:
            kinds.append((_WRITES, len(self.searches), CHURN))
        arrivals = poisson(rate, seconds, kinds, next(self._seeds))
        found = send(self.service.port, self.requests, arrivals, **options)  # type: ignore[arg-type]
        lag = float(np.percentile(found.lag[np.isfinite(found.lag)], 99)) if np.isfinite(found.lag).any() else 0.0
        if lag > _MOST_LAG:
            self.report.note(name, "p99 of the generator's own lateness, ms: not alone here", lag * 1000)
        return found

    def searched(self, answers: Answers) -> Answers:
        """The answered searches among them."""
        return answers.of((answers.status == 200) & (answers.which < len(self.searches)))

    @property
    def half(self) -> float:
        """Requests per second of half the capacity."""
        return 0.5 * self.capacity * self.spans.scale

    def capacity_found(self) -> None:
        """L1, and before it the time of a search when there is hardly any other."""
        spans, port = self.spans, self.service.port
        measure(port, self.searches, CLIENTS, min(2.0, spans.closed))
        hot = measure(port, self.searches, 1, max(2.0, spans.closed / 6))
        # A processor that slept between two requests starts cold: a client that asks without a pause never sees that.
        spaced = self.searched(self.open("L1", _SPARSE * hot.per_second, max(2.0, spans.closed / 6)))
        self.unloaded = spaced.percentile(50)
        self.report.note("L1", "p50 of one client that never pauses, ms", hot.p50)
        self.report.note("L1", "unloaded p50, ms: few requests, far apart", self.unloaded * 1000)
        closed = measure(port, self.searches, CLIENTS, spans.closed)  # raises for any status but 200
        self.capacity = closed.per_second
        self.report.note("L1", f"capacity C: requests/s of {CLIENTS} clients, no errors", self.capacity)
        self.report.note("L1", "its p99, ms", closed.p99)
        self.report.facts |= {"capacity": self.capacity, "unloaded_p50_ms": self.unloaded * 1000}

    def below(self) -> None:
        """L2: half the capacity, one in twenty a write. L3: four fifths of it."""
        report = self.report
        half = self.open("L2", self.half, self.spans.half, writes=True)
        searched = self.searched(half)
        self.half_p99 = searched.percentile(99)
        report.none("L2", "errors at .5 C", int((half.status != 200).sum()))
        report.most("L2", "p50 of searches, ms", searched.percentile(50) * 1000, 1500 * self.unloaded, time=True)
        report.most("L2", "p99 of searches, ms", self.half_p99 * 1000, 4000 * self.unloaded, time=True)
        written = half.of((half.status == 200) & (half.which >= len(self.searches)))
        report.note("L2", "p99 of writes, ms", written.percentile(99) * 1000)
        most = self.open("L3", 1.6 * self.half, self.spans.most)
        self.most_p99 = most.percentile(99)
        report.none("L3", "errors at .8 C", int((most.status != 200).sum()))
        report.most("L3", "p99, ms", self.most_p99 * 1000, 10_000 * self.unloaded, time=True)
        report.most("L3", "p99.9, ms", most.percentile(99.9) * 1000, 1000, time=True)

    def overload(self) -> None:
        """L4: twice the capacity. L5: half of it again."""
        report, spans = self.report, self.spans
        before = self.service.rss
        found = self.open("L4", 2 * self.capacity, spans.overload)
        growth = self.service.rss / before - 1
        good, refused = found.of(found.status == 200), found.of(np.isin(found.status, (429, 503)))
        report.facts["overload"] = {"offered": len(found.due), "good": len(good.due), "refused": len(refused.due)}
        report.least("L4", "goodput at 2 C, of C", len(good.due) / spans.overload / self.capacity, 0.8, time=True)
        bar = min(1.0, 2 * self.most_p99)
        report.most("L4", "p99 of the accepted, ms", good.percentile(99) * 1000, bar * 1000, time=True)
        if len(refused.due):
            report.most("L4", "p99 of refusals, ms", refused.percentile(99) * 1000, 100, time=True)
        tell_statuses(report, "L4", found)
        report.most("L4", "growth of memory, %", growth * 100, 10, time=True)  # few rows: small to grow from
        after = self.searched(self.open("L5", self.half, spans.after, writes=True))
        settled = after.of(after.due >= spans.settled)
        report.most("L5", "p99 at .5 C after, ms", settled.percentile(99) * 1000, 1200 * self.half_p99, time=True)


def tell_statuses(report: Report, name: str, found: Answers) -> None:
    """What is not answered is refused, and told when to come back; nothing is broken off."""
    refused = np.isin(found.status, (429, 503))
    told = (found.retry_after >= 1) & (found.retry_after <= 30)
    report.none(name, "refusals without Retry-After of 1 to 30 s", int((refused & ~told).sum()))
    report.none(name, "resets", int((found.status == LOST).sum()))
    report.none(name, "no answer within 30 s", int((found.status == LATE).sum()))
    other = ~refused & ~np.isin(found.status, (200, LOST, LATE))
    report.none(name, "any other status", int(other.sum()))
