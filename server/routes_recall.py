"""Recall: why a search runs as it does, what was calibrated, and what live searches reach."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, Response

from nestvec.engine.collection import Collection
from nestvec.engine.explain import Explanation
from nestvec.engine.monitor import LiveRecall
from nestvec.server.codec import check_batch, check_k, check_one_way, to_filter, to_plan, to_vector
from nestvec.server.errors import RequestProblem, invalid
from nestvec.server.exchange import shorten
from nestvec.server.formats import JSON
from nestvec.server.hot import Call, add_hot_route
from nestvec.server.openapi import json_reply, problems
from nestvec.server.service import CollectionName, TheService
from nestvec.server.settings import Settings
from nestvec.server.wire_recall import (
    ExplainBody,
    ExplainReply,
    FrontierReply,
    LiveRecallReply,
    MeasureBody,
    MeasuredReply,
)


async def explain(call: Call, name: str) -> bytes:
    """Which plan a search by vectors runs, why, and, with a vector or a text, what each step of it did."""
    body, settings = call.decode(ExplainBody), call.service.settings
    if body.vector is not None and body.text is not None:
        raise invalid("expected at most one of vector and text")
    check_one_way(body, "")
    check_k(body.k, settings, "")
    if body.timeout_ms is not None:
        shorten(call.scope, body.timeout_ms)
    found = await call.service.run(lambda: _explained(call.service.collection(name), body, settings))
    return call.reply(_explain_reply(found))


def _explained(collection: Collection, body: ExplainBody, settings: Settings) -> Explanation:
    return collection.explain(
        None if body.vector is None else to_vector(body.vector, collection.config.dims, "/vector"),
        text=body.text,
        k=body.k,
        filter=to_filter(body.filter, settings, "/filter"),
        recall=body.recall,
        budget_ms=body.budget_ms,
        budget_bytes=body.budget_bytes,
        plan=to_plan(body.plan),
        exact=body.exact,
    )


def _explain_reply(found: Explanation) -> ExplainReply:
    return msgspec.convert(found.to_json(), ExplainReply)


async def frontier(service: TheService, name: CollectionName) -> Response:
    """All operating points of the collection's calibration, by k and by the share of rows that pass a filter."""
    found = await service.run(lambda: service.collection(name).calibration())
    if found is None:
        detail = (
            f'{name!r} is not calibrated: build an index (a job of kind "build", from 2,000 records on), or submit a '
            'job of kind "calibrate"; until then recall can be had of the exact scan only'
        )
        raise RequestProblem(404, "not_calibrated", detail)
    return _json(msgspec.convert(found.to_json(), FrontierReply))


async def live_recall(service: TheService, name: CollectionName) -> Response:
    """Recall of the live searches that were compared with the exact scan; each worker process knows its own."""
    found = await service.run(lambda: service.collection(name).live_recall())
    return _json(LiveRecallReply([_measured(each) for each in found]))


async def measure_recall(call: Call, name: str) -> bytes:
    """Measure recall now, on given queries: each is answered as asked, and exactly."""
    body, settings = call.decode(MeasureBody), call.service.settings
    if (body.vectors is None) == (body.texts is None):
        raise invalid("expected exactly one of vectors and texts")
    if body.recall is not None and body.plan is not None:
        raise invalid("expected at most one of recall and plan, got both")
    check_k(body.k, settings, "")
    check_batch(body.vectors or (), settings.max_batch, "vectors")
    check_batch(body.texts or (), settings.max_batch, "texts")
    found = await call.service.run(lambda: _measure(call.service.collection(name), body, settings))
    return call.reply(_measured(found))


def _measure(collection: Collection, body: MeasureBody, settings: Settings) -> LiveRecall:
    vectors = None
    if body.vectors is not None:
        dims = collection.config.dims
        vectors = np.stack([to_vector(given, dims, f"/vectors/{i}") for i, given in enumerate(body.vectors)])
    filter, plan = to_filter(body.filter, settings, "/filter"), to_plan(body.plan)
    return collection.measure_recall(vectors, texts=body.texts, k=body.k, filter=filter, recall=body.recall, plan=plan)


def _measured(found: LiveRecall) -> MeasuredReply:
    return MeasuredReply(**asdict(found), missed=found.missed)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    path = "/v1/collections/{name}"
    read: dict[str, Any] = {"methods": ["GET"], "tags": ["recall"], "response_class": Response, "response_model": None}
    add_hot_route(app, "POST", "explain", explain, ExplainBody, ExplainReply, operation="explain", tag="recall")
    add_hot_route(
        app, "POST", "recall", measure_recall, MeasureBody, MeasuredReply, operation="measure_recall", tag="recall"
    )
    app.add_api_route(path + "/frontier", frontier, operation_id="frontier",
                      responses={**json_reply(FrontierReply), **problems(404, 422)}, **read)  # fmt: skip
    app.add_api_route(path + "/recall", live_recall, operation_id="live_recall",
                      responses={**json_reply(LiveRecallReply), **problems(404, 422)}, **read)  # fmt: skip
