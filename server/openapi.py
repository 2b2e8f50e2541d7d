"""The OpenAPI document: FastAPI's, plus schemas of hot routes and problems from the classes that decode them."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from nestvec.server import wire
from nestvec.server.errors import PROBLEM_JSON, Problem
from nestvec.server.gate import OPEN_PATHS
from nestvec.server.settings import Settings

_REF = "#/components/schemas/{name}"
_HOT = (wire.UpsertBody, wire.GetBody, wire.DeleteBody, wire.QueryBody, wire.QueryBatchBody, wire.UpsertReply,
        wire.DeleteReply, wire.GetReply, wire.QueryReply, wire.QueryBatchReply, Problem)  # fmt: skip
_BATCHES = (("UpsertBody", "records"), ("GetBody", "ids"), ("DeleteBody", "ids"), ("QueryBatchBody", "queries"))
_TITLES = {
    400: "The body is not JSON",
    401: "The API key is missing or wrong",
    404: "No such collection",
    409: "Differs from what exists",
    413: "The body is too large",
    415: "Not plain JSON in UTF-8",
    422: "The request cannot be used; `errors` says where",
    500: "Unexpected, or stored data is damaged",
    501: "An optional package is not installed",
    503: "Busy, not ready, or the outcome is unknown",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a /v1 route: what any of them may answer, and `statuses`."""
    content = {PROBLEM_JSON: {"schema": {"$ref": _REF.format(name="Problem")}}}
    every = sorted({401, 413, 415, 500, 503, *statuses})
    return {status: {"description": _TITLES[status], "content": content} for status in every}


def json_reply(reply: type[msgspec.Struct], description: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a hot route that succeeds with a `reply`."""
    schema = {"$ref": _REF.format(name=reply.__name__)}
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}


def json_body(body: type[msgspec.Struct]) -> dict[str, Any]:
    """`openapi_extra` of a hot route that takes a `body`."""
    schema = {"$ref": _REF.format(name=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def install(app: FastAPI, settings: Settings) -> None:
    """Make `app.openapi()` complete; made once, at the first call."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    _, hot = msgspec.json.schema_components(_HOT, ref_template=_REF)
    for body, field in _BATCHES:
        hot[body]["properties"][field]["maxItems"] = settings.max_batch
    hot["QueryBody"]["oneOf"] = [{"required": [one], "properties": {one: {"not": {"type": "null"}}}}
                                 for one in ("vector", "text")]  # fmt: skip
    components.setdefault("schemas", {}).update(hot)
    if settings.api_key is not None:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN_PATHS else [{"bearer": []}, {"key": []}]
    return document
