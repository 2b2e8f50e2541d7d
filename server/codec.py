"""Between the wire's structs and the engine's values: vectors, filters, queries, hits."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.queries import MOST
from nestvec.engine.calibration.run import LEAST_QUERIES
from nestvec.engine.explain import basis_json
from nestvec.engine.filters.tree import Condition, Filter, Group
from nestvec.engine.fusion import Fusion
from nestvec.engine.plan import Plan
from nestvec.engine.planner import Choice
from nestvec.engine.ranking import Rank
from nestvec.engine.record import Hit, Hits
from nestvec.errors import InvalidInput
from nestvec.server.errors import RequestProblem, invalid
from nestvec.server.formats import JSON_NULL, ReplyKind
from nestvec.server.fragments import Fragments
from nestvec.server.models_admin import CalibrateJob
from nestvec.server.settings import Settings
from nestvec.server.wire import (
    BasisReply,
    HitColumns,
    HitReply,
    PlanBody,
    QueryBody,
    QueryReply,
    QueryResult,
    RecallReply,
)
from nestvec.server.wire_recall import ExplainBody

F32 = NDArray[np.float32]
T = TypeVar("T")

_MOST_PARTS: Final = 256
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class Input(NamedTuple):
    """What a query looks for: a vector f32 [dims], a text, or both."""

    vector: F32 | None
    text: str | None


class Options(NamedTuple):
    """How queries are run: those with equal options on one collection may share a batch."""

    inputs: Literal["vector", "text", "both"]
    k: int
    filter: Filter | None
    rank: Rank
    fusion: Fusion | None
    plan: Plan | None
    exact: bool
    with_payload: bool | tuple[str, ...]
    with_vector: bool
    recall: float | None = None
    budget_ms: float | None = None
    budget_bytes: float | None = None


def check_batch(items: Sequence[object], limit: int, what: str) -> None:
    """422 if a request holds more than `limit` items."""
    if len(items) > limit:
        raise invalid(f"expected at most {limit} {what}, got {len(items)}", f"/{what}")


def to_vector(given: list[float] | bytes, dims: int, pointer: str) -> F32:
    """f32 [dims] of finite numbers, or 422 saying what was expected and what came."""
    if isinstance(given, bytes):
        if len(given) != 4 * dims:
            raise invalid(
                f"expected {4 * dims} bytes, a vector of {dims} float32 numbers, got {_packed_size(given)}", pointer
            )
        vector = np.frombuffer(given, "<f4")
    else:
        if len(given) != dims:
            raise invalid(f"expected a vector of {dims} numbers, got {len(given)}", pointer)
        vector = _narrow(given, pointer)
    finite = np.isfinite(vector)
    if not finite.all():
        position = int(finite.argmin())
        raise invalid(f"expected finite numbers; number {position} is {vector[position]}", pointer)
    return vector


def _narrow(given: list[float], pointer: str) -> F32:
    wide = np.asarray(given, dtype=np.float64)
    large = np.flatnonzero(np.abs(wide) > _FLOAT32_MAX)
    if large.size and np.isfinite(wide[large[0]]):
        raise invalid(f"expected float32 numbers, at most 3.4028235e38 in size; number {large[0]} is larger", pointer)
    return wide.astype(np.float32)


def _packed_size(given: bytes) -> str:
    whole, rest = divmod(len(given), 4)
    return f"{len(given)} bytes" + (", no multiple of 4" if rest else f", {whole} numbers")


def to_matrix(packed: bytes, rows: int, dims: int, pointer: str) -> F32:
    """f32 [rows, dims] from the numbers of all vectors, one after the other; 422 for another size."""
    expected = 4 * rows * dims
    if len(packed) != expected:
        raise invalid(
            f"expected {expected} bytes, {rows} vectors of {dims} float32 numbers, got {_packed_size(packed)}", pointer
        )
    matrix = np.frombuffer(packed, "<f4").reshape(rows, dims)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise invalid(f"expected finite numbers; vector {bad[0]} holds others", pointer)
    return matrix


def calibration_queries(body: CalibrateJob, dims: int) -> F32 | None:
    """The vectors f32 [b, dims] to calibrate with, None for none; 422 for what is none, too few or too many."""
    given, texts = body.vectors, body.texts
    if given is not None and texts is not None:
        raise invalid("expected at most one of vectors and texts")
    if isinstance(given, str):
        packed = _unpacked(given, dims)
        _check_count(len(packed) // (4 * dims), "vectors")
        return to_matrix(packed, len(packed) // (4 * dims), dims, "/vectors")
    if given is not None:
        _check_count(len(given), "vectors")
        return np.stack([to_vector(row, dims, f"/vectors/{i}") for i, row in enumerate(given)])
    if texts is not None:
        _check_count(len(texts), "texts")
    return None


def _unpacked(given: str, dims: int) -> bytes:
    try:
        return b64decode(given, validate=True)
    except ValueError:
        raise invalid(f"expected base64 of vectors of {dims} float32 numbers", "/vectors") from None


def _check_count(count: int, what: str) -> None:
    if not LEAST_QUERIES <= count <= MOST:
        raise invalid(f"expected {LEAST_QUERIES} to {MOST} {what}, got {count}", f"/{what}")


def from_vectors(vectors: F32, as_bytes: bool) -> list[list[float]] | bytes:
    """Vectors [n, dims] as they go out: lists of numbers, or all packed into one value."""
    return vectors.astype("<f4", copy=False).tobytes() if as_bytes else vectors.tolist()


def to_filter(tree: dict[str, Any] | None, settings: Settings, pointer: str) -> Filter | None:
    """The engine's filter, or 422 that points into the tree."""
    if tree is None:
        return None
    try:
        filter = Filter(tree)
    except InvalidInput as error:
        raise _filter_problem(str(error), pointer) from None
    conditions = _conditions(filter.root)
    if conditions > settings.max_filter:
        raise invalid(f"expected a filter of at most {settings.max_filter} conditions, got {conditions}", pointer)
    return filter


