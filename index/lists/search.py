"""Search posting lists: an index of one segment, and a searcher over the segments of one model.

The work is done by `nestvec.index.kernels`, one call a query; here arrays are brought into its form, checked once,
and its counts are told as `Work`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.funnel import SHORTLIST_FACTOR, FunnelPlan
from nestvec.index.lists.model import ListModel
from nestvec.index.metric import check_stage_metric
from nestvec.index.postings import Postings
from nestvec.index.rescore import RescoreRows
from nestvec.index.selection import Rows, Scores
from nestvec.index.vectors import Vectors, check_allowed, check_query, check_vectors
from nestvec.index.work import StageWork, Work

Mask = npt.NDArray[np.bool_]

_EVERY_ROW = 1 << 40  # a cut that leaves all: more than four billion rows to a segment there cannot be
_LANES = 16  # centroids are padded to a multiple of it
_GROUP = 4  # dims of a centroid that lie together


class ListIndex:
    """One segment's posting lists and rescoring rows under a model."""

    def __init__(self, model: ListModel, postings: Postings, rescore: RescoreRows | None) -> None:
        """`rescore` is None for an index that no int8 stage will ask. Raises InvalidInput where parts do not fit."""
        pairs = (model.codebook.shape[0] + 1) // 2 + (model.metric == "l2")
        if postings.lists != model.config.partitions or postings.codes.shape[1] != pairs:
            raise InvalidInput(
                f"the model has {model.config.partitions} lists of {pairs}-byte codes, "
                f"the postings {postings.lists} of {postings.codes.shape[1]}: assign the rows with this model"
            )
        if rescore is not None:
            _check_rescore(model, postings.n_rows, rescore)
        self.model, self.postings, self.rescore = model, postings, rescore
        self._segment: tuple[Vectors, Rows, kernels.Segment] | None = None
        self._gathered: kernels.GatheredRows | None = None

    @property
    def n_rows(self) -> int:
        """Rows in the segment."""
        return self.postings.n_rows

    @property
    def resident_bytes(self) -> int:
        """Bytes of the posting lists and rescoring rows."""
        return self.postings.nbytes + (self.rescore.nbytes if self.rescore else 0)

    def gather(self) -> None:
        """Copy the rescoring rows into memory, those of a list together; a search does not read the given ones then."""
        if self.rescore is not None:
            lists, extra = self.postings, self.rescore
            self._gathered = kernels.GatheredRows(lists.offsets, lists.counts, lists.rows, extra.codes, extra.bias)

    def segment(self, vectors: Vectors, seqs: Rows, allowed: Mask | None) -> kernels.Segment:
        """What a searcher reads. Checked and made once for the same arrays; another mask costs nothing."""
        held = self._segment
        if held is None or held[0] is not vectors or held[1] is not seqs:
            lists, extra = self.postings, None if self._gathered else self.rescore
            made = kernels.Segment(
                lists.codes,
                lists.offsets,
                lists.counts,
                lists.rows,
                lists.bias_top,
                lists.bias_step,
                extra.codes if extra else None,
                extra.bias if extra else None,
                vectors,
                seqs,
                None,
                self._gathered,
            )
            held = self._segment = (vectors, seqs, made)
        return held[2] if allowed is None else held[2].with_allowed(allowed)


def _check_rescore(model: ListModel, rows: int, rescore: RescoreRows) -> None:
    shape = (rows, model.config.rescore_dims)
    if rescore.codes.dtype != np.uint8 or rescore.codes.shape != shape or not model.config.rescore_dims:
        raise InvalidInput(
            f"the model's rescoring rows are uint8 {shape}, got {rescore.codes.dtype} {rescore.codes.shape}: "
            "make them with this model"
        )
    if (rescore.bias is not None) != (model.metric == "l2") or (
        rescore.bias is not None and (rescore.bias.dtype != np.float32 or rescore.bias.shape != (rows,))
    ):
        raise InvalidInput(f"rescoring rows for metric {model.metric!r} have a bias float32 [{rows}] only for 'l2'")
    if rescore.bias is not None and not np.isfinite(rescore.bias).all():
        raise InvalidInput("the bias of the rescoring rows holds numbers that are not finite")


