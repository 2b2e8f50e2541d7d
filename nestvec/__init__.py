"""nestvec: adaptive-retrieval vector search. Every embedding is stored once and served at every prefix length."""

from nestvec.engine.build import BuildReport
from nestvec.engine.collection import Collection
from nestvec.engine.database import Database, open
from nestvec.engine.intake import Batch
from nestvec.engine.plan import Plan
from nestvec.engine.reader import Reader
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
from nestvec.index.funnel import Cut, Stage
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
    "Cut",
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
    "Reader",
    "Record",
    "SealResult",
    "Stage",
    "UpsertResult",
    "Work",
    "open",
]
