"""OpenTelemetry: spans of requests, encoding and search where somebody listens; nothing otherwise."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.engine.record import Record
from nestvec.server.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # set_tracer_provider works once per process; a test puts its own in place and takes it away again
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def test_a_text_query_is_three_spans_of_one_trace(client: TestClient, spans: InMemorySpanExporter) -> None:
    client.put("/v1/collections/prose", json={"encoder": "static"})
    client.put("/v1/collections/prose/records", json={"records": [{"id": "a", "text": "a small cat"}]})
    spans.clear()
    reply = client.post("/v1/collections/prose/query", json={"text": "cat"}, headers={"traceparent": PARENT})
    request = named(spans, "POST /v1/collections/{name}/query")
    encode, search = named(spans, "encode"), named(spans, "search")
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.context is not None
    for span in (encode, search):
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"  # type: ignore[union-attr]
        assert request.start_time <= span.start_time <= span.end_time  # type: ignore[operator]
    assert encode.end_time == search.start_time
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/collections/{name}/query",
        "http.response.status_code": 200,
        "nestvec.request_id": reply.headers["x-request-id"],
    }
    assert search.attributes is not None
    assert search.attributes["nestvec.rows"] == 1
    assert search.attributes["nestvec.step.exact.micros"] == pytest.approx(reply.json()["work"]["micros"]["exact"])
    told = str([(span.name, span.attributes, span.events) for span in spans.get_finished_spans()])
    assert "cat" not in told.replace("catalog", "")


def test_the_stages_of_a_funnel_are_attributes(
    client: TestClient, database: Database, spans: InMemorySpanExporter
) -> None:
    rows = np.random.default_rng(3).standard_normal((2000, 8)).astype("f4")
    collection = database.create_collection("many", dims=8, granularities=(4, 8))
    collection.upsert([Record(str(i), row) for i, row in enumerate(rows)])
    collection.seal()
    plan = {"route": "soar", "probes": 4, "shortlist": {"keep": 200}, "stages": [{"dims": 4, "keep": 50}]}
    reply = client.post("/v1/collections/many/query", json={"vector": rows[0].tolist(), "k": 3, "plan": plan}).json()
    attributes = named(spans, "search").attributes
    assert attributes is not None
    for place, stage in enumerate(reply["work"]["stages"]):
        for name in ("dims", "in", "out"):
            assert attributes[f"nestvec.stage.{place}.{name}"] == stage[name]
    assert f"nestvec.stage.{len(reply['work']['stages'])}.dims" not in attributes


def test_a_failure_of_ours_marks_its_span_and_theirs_does_not(client: TestClient, spans: InMemorySpanExporter) -> None:
    client.get("/v1/collections/absent")
    client.post("/v1/collections/docs/query", json={"vector": [1.0] * 8}, headers={"X-Timeout-Ms": "0"})
    client.get("/nothing")
    assert {span.status.status_code for span in spans.get_finished_spans()} == {StatusCode.UNSET}
    client.app.state.service.warm = False  # type: ignore[attr-defined]
    client.get("/readyz")
    assert named(spans, "GET /readyz").status.status_code is StatusCode.ERROR


def test_without_a_provider_nothing_is_made(client: TestClient) -> None:
    assert not Tracing().on
    assert client.get("/v1/info").status_code == 200


def test_without_the_package_nothing_is_missed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *given: object, **named: object) -> object:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    tracing = Tracing()
    assert not tracing.on
    tracing.searched([])
