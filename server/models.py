"""Bodies and replies of the routes that are not hot, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from nestvec.engine.chunking import MAX_WORDS, MIN_WORDS, Chunking
from nestvec.engine.filters.declared import MAX_FIELD_CHARACTERS, MAX_FIELDS, FieldType
from nestvec.engine.record import CollectionInfo
from nestvec.engine.schema import MAX_BM25_FIELDS, MAX_DIMS

FieldName = Annotated[str, StringConstraints(max_length=MAX_FIELD_CHARACTERS, pattern=r"^[^.]+(\.[^.]+)*$")]
WordField = Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]
FieldTypes = Annotated[
    dict[FieldName, FieldType], Field(max_length=MAX_FIELDS, json_schema_extra={"additionalProperties": False})
]


class Body(BaseModel):
    """Base of request bodies: unknown keys are errors, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ChunkingBody(Body):
    """Texts become chunks of at most `words` words, of which `overlap` are shared with the chunk before."""

    words: int = Field(default=Chunking.words, ge=MIN_WORDS, le=MAX_WORDS)
    overlap: int = Field(default=Chunking.overlap, ge=0, le=MAX_WORDS // 2, description="At most half of `words`.")


class CollectionBody(Body):
    """A collection to create: `dims`, or an `encoder` that brings its own."""

    dims: int | None = Field(default=None, ge=1, le=MAX_DIMS)
    metric: Literal["cosine", "dot", "l2"] = "cosine"
    granularities: list[int] | None = Field(
        default=None, min_length=1, max_length=64, description="Ascending prefix lengths; the last one is dims."
    )
    dtype: Literal["float32", "float16"] = "float32"
    encoder: str | None = Field(default=None, min_length=1, max_length=1024)
    chunking: ChunkingBody | None = Field(default=None, description="For long documents; needs an encoder.")
    fields: FieldTypes | None = Field(
        default=None, description="Types of payload fields (or arrays of them); a write that differs is refused."
    )
    bm25: bool | None = Field(
        default=None, description="Whether texts can be searched by their words; null: where there is an encoder."
    )
    bm25_fields: list[WordField] = Field(
        default=[],
        max_length=MAX_BM25_FIELDS,
        json_schema_extra={"uniqueItems": True},
        description="Payload fields whose strings are searched by their words too; dots walk into objects.",
    )


class CompactBody(Body):
    """Whether to train a new generation too."""

    retrain: bool = False


class ConfigReply(BaseModel):
    """What is fixed when a collection is created."""

    dims: int
    metric: str
    granularities: list[int]
    dtype: str
    encoder: str | None
    encoder_fingerprint: str | None
    chunking: dict[str, int] | None
    fields: dict[str, str]
    bm25: bool
    bm25_fields: list[str]


class CollectionReply(BaseModel):
    """A collection at one instant: `count` live rows, in rows still `growing` and rows `sealed` into segments."""

    name: str
    config: ConfigReply
    count: int
    growing: int
    sealed: int
    segments: int
    generation: int | None
    index_bytes: int
    route: str | None
    adapted: bool

    @classmethod
    def of(cls, info: CollectionInfo) -> CollectionReply:
        """From the engine's facts."""
        return cls(
            name=info.name,
            config=ConfigReply(**info.config.to_json()),
            count=info.count,
            growing=info.growing,
            sealed=info.sealed,
            segments=info.segments,
            generation=info.generation,
            index_bytes=info.index_bytes,
            route=info.route,
            adapted=info.adapted,
        )


class CollectionsReply(BaseModel):
    """All collections, by name."""

    collections: list[CollectionReply]


class CountReply(BaseModel):
    """Live records."""

    count: int


class SealReply(BaseModel):
    """`rows` moved into `segment` (null: nothing to seal), coded with `generation` (null: none yet)."""

    rows: int
    segment: int | None
    generation: int | None


class CompactReply(BaseModel):
    """`segments_before` became at most one of `rows` rows; `dropped` dead rows are gone."""

    segments_before: int
    rows: int
    dropped: int


class StatusReply(BaseModel):
    """State of the service; "degraded": it serves, but without the collections that `/v1/info` calls damaged."""

    status: Literal["ok", "degraded"] = "ok"


class InfoReply(BaseModel):
    """What runs here. `routes`: how a plan may find first rows; `limits`: settings that a client may run into, null for
    none; the service's process that answered is one of `workers`; `damaged`: collections that cannot be opened, "?"
    where not even the name can be read."""

    name: str
    version: str
    kernels: str
    sqlite: str
    encoders: list[str]
    routes: list[str]
    workers: int
    limits: dict[str, int | float | None]
    damaged: list[str]


class KeyBody(Body):
    """A key to make: what it may do, and the only collections (or aliases) that it may touch; null for all."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    scope: Literal["read", "write", "admin"]
    collections: list[str] | None = Field(default=None, min_length=1, max_length=1000)


class KeyReply(BaseModel):
    """A key without its secret."""

    name: str
    scope: str
    collections: list[str] | None
    created: str


class NewKeyReply(KeyReply):
    """A new key. `secret` is what requests carry; it is shown this once."""

    secret: str


class KeysReply(BaseModel):
    """All keys, by name."""

    keys: list[KeyReply]


class EmbeddingsBody(Body):
    """Texts to turn into vectors, as OpenAI's clients send them. `input_type` is ours: queries and documents may be
    encoded differently."""

    model: str = Field(min_length=1, max_length=256, description="static, or an encoder that a collection here uses.")
    input: str | list[str] = Field(description="One text, or several; none of them empty.", min_length=1)
    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMS, description="A granularity of the encoder.")
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["document", "query"] = "document"
    user: str | None = Field(default=None, description="Ignored.")


class EmbeddingReply(BaseModel):
    """One vector: a list of numbers, or base64 of float32, little-endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class UsageReply(BaseModel):
    """`prompt_tokens`: words of the input, as nestvec has no tokens of its own."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """The vectors in the order of the input, in OpenAI's shape."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingReply]
    usage: UsageReply