def _filter_problem(message: str, pointer: str) -> RequestProblem:
    """The engine says "filter/all/1/eq: expected ..."."""
    place, colon, _ = message.partition(": ")
    inside = place.removeprefix("filter") if colon and place.startswith("filter") and " " not in place else ""
    return invalid(message, pointer + inside)


def _conditions(node: Condition | Group) -> int:
    return 1 if isinstance(node, Condition) else sum(_conditions(part) for part in node.parts)


def to_options(query: QueryBody, settings: Settings, pointer: str) -> Options:
    """How to run the query; 422 unless there is one input, at most one way to run it, and k within the bounds."""
    inputs = _inputs(query, pointer)
    check_one_way(query, pointer)
    check_k(query.k, settings, pointer)
    wanted = query.with_payload
    return Options(
        inputs,
        query.k,
        None if query.filter is None else to_filter(query.filter, settings, pointer + "/filter"),
        query.rank,
        None if query.fusion is None else Fusion.from_json(msgspec.structs.asdict(query.fusion)),
        to_plan(query.plan),
        query.exact,
        wanted if isinstance(wanted, bool) else tuple(wanted),
        query.with_vector,
        query.recall,
        query.budget_ms,
        query.budget_bytes,
    )


def check_one_way(query: QueryBody | ExplainBody, pointer: str) -> None:
    """422 naming them where a query says in more than one way how to search."""
    given = [name for name in ("recall", "budget_ms", "budget_bytes", "plan") if getattr(query, name) is not None]
    given += ["exact"] if query.exact else []
    if len(given) > 1:
        names = "recall, budget_ms, budget_bytes, plan and exact"
        raise invalid(f"expected at most one of {names}, got {' and '.join(given)}", pointer)


def check_k(k: int, settings: Settings, pointer: str) -> None:
    """422 for more hits than the service gives."""
    if k > settings.max_k:
        raise invalid(f"expected k of at most {settings.max_k}, got {k}", pointer + "/k")


def to_plan(body: PlanBody | None) -> Plan | None:
    """The engine's plan; InvalidInput where it is none."""
    return None if body is None else Plan.from_json(msgspec.to_builtins(body))


def _inputs(query: QueryBody, pointer: str) -> Literal["vector", "text", "both"]:
    if query.vector is not None and query.text is not None and query.rank == "hybrid":
        return "both"
    if (query.vector is None) == (query.text is None):
        raise invalid("expected exactly one of vector and text", pointer)
    return "text" if query.vector is None else "vector"


def to_input(query: QueryBody, dims: int, pointer: str) -> Input:
    """What the query looks for, its vector checked."""
    vector = None if query.vector is None else to_vector(query.vector, dims, pointer + "/vector")
    return Input(vector, query.text)