@dataclass(frozen=True, eq=False, slots=True)
class SearchPart:
    """One segment to search: its index, stored vectors [n, dims], sequence numbers int64 [n], and a mask or None."""

    index: ListIndex
    vectors: Vectors
    seqs: Rows
    allowed: Mask | None


class ListSearcher:
    """Searches the segments of one model as one. Any number of threads may use it at once.

    `native` is what does the work, for loops that check queries themselves and make plans with `native_plan`.
    """

    def __init__(self, parts: Sequence[SearchPart], *, narrowed: int = 0) -> None:
        """Raises InvalidInput for no parts, parts of several models, and arrays that do not fit.

        `narrowed`: with so many threads (0: not) the postings that masks let through are copied together; no answer and
        no count changes, and many searches behind narrow masks are faster.
        """
        if not parts:
            raise InvalidInput("a searcher needs at least one part, got none")
        self.model = parts[0].index.model
        for part in parts:
            _check_part(part, self.model)
        segments = [part.index.segment(part.vectors, part.seqs, part.allowed) for part in parts]
        self._widths = _Widths.of(self.model, parts[0].vectors.dtype.itemsize)
        self.native = kernels.Searcher(native_model(self.model), segments)
        if narrowed:
            self.native = self.native.narrowed(narrowed)

    def search(self, query: npt.NDArray[np.float32], k: int, plan: FunnelPlan) -> tuple[Rows, Scores]:
        """The best min(k, found) rows of float32 [dims]: (seqs, scores), score descending, then seq ascending.

        Scores are exact, accumulated in float64. Raises InvalidInput for a query or plan that cannot be used.
        """
        recipe = self._recipe(k, plan)
        with _refusals():
            return self.native.search(check_query(query, self.model.dims), k, recipe.plan)

    def search_counted(self, query: npt.NDArray[np.float32], k: int, plan: FunnelPlan) -> tuple[Rows, Scores, Work]:
        """`search`, and what it touched and how long each step took."""
        recipe = self._recipe(k, plan)
        with _refusals():
            query = check_query(query, self.model.dims)
            seqs, scores, counts, micros = self.native.search_counted(query, k, recipe.plan)
        return seqs, scores, recipe.work(counts.tolist(), micros.tolist())

    def search_batch(
        self, queries: npt.NDArray[np.float32], k: int, plan: FunnelPlan, threads: int = 1
    ) -> tuple[Rows, Scores, list[Work]]:
        """`search` for float32 [b, dims]: seqs int64 [b, k], -1 where none, and scores float32 [b, k], then -inf."""
        recipe = self._recipe(k, plan)
        with _refusals():
            queries = np.ascontiguousarray(queries, dtype=np.float32)
            seqs, scores, counts = self.native.search_batch(queries, k, recipe.plan, threads)
        return seqs, scores, [recipe.work(each, None) for each in counts.tolist()]

    def count_batch(
        self, queries: npt.NDArray[np.float32], k: int, plan: FunnelPlan, threads: int = 1
    ) -> tuple[Scores, Counts]:
        """`search_batch` for who wants scores and counts alone."""
        recipe = self._recipe(k, plan)
        with _refusals():
            _, scores, counts = self.native.search_batch(queries, k, recipe.plan, threads)
        return scores, recipe.counts(counts)

    def record(
        self, queries: npt.NDArray[np.float32], k: int, plan: FunnelPlan, truth: tuple[Rows, Rows], threads: int = 1
    ) -> Recording:
        """Search for float32 [b, dims] and remember enough to say what every stricter plan would do.

        `truth`: starts int64 [b + 1] and rows int64: those from starts[i] to starts[i + 1] are true neighbours of query
        i, best first, counted through all parts as if they were one. Raises InvalidInput for a model with a router.
        """
        starts, rows = truth
        with _refusals():
            native = self.native.record(queries, k, self._recipe(k, plan).plan, starts, rows, threads)
        return Recording(native, self._recipe, plan)

    def _recipe(self, k: int, plan: FunnelPlan) -> _Recipe:
        return _recipe(plan, k, self._widths, self.model.routing_cost(plan.probes))


