"""nestvec: adaptive-retrieval vector search. Every embedding is stored once and served at every prefix length."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nestvec.client import AsyncClient, Client
    from nestvec.engine.aliases import AliasSwitch
    from nestvec.engine.backup import SnapshotInfo
    from nestvec.engine.build import BuildReport
    from nestvec.engine.chunking import Chunking
    from nestvec.engine.collection import Collection
    from nestvec.engine.database import Database, open
    from nestvec.engine.export import ExportReport
    from nestvec.engine.filters.tree import Filter
    from nestvec.engine.fusion import Fusion
    from nestvec.engine.intake import Batch
    from nestvec.engine.jobs import Job
    from nestvec.engine.keys import KeyInfo
    from nestvec.engine.plan import Plan
    from nestvec.engine.reader import Reader
    from nestvec.engine.record import (
        CollectionInfo,
        CompactResult,
        FilterReport,
        Hit,
        Hits,
        Page,
        Record,
        SealResult,
        UpsertResult,
    )
    from nestvec.engine.schema import CollectionConfig
    from nestvec.engine.verification import VerifyReport
    from nestvec.errors import (
        Busy,
        Conflict,
        Damaged,
        DatabaseLocked,
        EncoderMismatch,
        EncoderUnavailable,
        InvalidInput,
        InvalidRecord,
        MissingDependency,
        NestvecError,
        NoAnswer,
        NotFound,
        OutcomeUnknown,
        ServiceError,
    )
    from nestvec.index.funnel import Cut, Stage
    from nestvec.index.work import Work

# Names are imported when they are first used: a command that prints its help needs no numpy.
_HOMES = {
    "nestvec.client": "AsyncClient Client",
    "nestvec.engine.aliases": "AliasSwitch",
    "nestvec.engine.backup": "SnapshotInfo",
    "nestvec.engine.build": "BuildReport",
    "nestvec.engine.chunking": "Chunking",
    "nestvec.engine.collection": "Collection",
    "nestvec.engine.database": "Database open",
    "nestvec.engine.export": "ExportReport",
    "nestvec.engine.filters.tree": "Filter",
    "nestvec.engine.fusion": "Fusion",
    "nestvec.engine.intake": "Batch",
    "nestvec.engine.jobs": "Job",
    "nestvec.engine.keys": "KeyInfo",
    "nestvec.engine.plan": "Plan",
    "nestvec.engine.reader": "Reader",
    "nestvec.engine.record": "CollectionInfo CompactResult FilterReport Hit Hits Page Record SealResult UpsertResult",
    "nestvec.engine.schema": "CollectionConfig",
    "nestvec.engine.verification": "VerifyReport",
    "nestvec.errors": "Busy Conflict Damaged DatabaseLocked EncoderMismatch EncoderUnavailable InvalidInput "
    "InvalidRecord MissingDependency NestvecError NoAnswer NoSpace NotFound OutcomeUnknown ServiceError",
    "nestvec.index.funnel": "Cut Stage",
    "nestvec.index.work": "Work",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AliasSwitch",
    "AsyncClient",
    "Batch",
    "BuildReport",
    "Busy",
    "Chunking",
    "Client",
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
    "EncoderUnavailable",
    "ExportReport",
    "Filter",
    "FilterReport",
    "Fusion",
    "Hit",
    "Hits",
    "InvalidInput",
    "InvalidRecord",
    "Job",
    "KeyInfo",
    "MissingDependency",
    "NestvecError",
    "NoAnswer",
    "NoSpace",
    "NotFound",
    "OutcomeUnknown",
    "Page",
    "Plan",
    "Reader",
    "Record",
    "SealResult",
    "ServiceError",
    "SnapshotInfo",
    "Stage",
    "UpsertResult",
    "VerifyReport",
    "Work",
    "open",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'nestvec' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
