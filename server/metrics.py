"""What Prometheus reads at /metrics. Every label has a bounded set of values: route templates, statuses, steps, names
of collections; nothing that a client may invent.

With several workers each writes its numbers to a file of its own under PROMETHEUS_MULTIPROC_DIR, which the parent of
the workers sets; any worker then answers with the sum over all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import islice

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from nestvec.engine.database import Database
from nestvec.engine.monitor import Comparison
from nestvec.index import kernels
from nestvec.index.work import Work

SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_MOST_COLLECTIONS = 1000
_REQUEST_SECONDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)  # fmt: skip
_STEP_SECONDS = (.00001, .00002, .00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .5, 1)  # fmt: skip


class Metrics:
    """The numbers of one application. Safe to use from many threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._own = registry = CollectorRegistry()
        self._requests = Counter("nestvec_requests", "Answered requests.", ["route", "method", "status"],
                                 registry=registry)  # fmt: skip
        self._seconds = Histogram("nestvec_request_seconds", "Time from a request's head to the end of its answer.",
                                  ["route", "method"], buckets=_REQUEST_SECONDS, registry=registry)  # fmt: skip
        self._steps = Histogram("nestvec_search_step_seconds", "Time of queries by step of the search.", ["step"],
                                buckets=_STEP_SECONDS, registry=registry)  # fmt: skip
        self._refused = Counter("nestvec_refused", "Requests refused before their route.", ["reason"],
                                registry=registry)  # fmt: skip
        found = ["collection", "k", "selectivity"]
        self._compared = Counter("nestvec_compared_queries", "Searches that were answered exactly as well.", found,
                                 registry=registry)  # fmt: skip
        self._recall = Counter("nestvec_compared_recall", "Sum of the recalls of these searches.", found,
                               registry=registry)  # fmt: skip
        self.in_flight = Gauge("nestvec_requests_in_flight", "Requests being answered.", registry=registry,
                               multiprocess_mode="livesum")  # fmt: skip
        self.waiting = Gauge("nestvec_calls_waiting", "Calls of the engine that wait for a thread.",
                             registry=registry, multiprocess_mode="livesum")  # fmt: skip
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._by_step: dict[str, Histogram] = {}
        self._by_reason: dict[str, Counter] = {}

    def answered(self, route: str, method: str, status: int, *seconds: float) -> None:
        """Count requests, each of which took so long; `route` is the template of their path, or "none"."""
        key = (route, method, status)
        known = self._children.get(key)
        if known is None:
            known = (self._requests.labels(route, method, status), self._seconds.labels(route, method))
            self._children[key] = known
        known[0].inc(len(seconds))
        for each in seconds:
            known[1].observe(each)

    def refused(self, reason: str) -> None:
        """Count a request that was refused before its route: "auth", "host", "busy", "key" or "bytes"."""
        child = self._by_reason.get(reason)
        if child is None:
            child = self._by_reason[reason] = self._refused.labels(reason)
        child.inc()

    def searched(self, works: Iterable[Work]) -> None:
        """Count the steps of answered queries."""
        for work in works:
            for step, micros in work.micros.items():
                child = self._by_step.get(step)
                if child is None:
                    child = self._by_step[step] = self._steps.labels(step)
                child.observe(micros * 1e-6)

    def compared(self, collection: str, comparison: Comparison) -> None:
        """Count one search that was answered exactly as well."""
        labels = collection, str(comparison.k), f"{comparison.selectivity:g}"
        self._compared.labels(*labels).inc()
        self._recall.labels(*labels).inc(comparison.recall)

    def page(self) -> bytes:
        """The page in Prometheus' text format, the collections as they are now."""
        numbers = self._own
        if SHARED_DIRECTORY in os.environ:
            numbers = CollectorRegistry()
            MultiProcessCollector(numbers)  # type: ignore[no-untyped-call]
        facts = CollectorRegistry()
        facts.register(_Facts(self._database))
        return generate_latest(numbers) + generate_latest(facts)


class _Facts(Collector):
    """What is read when the page is asked for: the build, and the collections."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("nestvec_build_info", "What runs here; always 1.", labels=["version", "kernels"])
        build.add_metric([version("nestvec"), kernels.backend()], 1)
        yield build
        infos = list(islice(self._database.collections(), _MOST_COLLECTIONS))
        for fact, meaning in (("count", "Live rows."), ("growing", "Rows not in a segment yet."),
                              ("segments", "Sealed segments."), ("index_bytes", "Bytes of the index.")):  # fmt: skip
            name = "rows" if fact == "count" else fact
            family = GaugeMetricFamily(f"nestvec_collection_{name}", meaning, labels=["collection"])
            for info in infos:
                family.add_metric([info.name], getattr(info, fact))
            yield family
        yield from self._recalls([info.name for info in infos])

    def _recalls(self, names: list[str]) -> Iterator[Metric]:
        """What this process knows of live recall: each worker compares its own searches."""
        opened = [(name, collection) for name in names if (collection := self._database.opened(name)) is not None]
        reports = [(name, report) for name, collection in opened for report in collection.live_recall()]
        for fact, end, meaning in (("recall", "", "Mean recall of live searches in the worker that answers."),
                                   ("low", "_low", "Lower end of its 95 % interval."),
                                   ("high", "_high", "Upper end of its 95 % interval."),
                                   ("target", "_target", "The recall that they were promised.")):  # fmt: skip
            family = GaugeMetricFamily(f"nestvec_recall{end}", meaning, labels=["collection", "k", "selectivity"])
            for name, report in reports:
                family.add_metric([name, str(report.k), f"{report.selectivity:g}"], getattr(report, fact))
            yield family
        stale = GaugeMetricFamily("nestvec_calibration_stale", "1 where calibration should not be trusted any more.",
                                  labels=["collection"])  # fmt: skip
        for name, collection in opened:
            if (held := collection.calibration()) is not None:
                stale.add_metric([name], held.stale is not None)
        yield stale
