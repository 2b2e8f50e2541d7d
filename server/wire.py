"""The hot bodies and replies, as msgspec structs; the OpenAPI document shows schemas made from these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from nestvec.engine.plan import MAX_K
from nestvec.engine.schema import MAX_DIMS, MAX_ID_BYTES, MAX_PAYLOAD_BYTES, MAX_TEXT_BYTES
from nestvec.index.funnel import StageRows
from nestvec.index.work import StageWork

MAX_DEPTH = 32

# Bounds that only the published schema carries are checked in codec.py or by the engine, with better messages.
Numbers = Annotated[
    list[float],
    Meta(
        description="As many finite float32 numbers as the collection has dims.",
        extra_json_schema={"minItems": 1, "maxItems": MAX_DIMS},
    ),
]
Id = Annotated[
    str,
    Meta(
        description=f"1 to {MAX_ID_BYTES} bytes of UTF-8 without control characters.",
        extra_json_schema={"minLength": 1, "maxLength": MAX_ID_BYTES},
    ),
]
Payload = Annotated[
    dict[str, Any],
    Meta(description=f"JSON object, at most {MAX_PAYLOAD_BYTES} bytes and {MAX_DEPTH} deep; integers fit in 64 bits."),
]
Ids = Annotated[list[Id], Meta(min_length=1)]
K = Annotated[int, Meta(ge=1, le=MAX_K, description="How many hits.")]
RecordText = Annotated[str, Meta(extra_json_schema={"maxLength": MAX_TEXT_BYTES})]
QueryText = Annotated[str, Meta(min_length=1, max_length=32768)]
Keep = Annotated[int, Meta(ge=1, le=1_000_000, description="At most this many rows, and at least k.")]
Margin = Annotated[
    float,
    Meta(ge=0, description="In units of the model's score spread, 1 for unit vectors. Left out: no cut by margin."),
]


class RecordBody(Struct, forbid_unknown_fields=True):
    """A record to write: a vector, or a text that the collection's encoder turns into one, or both."""

    id: Id
    vector: Numbers | None = None
    text: RecordText | None = None
    payload: Payload | None = None


class UpsertBody(Struct, forbid_unknown_fields=True):
    """Records to write; all of them or none."""

    records: Annotated[list[RecordBody], Meta(min_length=1)]


class GetBody(Struct, forbid_unknown_fields=True):
    """Ids to read."""

    ids: Ids
    with_vector: bool = False


class DeleteBody(Struct, forbid_unknown_fields=True):
    """Ids to delete."""

    ids: Ids


class CutBody(Struct, forbid_unknown_fields=True):
    """Keep the best `keep` rows, of those only the ones within `margin` of the k-th best."""

    keep: Keep
    margin: Margin | UnsetType = UNSET


class StageBody(Struct, forbid_unknown_fields=True):
    """One stage of a funnel: score at `dims` of the stored vectors or of their int8 rows, then cut."""

    dims: Annotated[int, Meta(ge=1, le=MAX_DIMS)]
    keep: Keep
    margin: Margin | UnsetType = UNSET
    rows: StageRows = "stored"


class PlanBody(Struct, forbid_unknown_fields=True):
    """How a query is run: where first rows come from, then the cuts and stages of the funnel."""

    route: Literal["exact", "soar"]
    probes: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    probe_margin: Margin | UnsetType = UNSET
    shortlist: CutBody | UnsetType = UNSET
    stages: Annotated[list[StageBody], Meta(max_length=16)] = []
    stage_metric: Literal["partial", "cosine"] = "partial"


class QueryBody(Struct, forbid_unknown_fields=True):
    """One query: exactly one of `vector` and `text`, and at most one of `plan` and `exact`."""

    vector: Numbers | None = None
    text: QueryText | None = None
    k: K = 10
    plan: PlanBody | None = None
    exact: bool = False
    with_payload: bool = True
    with_vector: bool = False


class QueryBatchBody(Struct, forbid_unknown_fields=True):
    """Several queries of one collection."""

    queries: Annotated[list[QueryBody], Meta(min_length=1)]


class UpsertReply(Struct):
    """`count` records are durable; `seq` is the sequence number of the last one."""

    count: int
    seq: int


class DeleteReply(Struct):
    """How many of the ids existed."""

    deleted: int


class RecordReply(Struct):
    """A stored record; `vector` only if asked for."""

    id: str
    payload: dict[str, Any] | None
    text: str | None
    vector: list[float] | UnsetType = UNSET


class GetReply(Struct):
    """The records that exist, in the order asked for; missing ids are absent."""

    records: list[RecordReply]


class HitReply(Struct):
    """A found record; a higher score is better. `vector` only if asked for."""

    id: str
    score: float
    payload: dict[str, Any] | None
    text: str | None
    vector: list[float] | UnsetType = UNSET


class WorkReply(Struct):
    """What a query touched; `micros` per step, `stages` in the order they ran."""

    partitions: int
    codes: int
    rows: int
    bytes: int
    micros: dict[str, float]
    stages: list[StageWork]


class QueryResult(Struct):
    """Answer to one query of a batch."""

    hits: list[HitReply]
    plan: PlanBody
    work: WorkReply
    generation: int | None


class QueryReply(QueryResult):
    """Answer to one query; `took_ms` is the time in the server, without the network."""

    took_ms: float


class QueryBatchReply(Struct):
    """One result per query, in their order."""

    results: list[QueryResult]
    took_ms: float
