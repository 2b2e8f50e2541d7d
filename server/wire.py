"""The hot bodies and replies, as msgspec structs; the OpenAPI document shows schemas made from these classes.

One struct serves both formats: what is `bytes` here is base64 in JSON and bin in msgpack.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from nestvec.engine.calibration.points import Source
from nestvec.engine.filters.tree import MAX_CONDITIONS, MAX_IN
from nestvec.engine.filters.tree import MAX_DEPTH as MAX_FILTER_DEPTH
from nestvec.engine.fusion import MAX_DEPTH as MAX_DEPTH_OF_FUSION
from nestvec.engine.fusion import Kind
from nestvec.engine.plan import MAX_K, Route
from nestvec.engine.schema import MAX_DIMS, MAX_ID_BYTES, MAX_PAYLOAD_BYTES, MAX_TEXT_BYTES
from nestvec.index.funnel import StageRows
from nestvec.index.work import StageWork

MAX_DEPTH = 32
MAX_PAGE = 1000

# Bounds that only the published schema carries are checked in codec*.py or by the engine, with better messages.
Numbers = Annotated[
    list[float],
    Meta(
        description="As many finite float32 numbers as the collection has dims.",
        extra_json_schema={"minItems": 1, "maxItems": MAX_DIMS},
    ),
]
Packed = Annotated[
    bytes,
    Meta(
        description="float32 numbers, little-endian, one after the other: base64 in JSON, bin in msgpack.",
        extra_json_schema={"format": "byte", "minLength": 1},
    ),
]
Vector = Numbers | Packed
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
FilterTree = Annotated[
    dict[str, Any],
    Meta(
        description=(
            "A filter: all, any or not over filters, or one condition on a field of the payload. At most "
            f"{MAX_CONDITIONS} conditions, {MAX_FILTER_DEPTH} deep, and {MAX_IN} values after `in`."
        ),
        extra_json_schema={"examples": [{"field": "lang", "eq": "en"}]},
    ),
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
FieldNames = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=64)]
WithPayload = Annotated[
    bool | FieldNames,
    Meta(description="Whether to send payload and text; a list of names sends only these fields of the payload."),
]
VectorEncoding = Annotated[
    Literal["list", "base64"],
    Meta(description="How vectors stand in a JSON reply. In msgpack they are always bin."),
]
Layout = Annotated[
    Literal["rows", "columns"], Meta(description="Hits one by one, or one array for ids, one for scores, and so on.")
]
Rank = Annotated[
    Literal["dense", "bm25", "hybrid"], Meta(description="What orders the hits: the vectors, the words, or both.")
]
Recall = Annotated[
    float, Meta(gt=0, le=1, description="Mean share of the true k best to find, by the cheapest plan that does.")
]
BudgetMs = Annotated[
    float, Meta(gt=0, description="Find as much as a query can in so many milliseconds of one thread, on average.")
]
BudgetBytes = Annotated[float, Meta(gt=0, description="Find as much as a query can that reads so many bytes.")]
TimeoutMs = Annotated[int, Meta(ge=1, le=600_000, description="Answer 504 when it takes longer, in milliseconds.")]


class RecordBody(Struct, forbid_unknown_fields=True):
    """A record to write: a vector, or a text that the collection's encoder turns into one, or both."""

    id: Id
    vector: Vector | None = None
    text: RecordText | None = None
    payload: Payload | None = None


class UpsertBody(Struct, forbid_unknown_fields=True):
    """Records to write, all of them or none: `records` one by one, or columns of equal length beside `ids`.

    The column `vectors` is a list, or the numbers of all vectors packed into one value.
    """

    records: Annotated[list[RecordBody], Meta(min_length=1)] | UnsetType = UNSET
    ids: Ids | UnsetType = UNSET
    vectors: list[Vector | None] | Packed | None = None
    texts: list[RecordText | None] | None = None
    payloads: list[Payload | None] | None = None


class GetBody(Struct, forbid_unknown_fields=True):
    """Ids to read."""

    ids: Ids
    with_vector: bool = False
    vector_encoding: VectorEncoding = "list"


class DeleteBody(Struct, forbid_unknown_fields=True):
    """What to delete: exactly one of `ids` and `filter`."""

    ids: Ids | None = None
    filter: FilterTree | None = None


class CountBody(Struct, forbid_unknown_fields=True):
    """What to count: the records that match `filter`, or all."""

    filter: FilterTree | None = None


