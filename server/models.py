"""Bodies and replies of the routes that are not hot, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nestvec.engine.record import CollectionInfo
from nestvec.engine.schema import MAX_DIMS


class Body(BaseModel):
    """Base of request bodies: unknown keys are errors, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class CollectionBody(Body):
    """A collection to create: `dims`, or an `encoder` that brings its own."""

    dims: int | None = Field(default=None, ge=1, le=MAX_DIMS)
    metric: Literal["cosine", "dot", "l2"] = "cosine"
    granularities: list[int] | None = Field(
        default=None, min_length=1, max_length=64, description="Ascending prefix lengths; the last one is dims."
    )
    dtype: Literal["float32", "float16"] = "float32"
    encoder: str | None = Field(default=None, min_length=1, max_length=256)


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
    """State of the service."""

    status: Literal["ok"] = "ok"


class InfoReply(BaseModel):
    """What runs here."""

    name: str
    version: str
    kernels: str
    sqlite: str
    encoders: list[str]