class ReplyParts:
    """What answers have in common, encoded once. It holds what it has met, and is not to be kept for long."""

    def __init__(self, kind: ReplyKind, fragments: Fragments | None = None) -> None:
        """`fragments` may hold records whole; without, each hit is encoded anew."""
        self.kind, self.fragments = kind, fragments
        self._made: dict[int, tuple[object, Any]] = {}  # by the identity of what it was made of, which is held

    def of(self, source: T | None, made: Callable[[T], msgspec.Struct]) -> Any:  # noqa: ANN401 - a struct, encoded
        """`made(source)` encoded, None for None."""
        if source is None:
            return None
        held = self._made.get(id(source))
        if held is None:
            if len(self._made) >= _MOST_PARTS:
                self._made.clear()
            encoder = msgspec.json if self.kind == "json" else msgspec.msgpack
            held = self._made[id(source)] = source, msgspec.Raw(encoder.encode(made(source)))
        return held[1]


def query_reply(hits: Hits, query: QueryBody, parts: ReplyParts, start: float) -> QueryReply:
    """The answer to a query that came in at `start`, of `time.perf_counter`."""
    return QueryReply(*_facts(hits, query, parts), took_ms=since(start))


def query_result(hits: Hits, query: QueryBody, parts: ReplyParts) -> QueryResult:
    """The answer to one query of a batch."""
    return QueryResult(*_facts(hits, query, parts))


def since(start: float) -> float:
    """Milliseconds since then, as replies tell them."""
    return round((perf_counter() - start) * 1000, 3)


def _facts(hits: Hits, query: QueryBody, parts: ReplyParts) -> tuple[Any, ...]:
    """The fields of a `QueryResult`. The engine's reports have those of their replies, and are encoded as they are."""
    kind = parts.kind
    as_bytes = kind == "msgpack" or query.vector_encoding == "base64"
    rows: object
    if query.layout == "columns":
        rows = _columns(hits, query, kind, as_bytes)
    elif parts.fragments is not None and hits.rows is not None and query.with_payload is True:
        rows = parts.fragments.rows(hits.rows)
    else:
        rows = _rows(hits, query, kind, as_bytes)
    plan, recall = parts.of(hits.plan, plan_reply), parts.of(hits.choice, recall_reply)
    return rows, plan, hits.work, hits.generation, hits.filter, recall


def recall_reply(choice: Choice) -> RecallReply:
    """What the choice promises, as it goes out."""
    held = choice.basis
    basis = None if held is None else BasisReply(**basis_json(held))
    return RecallReply(choice.k, choice.target, choice.estimate, basis, choice.stale, choice.reason)


def _rows(hits: Hits, query: QueryBody, kind: ReplyKind, as_bytes: bool) -> list[HitReply]:
    rows = hits.rows
    if rows is not None and kind == "json":
        # The stored payload is JSON: nothing is decoded and encoded again.
        payloads: list[Any] = [None if record[1] == JSON_NULL else msgspec.Raw(record[1]) for record in rows.records]
        return [
            HitReply(record[0], score, payload, record[2])
            for record, score, payload in zip(*rows, payloads, strict=True)
        ]
    if query.with_payload is False:
        replies = [HitReply(hit.id, hit.score, None, None) for hit in hits.hits]
    else:
        replies = [HitReply(hit.id, hit.score, payload_reply(hit, kind), hit.text) for hit in hits.hits]
    for reply, hit in zip(replies, hits.hits, strict=True):
        if hit.document is not None:
            reply.document = hit.document
    if query.with_vector:
        for reply, hit in zip(replies, hits.hits, strict=True):
            if hit.vector is not None:
                reply.vector = hit.vector.astype("<f4", copy=False).tobytes() if as_bytes else hit.vector.tolist()
    return replies


def _columns(hits: Hits, query: QueryBody, kind: ReplyKind, as_bytes: bool) -> HitColumns:
    found = hits.hits
    columns = HitColumns([hit.id for hit in found], [hit.score for hit in found])
    if query.with_payload is not False:
        columns.payloads = [payload_reply(hit, kind) for hit in found]
        columns.texts = [hit.text for hit in found]
    documents = [hit.document for hit in found if hit.document is not None]
    if documents:
        columns.documents = documents
    if query.with_vector:
        vectors = [hit.vector for hit in found if hit.vector is not None]
        columns.vectors = from_vectors(np.stack(vectors) if vectors else np.empty((0, 0), np.float32), as_bytes)
    return columns


def payload_reply(hit: Hit, kind: ReplyKind) -> Any:  # noqa: ANN401 - bytes of JSON stand for the value
    """The payload for the reply: in JSON the stored bytes, which are JSON already."""
    if kind == "msgpack":
        return hit.payload
    stored = hit.payload_json
    return None if stored == JSON_NULL else msgspec.Raw(stored)


def plan_reply(plan: Plan) -> PlanBody:
    """The plan as it goes out."""
    return msgspec.convert(plan.to_json(), PlanBody)