@dataclass(frozen=True, eq=False, slots=True)
class Counts:
    """What the searches of a batch touched, int64 each: `codes` [b] summed; `rows` [b, 1 + stages] that came to each
    stage and to the exact end; `hits` [b]; `bytes` [b] read, as in `Work`."""

    codes: Rows
    rows: Rows
    hits: Rows
    bytes: Rows


class Recording:
    """Searches of a batch, recorded: every stricter plan's counts follow without another search."""

    def __init__(
        self, native: kernels.Recording, recipe: Callable[[int, FunnelPlan], _Recipe], plan: FunnelPlan
    ) -> None:
        """Made by `ListSearcher.record`."""
        self._native, self._recipe, self._plan = native, recipe, plan

    def extend(self, other: Recording) -> None:
        """Append the queries of another recording, of the same searcher, k and plan, which is empty afterwards."""
        with _refusals():
            self._native.extend(other._native)

    def covers(self, plan: FunnelPlan) -> bool:
        """Whether the lists that a plan visits are among those recorded."""
        return plan.probes <= self._plan.probes and plan.probe_margin <= self._plan.probe_margin

    def replay(
        self, queries: Rows, k: int, plans: Sequence[FunnelPlan], wanted: Rows, threads: int = 1
    ) -> list[tuple[Rows, Counts]]:
        """What each plan does with some of the recorded queries, given by number, int64 [m], and how many of the first
        `wanted` (int64 [m]) true neighbours of each it finds, int64 [m]: exactly what its own searches would.

        Raises InvalidInput for a plan more generous than the recorded one, or with other stages.
        """
        recipes = [self._recipe(k, plan) for plan in plans]
        with _refusals():
            counts, found = self._native.replay(queries, k, [recipe.plan for recipe in recipes], wanted, threads)
        return [(hits, recipe.counts(each)) for hits, recipe, each in zip(found, recipes, counts, strict=True)]


def _check_part(part: SearchPart, model: ListModel) -> None:
    if part.index.model is not model:
        raise InvalidInput("the parts of a searcher must share one model: code their rows with the same one")
    rows, dims = check_vectors(part.vectors)
    if (rows, dims) != (part.index.n_rows, model.dims):
        raise InvalidInput(f"vectors must have shape {(part.index.n_rows, model.dims)}, got {(rows, dims)}")
    if part.seqs.dtype != np.int64 or part.seqs.shape != (rows,):
        raise InvalidInput(f"seqs must be int64 of shape ({rows},), got {part.seqs.dtype} of {part.seqs.shape}")
    check_allowed(part.allowed, rows)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the kernels refuse is the caller's input."""
    try:
        yield
    except ValueError as error:
        raise InvalidInput(str(error)) from error


_native_models: WeakKeyDictionary[ListModel, kernels.Model] = WeakKeyDictionary()


def native_model(model: ListModel) -> kernels.Model:
    """The model in the form that searches read, made once: centroids as int8, in groups of 4 dims, or the router."""
    made = _native_models.get(model)
    if made is None:
        l2, lists = model.metric == "l2", model.config.partitions
        router = model.native_router()
        codes, scale = _centroid_codes(model.centroids) if router is None else (None, 1.0)
        bias = -np.einsum("ij,ij->i", model.centroids, model.centroids) if l2 else np.zeros(lists, np.float32)
        made = _native_models[model] = kernels.Model(
            l2,
            model.dims,
            codes,
            scale,
            bias,
            model.codebook,
            model.rescore_scale,
            model.spread,
            model.centre,
            router,
        )
    return made


