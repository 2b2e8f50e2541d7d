"""A plan says how a query is run: where first rows come from, and the cuts and stages of its funnel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from nestvec.errors import InvalidInput
from nestvec.index.funnel import Cut, FunnelPlan, Stage, check_library_plan
from nestvec.index.metric import StageMetric, check_stage_metric
from nestvec.index.rescore import STEP

if TYPE_CHECKING:
    from nestvec.engine.schema import CollectionConfig

Route = Literal["exact", "soar", "ehi", "faiss", "scann"]
ListRoute = Literal["soar", "ehi"]

LIST_ROUTES: tuple[Route, ...] = get_args(ListRoute)
LIBRARY_ROUTES: tuple[Route, ...] = ("faiss", "scann")
MIN_ROWS_FOR_SOAR = 2000
MAX_K = 1000
WIDER = 3  # times the margins and counts of a plan that found too few rows

# The default funnel. Keeps are (per hit asked for, at least); margins are in units of the model's score spread. They
# found .99 of the true neighbours of a million text vectors; calibration will choose them from measurements instead.
DEFAULT_CODES = 32_000
DEFAULT_PROBE_MARGIN: dict[ListRoute, float] = {"soar": 0.18, "ehi": 8.0}
DEFAULT_SHORTLIST, DEFAULT_SHORTLIST_MARGIN = (40, 1000), 0.075
DEFAULT_FIRST_DIMS, DEFAULT_FIRST_KEEP, DEFAULT_FIRST_MARGIN = 192, (20, 400), 0.05
DEFAULT_LAST_KEEP, DEFAULT_LAST_MARGIN = (8, 150), 0.02
DEFAULT_STORED_KEEP = (5, 100)
DEFAULT_LIBRARY_SHORTLIST, DEFAULT_LEAST_LISTS = (20, 200), 16
FILTERED_CODES_PER_ROW = 80  # a row scored in full takes the time of about a hundred codes, and loses nothing
DEFAULT_FEW = 20  # hits; more of them need most of a shortlist in full, and a stage on the way saves nothing


@dataclass(frozen=True)
class Plan:
    """A frozen, printable way to run a query.

    `route` "exact" scans every row and ignores the rest. "soar" visits at most `probes` partitions, those whose score
    is within `probe_margin` of the best one's; the `shortlist` cuts the rows found there by the estimates of their
    codes (None: four times what the first stage keeps), and the stages narrow them further. What survives is scored in
    full. "ehi" does the same with the leaves of a learned tree: its probe margin is in nats, below the log-probability
    of the best leaf. "faiss" and "scann" ask another library for the rows that the `shortlist` keeps, in each segment:
    `probes` are then the lists or leaves visited, or the rows that a walk over a graph keeps in view. They cut by count
    alone, and their stages read stored vectors. Every cut keeps at least k rows. `stage_metric` "cosine" divides by the
    prefix norm, in stages over stored vectors. Margins are in units of `Cut`; infinite: no cut by margin.
    """

    route: Route = "exact"
    probes: int = 0
    stages: tuple[Stage, ...] = field(default_factory=tuple)
    stage_metric: StageMetric = "partial"
    probe_margin: float = math.inf
    shortlist: Cut | None = None

    def __post_init__(self) -> None:
        if self.route not in get_args(Route):
            raise InvalidInput(f"route must be one of {', '.join(get_args(Route))}; got {self.route!r}")
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 0:
            raise InvalidInput(f"probes must be an integer >= 0, got {self.probes!r}")
        if self.route != "exact" and self.probes < 1:
            raise InvalidInput(f"a {self.route} plan probes at least 1 partition, got probes={self.probes!r}")
        # The funnel checks the rest; a route without probes gets the least that it accepts.
        checked = FunnelPlan(max(1, self.probes), self.probe_margin, self.shortlist, self.stages, self.stage_metric)
        object.__setattr__(self, "_funnel", checked)
        object.__setattr__(self, "stages", checked.stages)
        object.__setattr__(self, "probe_margin", checked.probe_margin)
        if self.route != "exact" and not self.stages and self.shortlist is None:
            raise InvalidInput(f"a {self.route} plan needs a shortlist or a stage, such as Stage(dims=128, keep=200)")
        if self.route in LIBRARY_ROUTES:
            check_library_plan(checked, self.route)
        _check_keeps([*([self.shortlist] if self.shortlist else []), *self.stages])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back. What is infinite or None is left out."""
        plan: dict[str, Any] = {"route": self.route, "probes": self.probes} | _margin("probe_margin", self.probe_margin)
        if self.shortlist is not None:
            plan["shortlist"] = {"keep": self.shortlist.keep} | _margin("margin", self.shortlist.margin)
        plan["stages"] = [
            {"dims": stage.dims, "keep": stage.keep, "rows": stage.rows} | _margin("margin", stage.margin)
            for stage in self.stages
        ]
        return plan | {"stage_metric": self.stage_metric}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote; InvalidInput for anything else."""
        _check_keys("a plan", data, ("route", "probes", "probe_margin", "shortlist", "stages", "stage_metric"))
        try:
            stages = tuple(
                Stage(**_fields("a stage", item, ("dims", "keep", "margin", "rows"))) for item in data.get("stages", ())
            )
            cut = data.get("shortlist")
            shortlist = None if cut is None else Cut(**_fields("a shortlist", cut, ("keep", "margin")))
        except TypeError as error:
            raise InvalidInput(f"a plan's stages have dims and keep, its shortlist has keep: {error}") from None
        given = {name: data[name] for name in ("route", "probes", "stage_metric", "probe_margin") if name in data}
        return cls(**given, stages=stages, shortlist=shortlist)

    @property
    def funnel(self) -> FunnelPlan:
        """What the index needs to know of a plan."""
        funnel: FunnelPlan = self.__dict__["_funnel"]
        return funnel

    @property
    def int8_dims(self) -> int:
        """The most dims that a stage reads of the int8 rows; 0 where none does."""
        return max((stage.dims for stage in self.stages if stage.rows == "int8"), default=0)


def _margin(name: str, margin: float) -> dict[str, float]:
    return {} if math.isinf(margin) else {name: margin}


def _check_keeps(cuts: list[Cut | Stage]) -> None:
    keeps = [cut.keep for cut in cuts]
    if keeps != sorted(keeps, reverse=True):
        raise InvalidInput(f"a later cut cannot keep more rows than an earlier one; got keeps {keeps}")


def _fields(what: str, item: object, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise InvalidInput(f"{what} of a plan is an object with {', '.join(names)}; got {item!r}")
    _check_keys(what, item, names)
    return dict(item)


def _check_keys(what: str, data: Mapping[str, Any], names: tuple[str, ...]) -> None:
    unknown = set(data) - set(names)
    if unknown:
        raise InvalidInput(f"{what} has {', '.join(names)}; got {', '.join(sorted(map(str, unknown)))}")


def check_k(k: int) -> None:
    """Raise InvalidInput for a number of hits that no query may ask for."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise InvalidInput(f"k must be an integer from 1 to {MAX_K}, got {k!r}")


