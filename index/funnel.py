"""The words of a funnel: which lists are visited, the cuts of the shortlist, and the stages that rescore it.

Adaptive / funnel retrieval of Matryoshka embeddings (Kusupati et al., arXiv 2205.13147, section 4.3). Every cut may be
by count, by margin below the k-th best score, or by both: a margin keeps few rows where the answer is clear and many
where it is not, so the depth of the funnel follows the query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from nestvec.errors import InvalidInput
from nestvec.index.metric import StageMetric

StageRows = Literal["stored", "int8"]
"""What a stage reads: the stored vectors, or their int8 prefixes (derived, a fraction of the bytes)."""

SHORTLIST_FACTOR = 4
"""Rows that the codes hand on for each row that stage one keeps, where a plan does not say: codes are coarse."""


def check_margin(margin: float, what: str) -> float:
    """Return the margin as float; it must be >= 0 (infinity: no cut by margin)."""
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or math.isnan(margin) or margin < 0:
        raise InvalidInput(f"{what} must be a number >= 0, got {margin!r}")
    return float(margin)


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep the best `keep` rows, and of those only the ones within `margin` below the k-th best.

    Margins are in units of the model's score spread: |q| times the root mean square length of the training vectors
    for "dot" (1 for unit vectors); for "l2" twice that, both lengths measured from the training mean.
    """

    keep: int
    margin: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1:
            raise InvalidInput(f"keep must be an integer >= 1, got {self.keep!r}")
        object.__setattr__(self, "margin", check_margin(self.margin, "a cut's margin"))


@dataclass(frozen=True, slots=True)
class Stage:
    """Score rows by their first `dims` numbers, then cut: `keep` and `margin` are those of `Cut`.

    `rows` "int8" reads the int8 prefixes, whose scores carry the row's full length over its prefix's length; such
    stages come first. "stored" reads the stored vectors.
    """

    dims: int
    keep: int
    margin: float = math.inf
    rows: StageRows = "stored"

    def __post_init__(self) -> None:
        if isinstance(self.dims, bool) or not isinstance(self.dims, int) or self.dims < 1:
            raise InvalidInput(f"a stage's dims must be an integer >= 1, got {self.dims!r}")
        if self.rows not in get_args(StageRows):
            raise InvalidInput(f"a stage's rows must be one of {', '.join(get_args(StageRows))}; got {self.rows!r}")
        object.__setattr__(self, "margin", Cut(self.keep, self.margin).margin)


@dataclass(frozen=True, slots=True)
class FunnelPlan:
    """How posting lists are searched.

    probes: most lists visited, best first. probe_margin: of those, only lists whose score is within this margin of the
    best list's (units as in `Cut`), and as many more as hold four postings for each hit wanted. shortlist: the cut by
    code estimates; None: SHORTLIST_FACTOR times the keep of the first stage, or every visited row where there is no
    stage. After the stages, survivors are scored in full.
    """

    probes: int
    probe_margin: float = math.inf
    shortlist: Cut | None = None
    stages: tuple[Stage, ...] = field(default_factory=tuple)
    stage_metric: StageMetric = "partial"

    def __post_init__(self) -> None:
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 1:
            raise InvalidInput(f"probes must be an integer >= 1, got {self.probes!r}")
        object.__setattr__(self, "probe_margin", check_margin(self.probe_margin, "probe_margin"))
        object.__setattr__(self, "stages", check_stages(self.stages))
        if self.stage_metric not in get_args(StageMetric):
            raise InvalidInput(f"stage_metric must be partial or cosine; got {self.stage_metric!r}")


def check_library_plan(plan: FunnelPlan, route: str) -> None:
    """Raise InvalidInput for a margin, or a stage over int8 rows: a library's index knows neither."""
    margins = [plan.probe_margin, *(cut.margin for cut in (plan.shortlist, *plan.stages) if cut)]
    if min(margins) < math.inf or any(stage.rows == "int8" for stage in plan.stages):
        raise InvalidInput(
            f"a {route} plan cuts by count alone, and its stages read stored vectors: "
            "leave out margins, and stages over int8 rows"
        )


def check_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages as a tuple: int8 ones first, and dims strictly ascending within each kind."""
    previous: Stage | None = None
    for stage in stages:
        if previous is not None:
            if previous.rows == "stored" and stage.rows == "int8":
                raise InvalidInput("stages over int8 rows come before stages over stored vectors")
            if previous.rows == stage.rows and stage.dims <= previous.dims:
                raise InvalidInput(f"stage dims must ascend, got {[each.dims for each in stages]}")
        previous = stage
    return tuple(stages)
