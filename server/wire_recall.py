"""Bodies and replies of the routes about recall, as msgspec structs like those of wire.py."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from nestvec.engine.calibration.points import Source
from nestvec.server.wire import (
    BudgetBytes,
    BudgetMs,
    FilterReply,
    FilterTree,
    K,
    PlanBody,
    QueryText,
    Recall,
    RecallReply,
    TimeoutMs,
    Vector,
    WorkReply,
)


class ExplainBody(Struct, forbid_unknown_fields=True):
    """A search by vectors to explain: with a `vector` or a `text` it is run as well, and what each step did is told."""

    vector: Vector | None = None
    text: QueryText | None = None
    k: K = 10
    filter: FilterTree | None = None
    recall: Recall | None = None
    budget_ms: BudgetMs | None = None
    budget_bytes: BudgetBytes | None = None
    plan: PlanBody | None = None
    exact: bool = False
    timeout_ms: TimeoutMs | None = None


class MeasureBody(Struct, forbid_unknown_fields=True):
    """Queries to measure recall with, each answered exactly as well: exactly one of `vectors` and `texts`; at most one
    of `recall` and `plan`."""

    vectors: Annotated[list[Vector], Meta(min_length=1)] | None = None
    texts: Annotated[list[QueryText], Meta(min_length=1)] | None = None
    k: K = 10
    filter: FilterTree | None = None
    recall: Recall | None = None
    plan: PlanBody | None = None


class PointReply(Struct):
    """One plan, measured: mean recall, the `floor` that it is sure to exceed, and its mean cost per query."""

    plan: PlanBody
    recall: float
    floor: float
    micros: float
    bytes: float
    rows: float


class ChoiceReply(RecallReply, kw_only=True):
    """The plan and why. `micros` and `bytes` are expected; `considered` are operating points close to the chosen one,
    most careful first, which stands at position `at` (null: none of them was chosen)."""

    plan: PlanBody
    micros: float | None
    bytes: float | None
    considered: list[PointReply]
    at: int | None


class FoundReply(Struct):
    """A found record, without what is stored with it."""

    id: str
    score: float


class ExplainReply(Struct):
    """Why a search of so many live `rows` runs as it does; `work` and `hits` are null where it was not run."""

    k: int
    rows: int
    filter: FilterReply
    choice: ChoiceReply
    work: WorkReply | None
    hits: list[FoundReply] | None


class MeasuredReply(Struct):
    """Mean recall of `queries` searches of about this `k` and share of matching rows, with its 95 % interval.

    `target` is what they were promised on average, null for nothing; `missed`: the whole interval is below it.
    """

    k: int
    selectivity: float
    queries: int
    recall: float
    low: float
    high: float
    target: float | None
    missed: bool


class LiveRecallReply(Struct):
    """What was found of live searches, by k and selectivity, in the process that answers; empty where nothing was."""

    recall: list[MeasuredReply]


class CurveReply(Struct):
    """The operating points for one `k` and share of rows that pass a filter, costliest first."""

    k: int
    selectivity: float
    queries: int
    points: list[PointReply]


class FrontierReply(Struct):
    """All that calibration measured. `rows`: live rows then; `exact_micros`: what the exact scan takes for a row;
    `seconds`: what it took; `stale`: why it should not be trusted any more."""

    version: int
    created: str
    generation: int
    rows: int
    source: Source
    delta: float
    exact_micros: float
    seconds: float
    stale: str | None
    frontiers: list[CurveReply]
