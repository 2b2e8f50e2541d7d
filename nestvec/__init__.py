"""nestvec: adaptive-retrieval vector search. Every embedding is stored once and served at every prefix length."""

from nestvec.engine.build import Batch, BuildReport
from nestvec.engine.collection import Collection
from nestvec.engine.database import Database, open
from nestvec.engine.plan import Plan
from nestvec.engine.record import (
    CollectionInfo,
    CompactResult,
    Hit,
    Hits,
    Record,
    SealResult,
    UpsertResult,
)
from nestvec.engine.schema import CollectionConfig
from nestvec.errors import (
    Busy,
    Conflict,
    Damaged,
    DatabaseLocked,
    EncoderMismatch,
    InvalidInput,
    InvalidRecord,
    MissingDependency,
    NestvecError,
    NotFound,
    OutcomeUnknown,
)
from nestvec.index.funnel import Stage
from nestvec.index.work import Work

__all__ = [
    "Batch",
    "BuildReport",
    "Busy",
    "Collection",
    "CollectionConfig",
    "CollectionInfo",
    "CompactResult",
    "Conflict",
    "Damaged",
    "Database",
    "DatabaseLocked",
    "EncoderMismatch",
    "Hit",
    "Hits",
    "InvalidInput",
    "InvalidRecord",
    "MissingDependency",
    "NestvecError",
    "NotFound",
    "OutcomeUnknown",
    "Plan",
    "Record",
    "SealResult",
    "Stage",
    "UpsertResult",
    "Work",
    "open",
]
