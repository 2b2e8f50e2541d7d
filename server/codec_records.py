"""Between the wire's structs and the engine's records: rows, columns, and what is read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestvec.engine.record import Record
from nestvec.errors import InvalidRecord
from nestvec.server.codec import check_batch, to_matrix, to_vector
from nestvec.server.errors import FieldError, RequestProblem, invalid
from nestvec.server.formats import ReplyKind, too_deep
from nestvec.server.wire import MAX_DEPTH, RecordBody, RecordReply, UpsertBody, VectorEncoding


def to_records(body: UpsertBody, dims: int, limit: int) -> list[Record]:
    """The engine's records, from rows or columns; faults of ids, texts and payloads are found by the engine."""
    if isinstance(body.records, list) and not isinstance(body.ids, list):
        _refuse_columns(body)
        check_batch(body.records, limit, "records")
        return [_record(record, position, dims) for position, record in enumerate(body.records)]
    if isinstance(body.records, list) or not isinstance(body.ids, list):
        raise invalid("expected exactly one of records (rows) and ids (with columns beside it)")
    check_batch(body.ids, limit, "ids")
    return _from_columns(body, body.ids, dims)


def record_problem(error: InvalidRecord, pointer: str) -> RequestProblem:
    """The 422 of a record that the engine refuses; `pointer` leads to the array that its position counts."""
    return RequestProblem(422, "invalid_record", str(error), [FieldError(f"{pointer}/{error.position}", error.reason)])


def _refuse_columns(body: UpsertBody) -> None:
    for name in ("vectors", "texts", "payloads"):
        if getattr(body, name) is not None:
            raise invalid(f"expected {name} only beside ids; rows have them inside records", f"/{name}")


def _record(body: RecordBody, position: int, dims: int) -> Record:
    pointer = f"/records/{position}"
    if body.vector is None and body.text is None:
        raise invalid("expected a vector or a text, got neither", pointer, code="invalid_record")
    if body.payload is not None:
        check_payload(body.payload, f"{pointer}/payload")
    vector = None if body.vector is None else to_vector(body.vector, dims, f"{pointer}/vector")
    return Record(body.id, vector, body.payload, body.text)


def _from_columns(body: UpsertBody, ids: Sequence[str], dims: int) -> list[Record]:
    for name in ("vectors", "texts", "payloads"):
        column = getattr(body, name)
        if isinstance(column, list) and len(column) != len(ids):
            raise invalid(f"expected {len(ids)} {name}, one for each id, got {len(column)}", f"/{name}")
    if body.vectors is None and body.texts is None:
        raise invalid("expected vectors or texts beside ids, got neither", code="invalid_record")
    for position, payload in enumerate(body.payloads or ()):
        if payload is not None:
            check_payload(payload, f"/payloads/{position}")
    vectors = _vector_column(body, len(ids), dims)
    texts, payloads = body.texts or [None] * len(ids), body.payloads or [None] * len(ids)
    return [Record(*columns) for columns in zip(ids, vectors, payloads, texts, strict=True)]


def _vector_column(body: UpsertBody, rows: int, dims: int) -> Sequence[Any]:
    if body.vectors is None:
        return [None] * rows
    if isinstance(body.vectors, bytes):
        return list(to_matrix(body.vectors, rows, dims, "/vectors"))
    return [
        None if vector is None else to_vector(vector, dims, f"/vectors/{position}")
        for position, vector in enumerate(body.vectors)
    ]


def record_reply(record: Record, with_vector: bool, encoding: VectorEncoding, kind: ReplyKind) -> RecordReply:
    """A stored record as it goes out."""
    reply = RecordReply(record.id, record.payload, record.text)
    if with_vector and record.vector is not None:
        packed = kind == "msgpack" or encoding == "base64"
        reply.vector = record.vector.astype("<f4", copy=False).tobytes() if packed else record.vector.tolist()
    return reply


def check_payload(payload: dict[str, Any], pointer: str) -> None:
    """422 for what is nested too deep or holds integers beyond 64 bits. Level by level: the depth is in doubt."""
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
        raise too_deep(pointer)
