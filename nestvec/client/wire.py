"""Between the engine's values and the bytes of the API: msgpack, vectors as float32 little-endian."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from nestvec.client.steps import Call, Reply
from nestvec.engine.explain import basis_from
from nestvec.engine.filters.tree import Filter, FilterLike
from nestvec.engine.plan import Plan
from nestvec.engine.planner import Choice
from nestvec.engine.record import CollectionInfo, FilterReport, Hit, Hits, Record, Vector
from nestvec.engine.schema import CollectionConfig
from nestvec.errors import InvalidInput, NestvecError
from nestvec.index.work import Work

T = TypeVar("T")

MSGPACK = "application/msgpack"
_F32_LE = np.dtype("<f4")


def hot(method: str, path: str, body: Mapping[str, Any]) -> Call:
    """A call of a route that reads and writes msgpack; each of them may be repeated."""
    return Call(method, path, pack(body), {"Accept": MSGPACK, "Content-Type": MSGPACK}, repeatable=True)


def call(
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    repeatable: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Call:
    """A call of any other route: with a JSON body, or with none."""
    if body is None:
        return Call(method, path, headers=headers or {}, repeatable=repeatable)
    with _sendable():
        content = msgspec.json.encode(body, enc_hook=_plain)
    return Call(method, path, content, {**(headers or {}), "Content-Type": "application/json"}, repeatable)


def pack(body: object) -> bytes:
    """`body` as msgpack. Raises InvalidInput for what has no form in it."""
    with _sendable():
        return msgspec.msgpack.encode(body, enc_hook=_plain)


@contextmanager
def _sendable() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"this cannot be sent: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no JSON for {type(value).__name__}")


def decode(reply: Reply) -> dict[str, Any]:
    """The object in a reply."""
    packed = reply.headers.get("content-type", "").startswith(MSGPACK)
    try:
        value = (msgspec.msgpack.decode if packed else msgspec.json.decode)(reply.content)
    except msgspec.DecodeError:
        raise NestvecError("the answer is not from nestvec, or is cut short") from None
    if not isinstance(value, dict):
        raise NestvecError(f"the answer is no object but {type(value).__name__}: it is not from nestvec")
    return value


def tree_out(filter: FilterLike) -> Mapping[str, Any]:
    """A filter as its JSON tree; the service checks it."""
    return filter.to_json() if isinstance(filter, Filter) else filter


def query_out(**given: Any) -> dict[str, Any]:  # noqa: ANN401  (the arguments of search, whatever their types)
    """The body of a query without its vector, from the arguments of `search` that were given."""
    body = {key: value for key, value in given.items() if value is not None}
    if "filter" in body:
        body["filter"] = tree_out(body["filter"])
    for key in {"plan", "fusion"} & body.keys():
        body[key] = body[key].to_json()
    return body


def vector_out(vector: ArrayLike) -> bytes:
    """One vector as float32 bytes. Raises InvalidInput for what is no vector of numbers."""
    values = _numbers(vector)
    if values.ndim != 1:
        raise InvalidInput(f"a vector is one row of numbers, got shape {values.shape}")
    return values.tobytes()


def vectors_out(vectors: ArrayLike) -> list[bytes]:
    """The rows of an array [n, dims] as float32 bytes."""
    values = _numbers(vectors)
    if values.ndim != 2:
        raise InvalidInput(f"queries are an array of shape [n, dims], got {values.shape}")
    return [row.tobytes() for row in values]


def _numbers(values: ArrayLike) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, _F32_LE)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a vector holds numbers: {error}") from None


def record_out(record: Record) -> dict[str, Any]:
    """A record as it goes out."""
    body: dict[str, Any] = {"id": record.id}
    if record.vector is not None:
        body["vector"] = vector_out(record.vector)
    if record.text is not None:
        body["text"] = record.text
    if record.payload is not None:
        body["payload"] = record.payload
    return body


def record_in(data: Mapping[str, Any]) -> Record:
    """A record as it came."""
    return Record(data["id"], vector_in(data.get("vector")), data.get("payload"), data.get("text"))


def vector_in(data: bytes | Sequence[float] | None) -> Vector | None:
    """f32 [dims] of its own."""
    if data is None:
        return None
    return np.frombuffer(data, _F32_LE).copy() if isinstance(data, bytes) else np.asarray(data, np.float32)


def hits_in(data: Mapping[str, Any]) -> Hits:
    """The answer to one query."""
    hits = [
        Hit(hit["id"], hit["score"], hit["payload"], hit["text"], vector_in(hit.get("vector")), hit.get("document"))
        for hit in data["hits"]
    ]
    plan = None if data["plan"] is None else Plan.from_json(data["plan"])
    work, filter = known(Work, data["work"]), known(FilterReport, data["filter"])
    recall = data.get("recall")
    choice = None if plan is None or recall is None else _choice_in(plan, recall)
    return Hits(hits, plan, work, data["generation"], filter, choice)


def _choice_in(plan: Plan, data: Mapping[str, Any]) -> Choice:
    """What is promised of a plan. What it was expected to cost and what else was considered, `explain` tells."""
    basis = None if data["basis"] is None else basis_from(data["basis"])
    return Choice(plan, data["reason"], data["target"], data["estimate"], basis=basis, stale=data["stale"], k=data["k"])


def info_in(data: Mapping[str, Any]) -> CollectionInfo:
    """Facts about a collection."""
    return known(CollectionInfo, {**data, "config": CollectionConfig.from_json(data["config"])})


def known(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from the keys that it knows: a newer service may send more."""
    names = {each.name for each in fields(cast(Any, kind))}
    return kind(**{key: value for key, value in data.items() if key in names})
