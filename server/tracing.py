"""Spans for OpenTelemetry, where its API is installed and a provider is set up; otherwise nothing is done at all.

A request is one span, in the trace that its `traceparent` names; below it `encode` and `search`, made from the times
that the engine measured anyway. Attributes are counts, times and route templates: no ids, texts, vectors, payloads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nestvec.index.work import Work

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_ENCODE = "encode"  # the step of Work.micros that is no part of the search


class Tracing:
    """Makes spans with the tracer of whoever set up OpenTelemetry in this process."""

    def __init__(self) -> None:
        self._api: Any = None
        with suppress(ImportError):
            from opentelemetry import propagate, trace

            self._api, self._propagate = trace, propagate

    @property
    def on(self) -> bool:
        """Whether anybody would see a span."""
        api = self._api
        return api is not None and not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider)

    @contextmanager
    def request(self, method: str, headers: Mapping[bytes, bytes]) -> Iterator[Span]:
        """The span of one request; to be entered only while `on`."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        parent = self._propagate.extract(carrier)
        with self._tracer().start_as_current_span(method, parent, kind=self._api.SpanKind.SERVER) as span:
            yield span

    def finish(self, span: Span, method: str, route: str, status: int, request_id: str) -> None:
        """Say what the request was, once that is known."""
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "nestvec.request_id": request_id,
            }
        )
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR)

    def searched(self, works: Iterable[Work]) -> None:
        """Spans below the current one for queries that have just been answered, times as the engine measured them."""
        if not self.on:
            return
        end = time.time_ns()
        for work in works:
            searching = sum(micros for step, micros in work.micros.items() if step != _ENCODE)
            start = end - int(searching * 1000)
            if _ENCODE in work.micros:
                encoding = start - int(work.micros[_ENCODE] * 1000)
                self._tracer().start_span(_ENCODE, start_time=encoding).end(start)
            self._tracer().start_span("search", start_time=start, attributes=_attributes(work)).end(end)

    def _tracer(self) -> Any:  # noqa: ANN401 - the API is optional, so its types are not known here
        return self._api.get_tracer("nestvec")


def _attributes(work: Work) -> dict[str, float]:
    """Counts of a query, and of each of its stages by its place."""
    found: dict[str, float] = {
        "nestvec.partitions": int(work.partitions),
        "nestvec.codes": int(work.codes),
        "nestvec.rows": int(work.rows),
        "nestvec.bytes": int(work.bytes),
    }
    for step, micros in work.micros.items():
        found[f"nestvec.step.{step}.micros"] = float(micros)
    for place, stage in enumerate(work.stages):
        found[f"nestvec.stage.{place}.dims"] = int(stage["dims"])
        found[f"nestvec.stage.{place}.in"] = int(stage["in"])
        found[f"nestvec.stage.{place}.out"] = int(stage["out"])
        found[f"nestvec.stage.{place}.micros"] = float(stage["micros"])
    return found