def check_plan(plan: Plan, config: CollectionConfig, k: int) -> None:
    """Raise InvalidInput where a plan does not fit the collection or the number of hits asked for."""
    check_stage_metric(plan.stage_metric, config.index_metric)
    if plan.shortlist is not None and plan.shortlist.keep < k:
        raise InvalidInput(f"a shortlist must keep at least k={k} rows; got {plan.shortlist.keep}")
    for stage in plan.stages:
        if stage.keep < k:
            raise InvalidInput(f"a stage must keep at least k={k} rows; got {stage.keep}")
        if stage.rows == "stored" and stage.dims not in config.granularities:
            raise InvalidInput(f"a stage scores at one of the granularities {config.granularities}; got {stage.dims}")
        if stage.rows == "int8" and stage.dims % STEP:
            raise InvalidInput(f"a stage over int8 rows reads a multiple of {STEP} dims; got {stage.dims}")


def check_int8(plan: Plan, rescore_dims: int) -> None:
    """Raise InvalidInput where a plan reads more of the int8 rows than the index holds (`rescore_dims`, 0: none)."""
    if plan.int8_dims > rescore_dims:
        held = f"int8 rows of {rescore_dims} dims" if rescore_dims else "no int8 rows (it was built without them)"
        raise InvalidInput(
            f"a stage reads {plan.int8_dims} dims of the int8 rows; this collection's index has {held}: "
            "use fewer dims, or stages over stored vectors"
        )


