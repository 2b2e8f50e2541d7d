"""The OpenAPI document: FastAPI's, plus schemas of hot routes and problems from the classes that decode them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from nestvec.server import wire, wire_recall
from nestvec.server.errors import PROBLEM_JSON, Problem
from nestvec.server.formats import JSON, MSGPACK
from nestvec.server.gate import OPEN_PATHS
from nestvec.server.settings import Settings

_REF = "#/components/schemas/{name}"
_HOT = (wire.UpsertBody, wire.GetBody, wire.ScrollBody, wire.DeleteBody, wire.CountBody, wire.QueryBody,
        wire.QueryBatchBody, wire.UpsertReply, wire.DeleteReply, wire.CountReply, wire.GetReply, wire.ScrollReply,
        wire.QueryReply, wire.QueryBatchReply, wire_recall.ExplainBody, wire_recall.ExplainReply,
        wire_recall.MeasureBody, wire_recall.MeasuredReply, wire_recall.LiveRecallReply, wire_recall.FrontierReply,
        Problem)  # fmt: skip
_BATCHES = (("UpsertBody", "records"), ("UpsertBody", "ids"), ("GetBody", "ids"), ("QueryBatchBody", "queries"))
# What msgspec cannot say of a body: exactly one of these keys is there, and not null.
_ALTERNATIVES = {
    "UpsertBody": ("records", "ids"),
    "DeleteBody": ("ids", "filter"),
    "MeasureBody": ("vectors", "texts"),
}
_VECTOR, _PACKED, _FILTER = [0.1, 0.2, 0.3, 0.4], "zczMPc3MTD6amZk+zczMPg==", {"field": "lang", "eq": "en"}
EXAMPLES: dict[type[msgspec.Struct], dict[str, Any]] = {
    wire.UpsertBody: {
        "rows": {"records": [{"id": "a", "vector": _VECTOR, "text": "hello", "payload": {"lang": "en"}}]},
        "columns": {"ids": ["b", "c"], "vectors": [_VECTOR, _PACKED], "payloads": [{"lang": "de"}, None]},
    },
    wire.GetBody: {"with vectors": {"ids": ["a", "b"], "with_vector": True}},
    wire.ScrollBody: {"first page": {"limit": 100, "filter": _FILTER}},
    wire.DeleteBody: {"by id": {"ids": ["c"]}, "by filter": {"filter": {"field": "lang", "in": ["fr", "nl"]}}},
    wire.CountBody: {"those that match": {"filter": _FILTER}, "all": {}},
    wire.QueryBody: {
        "by vector": {"vector": _VECTOR, "k": 3},
        "packed, filtered, in columns": {"vector": _PACKED, "k": 3, "filter": _FILTER, "layout": "columns"},
        "with recall .95": {"vector": _VECTOR, "recall": 0.95},
        "exactly, with some fields": {"vector": _VECTOR, "exact": True, "with_payload": ["lang"]},
    },
    wire_recall.ExplainBody: {"run": {"vector": _VECTOR, "k": 3, "recall": 0.9}, "the plan alone": {"budget_ms": 0.5}},
    wire_recall.MeasureBody: {"two": {"vectors": [_VECTOR, _PACKED], "k": 3, "recall": 0.9}},
    wire.QueryBatchBody: {"two": {"queries": [{"vector": _VECTOR}, {"vector": _PACKED, "k": 1, "with_vector": True}]}},
}
"""By name, for a collection of 4 dims. The tests send them."""

_TITLES = {
    400: "The body is not what its Content-Type says",
    401: "The API key is missing or wrong",
    403: "The API key may not do this",
    404: "No such thing",
    406: "The reply cannot be said in the format asked for",
    408: "The body came too slowly",
    409: "Differs from what exists",
    412: "The configuration has changed since it was read",
    413: "The body is too large",
    415: "Not a format that this route reads",
    422: "The request cannot be used; `errors` says where",
    428: "The condition that this route needs is missing",
    429: "Too many requests; see Retry-After",
    500: "Unexpected, or stored data is damaged",
    501: "An optional package is not installed",
    502: "The service that encodes texts does not answer as it should",
    503: "Busy, not ready, or the outcome is unknown",
    504: "The deadline has passed",
    507: "The disk is full; reads go on",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a /v1 route: what any of them may answer, and `statuses`."""
    content = {PROBLEM_JSON: {"schema": {"$ref": _REF.format(name="Problem")}}}
    every = sorted({401, 403, 408, 413, 415, 429, 500, 503, 504, 507, *statuses})
    return {status: {"description": _TITLES[status], "content": content} for status in every}


def hot_reply(reply: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a hot route that succeeds with a `reply`."""
    return {200: {"description": "Done", "content": _content(reply)}}


def json_reply(reply: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that succeeds with a `reply` in JSON."""
    return {200: {"description": "Done", "content": {JSON: {"schema": {"$ref": _REF.format(name=reply.__name__)}}}}}


def hot_body(body: type[msgspec.Struct]) -> dict[str, Any]:
    """`openapi_extra` of a hot route that takes a `body`."""
    return {"requestBody": {"required": True, "content": _content(body)}}


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": _REF.format(name=kind.__name__)}}
    if kind in EXAMPLES:
        content["examples"] = {name: {"value": value} for name, value in EXAMPLES[kind].items()}
    # In msgpack a packed vector is bin, which an example, being JSON, cannot show.
    return {JSON: content, MSGPACK: {"schema": content["schema"]}}


def install(app: FastAPI, settings: Settings, guarded: Callable[[], bool]) -> None:
    """Make `app.openapi()` complete; made once for each answer of `guarded`, which says whether a key is needed."""
    made: dict[bool, dict[str, Any]] = {}

    def document() -> dict[str, Any]:
        needed = guarded()
        if needed not in made:
            made[needed] = _document(app, settings, needed)
        return made[needed]

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, settings: Settings, guarded: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(_schemas(settings))
    if guarded:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN_PATHS else [{"bearer": []}, {"key": []}]
    return document


def _schemas(settings: Settings) -> dict[str, Any]:
    """The schemas of the hot structs, with the bounds that are settings and the alternatives of keys."""
    _, hot = msgspec.json.schema_components(_HOT, ref_template=_REF)
    for body, field in _BATCHES:
        hot[body]["properties"][field]["maxItems"] = settings.max_batch
    for body in ("QueryBody", "ExplainBody", "MeasureBody"):
        hot[body]["properties"]["k"]["maximum"] = settings.max_k
    for body, keys in _ALTERNATIVES.items():
        hot[body]["oneOf"] = [_given(key) for key in keys]
    hot["QueryBody"]["anyOf"] = [_given("vector"), _given("text")]
    return hot


def _given(key: str) -> dict[str, Any]:
    """The schema of an object that has this key, and not as null."""
    return {"required": [key], "properties": {key: {"not": {"type": "null"}}}}
