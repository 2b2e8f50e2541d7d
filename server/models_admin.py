"""Bodies and replies of aliases, jobs and snapshots, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from nestvec.engine.aliases import MAX_SWITCHES
from nestvec.engine.backup import SnapshotInfo
from nestvec.engine.calibration.queries import MOST
from nestvec.engine.calibration.run import LEAST_QUERIES
from nestvec.engine.jobs import Job
from nestvec.server.models import Body, FieldTypes

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", max_length=63)]


class SwitchBody(Body):
    """Let `alias` name `collection` from now on; null takes the alias away."""

    alias: Name
    collection: Name | None


class SwitchesBody(Body):
    """Switches of aliases: all of them are made at one instant, or none."""

    switches: list[SwitchBody] = Field(min_length=1, max_length=MAX_SWITCHES)


class AliasesReply(BaseModel):
    """Alias -> the collection that it names."""

    aliases: dict[str, str]


class BuildJob(Body):
    """Train an index on what is there: seal, then merge everything under a new generation."""

    kind: Literal["build"]


class SealJob(Body):
    """Write the growing rows out into a segment."""

    kind: Literal["seal"]


class CompactJob(Body):
    """Merge the segments and drop dead rows; with `retrain` under a newly trained generation."""

    kind: Literal["compact"]
    retrain: bool = False


class CalibrateJob(Body):
    """Measure which plans give which recall at which cost; best with real queries, which are kept only until then."""

    kind: Literal["calibrate"]
    vectors: list[list[float]] | Annotated[str, Field(json_schema_extra={"format": "byte"})] | None = Field(
        default=None, description="As lists of numbers, or as base64 of float32, little-endian, one after the other."
    )
    texts: list[str] | None = Field(
        default=None, description=f"Instead of vectors. {LEAST_QUERIES} to {MOST:,} of either; null: asked by itself."
    )


class SnapshotJob(Body):
    """Write the collection, as it is at one instant, into a snapshot; the result names it."""

    kind: Literal["snapshot"]


class ExportJob(Body):
    """Write the records, or those that match `filter`, into a file; GET /v1/jobs/{job}/result downloads it."""

    kind: Literal["export"]
    format: Literal["parquet", "jsonl", "npz", "npy"] = "parquet"
    filter: dict[str, Any] | None = None


JobBody = Annotated[
    BuildJob | SealJob | CompactJob | CalibrateJob | SnapshotJob | ExportJob, Field(discriminator="kind")
]


class ConfigPatch(Body):
    """What may change in a configuration: fields of payloads may be declared. Earlier declarations stay as they are."""

    fields: FieldTypes = Field(min_length=1)


class RestoreBody(Body):
    """The name of the collection to make."""

    name: Name


class ProgressReply(BaseModel):
    """Where a job is: `done` of `total` (null: not known) in `stage`."""

    stage: str
    done: int
    total: int | None


class JobReply(BaseModel):
    """A job. `state` is queued, running, done, failed (`error` says why) or cancelled; `cancel`: it was asked to stop.

    `result` depends on `kind`, and is there once it is done. Times are ISO 8601 in UTC.
    """

    id: int
    kind: str
    collection: str | None
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: ProgressReply | None
    result: dict[str, Any] | None
    error: str | None
    created: str
    finished: str | None
    cancel: bool

    @classmethod
    def of(cls, job: Job) -> JobReply:
        """From the engine's job."""
        progress = None if job.progress is None else ProgressReply(**job.progress)
        return cls(
            id=job.id,
            kind=job.kind,
            collection=job.collection,
            state=job.state,
            progress=progress,
            result=job.result,
            error=job.error,
            created=job.created,
            finished=job.finished,
            cancel=job.cancel,
        )


class JobsReply(BaseModel):
    """The newest jobs, newest first."""

    jobs: list[JobReply]


class SnapshotReply(BaseModel):
    """A snapshot. A `damaged` one has no `rows`; only its head was looked at, every byte is when it is restored."""

    name: str
    collection: str
    created: str
    bytes: int
    rows: int | None
    damaged: bool

    @classmethod
    def of(cls, info: SnapshotInfo) -> SnapshotReply:
        """From the engine's facts; where the file lies is nobody's business."""
        return cls(
            name=info.name,
            collection=info.collection,
            created=info.created,
            bytes=info.bytes,
            rows=info.rows,
            damaged=info.damage is not None,
        )


class SnapshotsReply(BaseModel):
    """All snapshots, by name."""

    snapshots: list[SnapshotReply]
