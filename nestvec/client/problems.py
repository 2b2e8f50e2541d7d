"""From problem+json back to the exception that the engine raised."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

import msgspec

from nestvec.engine.reconfigure import Outdated
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
    NotFound,
    OutcomeUnknown,
    ServiceError,
)

_RECORD = re.compile(r"/records/(\d+)")


class _Fault(msgspec.Struct):
    pointer: str = ""
    message: str = ""


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""
    instance: str = ""
    errors: list[_Fault] = []


def error_of(status: int, content: bytes) -> NestvecError:
    """The error that a reply of `status` stands for; ServiceError where it is the service's own."""
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem(code="", detail=f"the answer is {status} {_phrase(status)}, and not from nestvec")
    if problem.code in ("invalid_record", "invalid_input"):
        return _invalid(problem)
    if problem.code in _KINDS:
        return _KINDS[problem.code](problem)
    detail = f"{problem.detail} (request {problem.instance})" if status >= 500 and problem.instance else problem.detail
    if status == 429:
        return Busy(detail)
    if status in (400, 413, 415, 422):
        return InvalidInput(detail)
    return ServiceError(detail, status, problem.code)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else ""


def _plain(kind: type[NestvecError]) -> Callable[[_Problem], NestvecError]:
    return lambda problem: kind(problem.detail)


def _invalid(problem: _Problem) -> NestvecError:
    """InvalidRecord where one record is at fault. Its id is not told: `with_record` puts it in from the request."""
    for fault in problem.errors:
        if match := _RECORD.match(fault.pointer):
            return InvalidRecord(int(match[1]), None, fault.message)
    return InvalidInput(problem.detail)


def _missing_dependency(problem: _Problem) -> NestvecError:
    error: NestvecError = MissingDependency.__new__(MissingDependency, problem.detail)  # its text is whole already
    return error


_KINDS: dict[str, Callable[[_Problem], NestvecError]] = {
    "encoder_mismatch": _plain(EncoderMismatch),
    "encoder_unavailable": _plain(EncoderUnavailable),
    "not_found": _plain(NotFound),
    "conflict": _plain(Conflict),
    "precondition_failed": _plain(Outdated),
    "busy": _plain(Busy),
    "outcome_unknown": _plain(OutcomeUnknown),
    "damaged": lambda problem: Damaged(f"the service (request {problem.instance})", problem.detail),
    "missing_dependency": _missing_dependency,
}


def with_record(error: InvalidRecord, ids: list[str], start: int) -> InvalidRecord:
    """`error` of a request that held the records `ids`, as an error of an input that had `start` records before."""
    id = ids[error.position] if error.position < len(ids) else None
    return InvalidRecord(start + error.position, id, error.reason)