class ScrollBody(Struct, forbid_unknown_fields=True):
    """A page of records in the order of their writing; `cursor` is that of the page before."""

    cursor: Annotated[str, Meta(max_length=1024)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100
    filter: FilterTree | None = None
    with_payload: WithPayload = True
    with_vector: bool = False
    vector_encoding: VectorEncoding = "list"


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

    route: Route
    probes: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    probe_margin: Margin | UnsetType = UNSET
    shortlist: CutBody | UnsetType = UNSET
    stages: Annotated[list[StageBody], Meta(max_length=16)] = []
    stage_metric: Literal["partial", "cosine"] = "partial"


class FusionBody(Struct, forbid_unknown_fields=True):
    """How a hybrid search makes one order of two; `weight` is the dense side's share."""

    kind: Kind = "weighted"
    weight: Annotated[float, Meta(ge=0, le=1)] | None = None
    depth: Annotated[int, Meta(ge=1, le=MAX_DEPTH_OF_FUSION)] | None = None
    rrf_k: Annotated[float, Meta(ge=0, le=1_000_000)] = 60.0


class QueryBody(Struct, forbid_unknown_fields=True):
    """One query: exactly one of `vector` and `text`, or with rank hybrid both; at most one of `recall`, `budget_ms`,
    `budget_bytes`, `plan` and `exact`."""

    vector: Vector | None = None
    text: QueryText | None = None
    k: K = 10
    filter: FilterTree | None = None
    rank: Rank = "dense"
    fusion: FusionBody | None = None
    recall: Recall | None = None
    budget_ms: BudgetMs | None = None
    budget_bytes: BudgetBytes | None = None
    plan: PlanBody | None = None
    exact: bool = False
    timeout_ms: TimeoutMs | None = None
    with_payload: WithPayload = True
    with_vector: bool = False
    vector_encoding: VectorEncoding = "list"
    layout: Layout = "rows"


class QueryBatchBody(Struct, forbid_unknown_fields=True):
    """Several queries of one collection."""

    queries: Annotated[list[QueryBody], Meta(min_length=1)]


class UpsertReply(Struct):
    """`count` records are durable; `seq` is the sequence number of the last one."""

    count: int
    seq: int


class DeleteReply(Struct):
    """How many records existed and are gone."""

    deleted: int


class CountReply(Struct):
    """Live records, of those that match."""

    count: int


class RecordReply(Struct, gc=False):
    """A stored record; `vector` only if asked for."""

    id: str
    payload: dict[str, Any] | None
    text: str | None
    vector: Vector | UnsetType = UNSET


class GetReply(Struct):
    """The records that exist, in the order asked for; missing ids are absent."""

    records: list[RecordReply]


class ScrollReply(Struct):
    """A page of records; `cursor` asks for the next one, null after the last."""

    records: list[RecordReply]
    cursor: str | None


class HitReply(Struct, gc=False):
    """A found record; a higher score is better. `vector` only if asked for. With chunking `id` is the best chunk's, and
    `document` its document's; elsewhere `document` is left out."""

    id: str
    score: float
    payload: dict[str, Any] | None
    text: str | None
    vector: Vector | UnsetType = UNSET
    document: str | UnsetType = UNSET


class HitColumns(Struct):
    """The hits as columns; payloads, texts and vectors only if asked for, documents only with chunking. Packed vectors
    stand one after the other."""

    ids: list[str]
    scores: list[float]
    payloads: list[dict[str, Any] | None] | UnsetType = UNSET
    texts: list[str | None] | UnsetType = UNSET
    vectors: list[Numbers] | Packed | UnsetType = UNSET
    documents: list[str] | UnsetType = UNSET


class FilterReply(Struct):
    """What the filter left: how many records match, which share of all that is, and how they were searched ("none":
    there was no filter, and all match)."""

    mode: Literal["none", "scan", "exact"]
    matching: int
    selectivity: float


class WorkReply(Struct):
    """What a query touched; `router`: multiply-adds that chose the lists; `micros` per step, `stages` in the order they
    ran."""

    partitions: int
    codes: int
    rows: int
    bytes: int
    router: int
    micros: dict[str, float]
    stages: list[StageWork]


class BasisReply(Struct):
    """What an estimate rests on: which k and shares of matching rows were measured, on how many `queries` of which
    `source`, when; the floor of a plan is too high with a chance of at most `delta`."""

    ks: list[int]
    selectivities: list[float]
    queries: int
    source: Source
    created: str
    delta: float
    generation: int
    age_seconds: int


class RecallReply(Struct):
    """What the plan promises of the `k` best by vector (for a hybrid search, or with chunking, of the candidates):
    `target` and `estimate` of the mean recall, what these rest on, and why the plan was chosen. `stale`: why they
    should not be trusted any more."""

    k: int | None
    target: float | None
    estimate: float | None
    basis: BasisReply | None
    stale: str | None
    reason: str


class QueryResult(Struct):
    """Answer to one query of a batch; hits stand best first. `plan` is null where words alone were searched, and
    `recall` there and where the caller said how to search."""

    hits: list[HitReply] | HitColumns
    plan: PlanBody | None
    work: WorkReply
    generation: int | None
    filter: FilterReply
    recall: RecallReply | None


class QueryReply(QueryResult, kw_only=True):
    """Answer to one query; `took_ms` is the time in the server, without the network."""

    took_ms: float


class QueryBatchReply(Struct):
    """One result per query, in their order."""

    results: list[QueryResult]
    took_ms: float
