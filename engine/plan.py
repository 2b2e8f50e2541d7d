"""A plan says how a query is run: where first rows come from, and the stages of its funnel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from nestvec.errors import InvalidInput
from nestvec.index.funnel import Stage

if TYPE_CHECKING:
    from nestvec.engine.schema import CollectionConfig

Route = Literal["exact", "soar"]
StageMetric = Literal["partial", "cosine"]

MIN_ROWS_FOR_SOAR = 2000
MAX_K = 1000
DEFAULT_CODES = 16_000


@dataclass(frozen=True)
class Plan:
    """A frozen, printable way to run a query.

    `route` "exact" scans every row and ignores the rest. "soar" takes rows from `probes` partitions and narrows them
    stage by stage; every stage keeps at least k rows. `stage_metric` "cosine" divides by the prefix norm.
    """

    route: Route = "exact"
    probes: int = 0
    stages: tuple[Stage, ...] = field(default_factory=tuple)
    stage_metric: StageMetric = "partial"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.route not in get_args(Route):
            raise InvalidInput(f"route must be one of {', '.join(get_args(Route))}; got {self.route!r}")
        if self.stage_metric not in get_args(StageMetric):
            raise InvalidInput(f"stage_metric must be partial or cosine; got {self.stage_metric!r}")
        if not _is_int(self.probes) or self.probes < (1 if self.route == "soar" else 0):
            raise InvalidInput(f"a soar plan probes at least 1 partition, got probes={self.probes!r}")
        self._check_stages()

    def _check_stages(self) -> None:
        if self.route == "soar" and not self.stages:
            raise InvalidInput("a soar plan needs at least one stage, such as Stage(dims=128, keep=200)")
        dims, keep = 0, None
        for stage in self.stages:
            if not _is_int(stage.dims) or not _is_int(stage.keep) or stage.dims <= dims or stage.keep < 1:
                raise InvalidInput(f"stages need ascending dims and keep >= 1; got {self.stages}")
            if keep is not None and stage.keep > keep:
                raise InvalidInput(f"a later stage cannot keep more rows than an earlier one; got {self.stages}")
            dims, keep = stage.dims, stage.keep

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back."""
        stages = [{"dims": stage.dims, "keep": stage.keep} for stage in self.stages]
        return {"route": self.route, "probes": self.probes, "stages": stages, "stage_metric": self.stage_metric}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote; InvalidInput for anything else."""
        unknown = set(data) - {"route", "probes", "stages", "stage_metric"}
        if unknown:
            raise InvalidInput(f"a plan has route, probes, stages and stage_metric; got {sorted(unknown)}")
        try:
            stages = tuple(Stage(item["dims"], item["keep"]) for item in data.get("stages", ()))
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"each stage of a plan is an object with dims and keep: {error!r}") from None
        return cls(data.get("route", "exact"), data.get("probes", 0), stages, data.get("stage_metric", "partial"))


def check_plan(plan: Plan, config: CollectionConfig, k: int) -> None:
    """Raise InvalidInput where a plan does not fit the collection or the number of hits asked for."""
    for stage in plan.stages:
        if stage.dims not in config.granularities:
            raise InvalidInput(f"a stage scores at one of the granularities {config.granularities}; got {stage.dims}")
        if stage.keep < k:
            raise InvalidInput(f"a stage must keep at least k={k} rows; got {stage.keep}")


def default_plan(config: CollectionConfig, rows: int, max_probes: int, k: int) -> Plan:
    """The plan used when none is given: exact while that is cheap, else a funnel aimed at recall@10 above .95.

    `max_probes` is the number of partitions (0: no generation). A fixed share of the partitions is too few in a
    small collection, whose partitions are small and whose codes are cheap to read: there the default scans about
    DEFAULT_CODES of them.
    """
    if max_probes == 0 or rows < MIN_ROWS_FOR_SOAR:
        return Plan("exact")
    probes = max(max_probes / 32, max_probes * DEFAULT_CODES / rows)
    dims = next(g for g in config.granularities if g >= min(config.dims, max(256, config.dims // 2)))
    return Plan("soar", min(max_probes, math.ceil(probes)), (Stage(dims, max(5 * k, 100)),))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
