"""Between bytes and the engine's values, for the hot routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from nestvec.engine.plan import Plan
from nestvec.engine.record import Hits, Record
from nestvec.server.errors import FieldError, RequestProblem, invalid
from nestvec.server.wire import (
    MAX_DEPTH,
    HitReply,
    PlanBody,
    QueryBody,
    QueryResult,
    RecordBody,
    RecordReply,
    WorkReply,
)

T = TypeVar("T")

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_FAULT = re.compile(r"(?P<message>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def decode(body: bytes, kind: type[T]) -> T:
    """The body as a `kind`; 400 if it is no JSON, 422 with a pointer if it is other JSON."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        where = _not_json(body)
        raise RequestProblem(400, "malformed_json", f"the body is not valid JSON in UTF-8{where}") from None
    except RecursionError:
        raise _too_deep("") from None


def encode(value: msgspec.Struct) -> Response:
    """`value` as a JSON response."""
    return Response(msgspec.json.encode(value, enc_hook=_plain), media_type="application/json")


def check_batch(items: Sequence[object], limit: int, what: str) -> None:
    """422 if a request holds more than `limit` items."""
    if len(items) > limit:
        raise invalid(f"expected at most {limit} {what}, got {len(items)}", f"/{what}")


def to_vector(numbers: list[float], dims: int, pointer: str) -> NDArray[np.float32]:
    """f32 [dims], or 422 saying what was expected and what came."""
    if len(numbers) != dims:
        raise invalid(f"expected a vector of {dims} numbers, got {len(numbers)}", pointer)
    wide = np.asarray(numbers, dtype=np.float64)
    large = np.flatnonzero(np.abs(wide) > _FLOAT32_MAX)
    if large.size:
        raise invalid(f"expected float32 numbers, at most 3.4028235e38 in size; number {large[0]} is larger", pointer)
    return wide.astype(np.float32)


def to_record(body: RecordBody, position: int, dims: int) -> Record:
    """The engine's record; faults of ids, texts and payloads beyond their nesting are found by the engine."""
    pointer = f"/records/{position}"
    if body.vector is None and body.text is None:
        raise invalid("expected a vector or a text, got neither", pointer, code="invalid_record")
    if body.payload is not None:
        _check_payload(body.payload, f"{pointer}/payload")
    vector = None if body.vector is None else to_vector(body.vector, dims, f"{pointer}/vector")
    return Record(body.id, vector, body.payload, body.text)


def check_query(query: QueryBody, pointer: str) -> None:
    """422 unless there is one input and at most one way to run it."""
    if (query.vector is None) == (query.text is None):
        raise invalid("expected exactly one of vector and text", pointer)
    if query.plan is not None and query.exact:
        raise invalid("expected at most one of plan and exact", pointer)


def to_plan(body: PlanBody | None) -> Plan | None:
    """The engine's plan; InvalidInput if its stages do not fit together."""
    if body is None:
        return None
    return Plan.from_json(msgspec.to_builtins(body))


def record_reply(record: Record, with_vector: bool) -> RecordReply:
    """A stored record as it goes out."""
    reply = RecordReply(record.id, record.payload, record.text)
    if with_vector and record.vector is not None:
        reply.vector = record.vector.tolist()
    return reply


def hit_replies(hits: Hits, with_vector: bool) -> list[HitReply]:
    """The hits as they go out."""
    replies = [HitReply(hit.id, float(hit.score), hit.payload, hit.text) for hit in hits.hits]
    if with_vector:
        for reply, hit in zip(replies, hits.hits, strict=True):
            if hit.vector is not None:
                reply.vector = hit.vector.tolist()
    return replies


def query_result(hits: Hits, with_vector: bool) -> QueryResult:
    """The answer to one query as it goes out."""
    work, plan = hits.work, msgspec.convert(hits.plan.to_json(), PlanBody)
    touched = WorkReply(work.partitions, work.codes, work.rows, work.bytes, work.micros, work.stages)
    return QueryResult(hit_replies(hits, with_vector), plan, touched, hits.generation)


def _plain(value: object) -> object:
    """numpy scalars in the engine's counters, as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no JSON for {type(value).__name__}")


def _not_json(body: bytes) -> str:
    if not body:
        return ": it is empty"
    if b"NaN" in body or b"Infinity" in body:
        return ": NaN and Infinity are not JSON"
    return ""


def _invalid(fault: str) -> RequestProblem:
    """A 422 from msgspec's message, its path made a JSON pointer."""
    match = _FAULT.fullmatch(fault)
    message, path = (match["message"], match["path"] or "") if match else (fault, "")
    steps = (name or index for name, index in _STEP.findall(path))
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
    detail = f"{pointer}: {message}" if pointer else message
    return RequestProblem(422, "invalid_input", detail, [FieldError(pointer, message)])


def _check_payload(payload: dict[str, Any], pointer: str) -> None:
    """Level by level, not by recursion: the depth is what is in doubt."""
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        inner: list[Any] = []
        for value in level:
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, dict | list):
                    inner.append(item)
                elif isinstance(item, int) and not -(2**63) <= item < 2**64:
                    raise invalid("expected integers that fit in 64 bits", pointer)
        level = inner
    if level:
        raise _too_deep(pointer)


def _too_deep(pointer: str) -> RequestProblem:
    return invalid(f"expected JSON nested at most {MAX_DEPTH} deep", pointer)