def _centroid_codes(centroids: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], float]:
    """(uint8 [groups, lists, 4], scale): centroid / scale + 128, both ends padded with 128, which stands for zero."""
    lists, dims = centroids.shape
    scale = np.float32(np.abs(centroids).max() / np.float32(127))
    scale = scale if scale > 0 else np.float32(1)
    codes = np.full((-(-lists // _LANES) * _LANES, -(-dims // _GROUP) * _GROUP), 128, np.uint8)
    codes[:lists, :dims] = np.clip(np.rint(centroids / scale), -127, 127) + 128
    return np.ascontiguousarray(codes.reshape(len(codes), -1, _GROUP).transpose(1, 0, 2)), float(scale)


@dataclass(frozen=True, slots=True)
class _Widths:
    """What a model's parts measure: dims, dims that are coded, bytes of a posting and of a stored number."""

    dims: int
    code_dims: int
    posting_bytes: int
    item_bytes: int
    l2: bool

    @classmethod
    def of(cls, model: ListModel, item_bytes: int) -> _Widths:
        l2 = model.metric == "l2"
        posting = (model.codebook.shape[0] + 1) // 2 + l2
        return cls(model.dims, model.config.code_dims, posting, item_bytes, l2)


@dataclass(frozen=True, eq=False, slots=True)
class _Recipe:
    """A plan in the kernels' form, and what turns its counts into `Work`.

    routing: multiply-adds and bytes of choosing lists. steps: the names of what is timed. dims: those of each cut, and
    sizes: the bytes that it reads of each posting or row.
    """

    plan: kernels.Plan
    routing: tuple[int, int]
    steps: tuple[str, ...]
    dims: tuple[int, ...]
    sizes: tuple[int, ...]

    def counts(self, counts: Rows) -> Counts:
        """`counts` [b, 4 + stages] are those of `Searcher.search_batch`."""
        read = self.routing[1] + counts[:, 1:-1] @ np.array(self.sizes, np.int64)
        return Counts(counts[:, 1], counts[:, 2:-1], counts[:, -1], read)

    def work(self, counts: list[int], micros: list[float] | None) -> Work:
        """`counts` and `micros` are those of `Searcher.search_counted`. Every answer pays for this."""
        adds, read = self.routing
        spent = micros[1:] if micros else [0.0] * len(self.dims)
        stages: list[StageWork] = []
        for dims, size, before, after, taken in zip(self.dims, self.sizes, counts[1:], counts[2:], spent, strict=False):
            stages.append({"dims": dims, "in": before, "out": after, "micros": taken, "bytes": before * size})
            read += before * size
        steps = dict(zip(self.steps, micros, strict=False)) if micros else {}
        return Work(counts[0], counts[1], counts[2], read, adds, steps, stages)


@lru_cache(maxsize=256)
def native_plan(plan: FunnelPlan, k: int) -> kernels.Plan:
    """The plan in the form that searches read. k, the hits wanted, sizes the shortlist where the plan does not."""
    keep, margin = _EVERY_ROW, float("inf")
    if plan.shortlist:
        keep, margin = plan.shortlist.keep, plan.shortlist.margin
    elif plan.stages:
        keep = SHORTLIST_FACTOR * max(k, plan.stages[0].keep)
    stages = [(stage.dims, stage.keep, stage.margin, stage.rows == "int8") for stage in plan.stages]
    with _refusals():
        return kernels.Plan(plan.probes, plan.probe_margin, keep, margin, stages, plan.stage_metric == "cosine")


@lru_cache(maxsize=256)
def _recipe(plan: FunnelPlan, k: int, widths: _Widths, routing: tuple[int, int]) -> _Recipe:
    """How to run the plan for k hits. Raises InvalidInput where it does not suit the model."""
    check_stage_metric(plan.stage_metric, "l2" if widths.l2 else "dot")
    sizes, read = [widths.posting_bytes], {"int8": 0, "stored": 0}
    for stage in plan.stages:
        sizes.append((stage.dims - read[stage.rows]) * (1 if stage.rows == "int8" else widths.item_bytes))
        read[stage.rows] = stage.dims
    sizes.append((widths.dims - read["stored"]) * widths.item_bytes)
    return _Recipe(
        native_plan(plan, k),
        routing,
        ("route", "scan", *(f"stage {stage.dims}" for stage in plan.stages), "final"),
        (widths.code_dims, *(stage.dims for stage in plan.stages), widths.dims),
        tuple(sizes),
    )
