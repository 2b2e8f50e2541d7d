"""Errors as application/problem+json (RFC 9457): the one place where an error meets a status code.

No problem repeats the request's body, and none shows the server's insides: those go to the log, under the request id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from nestvec.errors import (
    Busy,
    Conflict,
    Damaged,
    EncoderMismatch,
    EncoderUnavailable,
    InvalidInput,
    InvalidRecord,
    MissingDependency,
    NestvecError,
    NoSpace,
    NotFound,
    OutcomeUnknown,
)

logger = logging.getLogger("nestvec.server")

PROBLEM_JSON = "application/problem+json"
REQUEST_ID = "nestvec.request_id"  # key in the ASGI scope
_MOST_ERRORS, _LONGEST_TEXT = 16, 500


class FieldError(msgspec.Struct, frozen=True):
    """One fault in the request: `pointer` is a JSON pointer (RFC 6901) into the body, empty for the whole of it."""

    pointer: str
    message: str


class Problem(msgspec.Struct, frozen=True):
    """Body of every error reply; `instance` is the request id, also in the header X-Request-Id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    errors: list[FieldError] = []


@dataclass
class RequestProblem(Exception):
    """An error that the server itself finds in a request."""

    status: int
    code: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def invalid(message: str, pointer: str = "", *, code: str = "invalid_input") -> RequestProblem:
    """A 422 about one place of the body."""
    return RequestProblem(422, code, message, [FieldError(pointer, message)])


# First match wins, so subclasses stand before their bases. (class, status, code)
_MAPPING: tuple[tuple[type[NestvecError], int, str], ...] = (
    (InvalidRecord, 422, "invalid_record"),
    (EncoderMismatch, 409, "encoder_mismatch"),
    (InvalidInput, 422, "invalid_input"),
    (NotFound, 404, "not_found"),
    (Conflict, 409, "conflict"),
    (Busy, 503, "busy"),
    (OutcomeUnknown, 503, "outcome_unknown"),
    (NoSpace, 507, "no_space"),
    (Damaged, 500, "damaged"),
    (MissingDependency, 501, "missing_dependency"),
    (EncoderUnavailable, 502, "encoder_unavailable"),
)
_ROUTER_CODES = {404: "route_not_found", 405: "method_not_allowed", 400: "malformed_json"}


def from_engine(error: NestvecError) -> RequestProblem:
    """What the client is told about a deliberate error of the engine."""
    status, code = next(((s, c) for kind, s, c in _MAPPING if isinstance(error, kind)), (500, "internal"))
    if status == 500:
        return RequestProblem(status, code, "stored data cannot be read; the server log names the file")
    if isinstance(error, NoSpace):
        return RequestProblem(status, code, "no space is left for this; nothing was changed, and reads go on")
    errors: list[FieldError] = []
    if isinstance(error, InvalidRecord):
        errors = [FieldError(f"/records/{error.position}", _short(error.reason))]
    headers = {"Retry-After": "1"} if status == 503 and isinstance(error, Busy) else {}
    return RequestProblem(status, code, str(error), errors, headers)


def reply(problem: RequestProblem, request_id: str) -> Response:
    """The problem as a response."""
    body = Problem(
        type=f"urn:nestvec:error:{problem.code}",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=_short(problem.detail),
        code=problem.code,
        instance=request_id,
        errors=list(problem.errors[:_MOST_ERRORS]),
    )
    return Response(msgspec.json.encode(body), problem.status, dict(problem.headers), PROBLEM_JSON)


def install(app: FastAPI) -> None:
    """Give the application one shape of error."""
    app.add_exception_handler(RequestProblem, _on_problem)
    app.add_exception_handler(NestvecError, _on_engine_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestProblem)
    return reply(error, request.scope[REQUEST_ID])


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NestvecError)
    request_id = request.scope[REQUEST_ID]
    return reply(logged(error, request_id), request_id)


def logged(error: NestvecError, request_id: str) -> RequestProblem:
    """`from_engine`; what is not the client's fault goes to the log in full."""
    problem = from_engine(error)
    if problem.status >= 500 and not isinstance(error, Busy):
        logger.error("request %s: %s: %s", request_id, type(error).__name__, error)
    return problem


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        problem = RequestProblem(400, "malformed_json", "the body is not valid JSON")
    else:
        errors = [_field_error(fault) for fault in faults[:_MOST_ERRORS]]
        detail = "; ".join(f"{e.pointer}: {e.message}" if e.pointer else e.message for e in errors)
        problem = RequestProblem(422, "invalid_input", detail, errors)
    return reply(problem, request.scope[REQUEST_ID])


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, RequestProblem):  # FastAPI hides what was raised while it read the body
        return reply(error.__cause__, request.scope[REQUEST_ID])
    code = _ROUTER_CODES.get(error.status_code, "http_error")
    detail = {
        400: "the body is not valid JSON",
        404: "no such route; GET /openapi.json lists them",
        405: "this route does not know that method",
    }.get(error.status_code, HTTPStatus(error.status_code).phrase)
    headers = _allowed(request) if error.status_code == 405 else error.headers or {}
    problem = RequestProblem(error.status_code, code, detail, headers=headers)
    return reply(problem, request.scope[REQUEST_ID])


def _allowed(request: Request) -> dict[str, str]:
    """Every method that the path knows; each is a route of its own, and the router names those of the first."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return {"Allow": ", ".join(sorted(found))}


def _field_error(fault: Mapping[str, Any]) -> FieldError:
    """A pydantic fault without the input that it carries."""
    where, *path = fault["loc"]
    message = _short(str(fault["msg"]))
    if fault["type"] == "union_tag_invalid":  # the one message that quotes what came
        message = f"expected {fault['ctx']['discriminator']} to be one of {fault['ctx']['expected_tags']}"
    if where != "body":
        return FieldError("", f"{where} parameter {'.'.join(map(str, path))}: {message}")
    return FieldError(_short("".join("/" + str(p).replace("~", "~0").replace("/", "~1") for p in path)), message)


def _short(text: str) -> str:
    """Bounded and encodable as UTF-8: texts may quote a name that the caller sent."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