@lru_cache(maxsize=1024)
def default_plan(
    config: CollectionConfig, rows: int, partitions: int, rescore_dims: int, k: int, route: ListRoute = "soar"
) -> Plan:
    """The plan used when none is given: exact while that is cheap, else a funnel aimed at recall@10 above .95.

    `partitions` are those of the model (0: no generation), `rescore_dims` the dims of its int8 rows (0: none). A fixed
    share of the partitions is too few in a small collection, whose partitions are small and whose codes are cheap to
    read: there the default scans about DEFAULT_CODES of them.
    """
    if partitions == 0 or rows < MIN_ROWS_FOR_SOAR:
        return Plan("exact")
    probes = min(partitions, math.ceil(max(partitions / 16, partitions * DEFAULT_CODES / rows)))
    shortlist = Cut(_keep(k, DEFAULT_SHORTLIST), DEFAULT_SHORTLIST_MARGIN)
    stages = _int8_stages(rescore_dims, k) if rescore_dims else (_stored_stage(config, k),)
    return Plan(route, probes, stages, probe_margin=DEFAULT_PROBE_MARGIN[route], shortlist=shortlist)


@lru_cache(maxsize=1024)
def library_plan(route: str, rows: int, lists: int, k: int) -> Plan:
    """`default_plan` for the index of a library with so many lists (0: a graph, or neither): more stages than the
    library's estimates and the whole vectors saved nothing."""
    if rows < MIN_ROWS_FOR_SOAR:
        return Plan("exact")
    keep = _keep(k, DEFAULT_LIBRARY_SHORTLIST)
    probes = min(lists, max(DEFAULT_LEAST_LISTS, math.ceil(lists / 16))) if lists else min(keep, rows)
    return Plan(cast(Route, route), probes, shortlist=Cut(keep))


def wider(plan: Plan) -> Plan:
    """The plan for a query that found too few rows: the same steps, far less strict."""
    cut = plan.shortlist
    return replace(
        plan,
        probes=plan.probes if math.isfinite(plan.probe_margin) else WIDER * plan.probes,
        probe_margin=WIDER * plan.probe_margin,
        shortlist=None if cut is None else replace(cut, keep=WIDER * cut.keep, margin=WIDER * cut.margin),
        stages=tuple(replace(stage, keep=WIDER * stage.keep, margin=WIDER * stage.margin) for stage in plan.stages),
    )


def filtered_plan(plan: Plan, partitions: int, matching: int, rows: int) -> Plan:
    """A plan for `rows` rows, made for a filter that `matching` of them pass: wider, or exact where that is as cheap.

    `partitions`: lists of the index (0: a graph, or neither). What matches may lie in lists far from the best: more
    lists are visited than rows fall away, and the margin grows faster still. So a filter for one topic, whose rows lie
    together and away from the query, is answered about as well as one that takes rows anywhere.
    """
    if plan.route == "exact" or not matching:
        return Plan("exact")
    factor = rows / matching
    probes = min(partitions or rows, math.ceil(plan.probes * factor**1.5))
    touched = rows * probes / partitions / FILTERED_CODES_PER_ROW if partitions else probes
    if matching <= touched:
        return Plan("exact")
    return replace(plan, probes=probes, probe_margin=plan.probe_margin * factor**4)


def _int8_stages(rescore_dims: int, k: int) -> tuple[Stage, ...]:
    last = Stage(rescore_dims, _keep(k, DEFAULT_LAST_KEEP), DEFAULT_LAST_MARGIN, "int8")
    if rescore_dims <= DEFAULT_FIRST_DIMS or k > DEFAULT_FEW:
        return (last,)
    return Stage(DEFAULT_FIRST_DIMS, _keep(k, DEFAULT_FIRST_KEEP), DEFAULT_FIRST_MARGIN, "int8"), last


def _stored_stage(config: CollectionConfig, k: int) -> Stage:
    dims = next(g for g in config.granularities if g >= min(config.dims, max(256, config.dims // 2)))
    return Stage(dims, _keep(k, DEFAULT_STORED_KEEP))


def _keep(k: int, rule: tuple[int, int]) -> int:
    per_hit, least = rule
    return max(per_hit * k, least)
