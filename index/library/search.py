"""What the library routes share: the interfaces of a model and of a segment's index, and a searcher over segments.

A library orders rows by its own estimates, which decide only who becomes a candidate. Candidates are scored again by
the stored vectors, stage by stage and in the end in full, so scores and order are those of every other route.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.funnel import SHORTLIST_FACTOR, FunnelPlan, check_library_plan
from nestvec.index.metric import Metric, check_stage_metric
from nestvec.index.selection import Rows, Scores, top_positions
from nestvec.index.vectors import Vectors, check_allowed, check_query, check_vectors
from nestvec.index.work import Work

Mask = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]

FEW = 10
"""A mask that leaves at most so many rows for each one wanted: all of them are candidates, and nobody is asked."""

MOST_OVERSAMPLING = 10
"""A library that knows no masks is asked for at most so many rows for each one wanted."""

_SLACK = 1.25  # rows asked for beyond the mask's share: the share among the nearest is not the share among all


class Allowed:
    """The rows that a search may return, in the forms that libraries take."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.count = int(np.count_nonzero(mask))

    @cached_property
    def rows(self) -> Rows:
        """The allowed rows, ascending."""
        return np.flatnonzero(self.mask).astype(np.int64)

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The mask as bits, the first row in the lowest bit."""
        return np.packbits(self.mask, bitorder="little")


class LibraryIndex(Protocol):
    """One segment's index."""

    @property
    def model(self) -> LibraryModel:
        """The model that it was made with."""

    @property
    def n_rows(self) -> int:
        """Rows in the segment."""

    @property
    def resident_bytes(self) -> int:
        """About how many bytes of memory the index takes."""

    @property
    def indexed(self) -> bool:
        """False: the segment is too small for the library, and every row of it is a candidate."""

    @property
    def filters(self) -> bool:
        """Whether `nearest` heeds a mask."""

    def nearest(self, query: Float32, count: int, probes: int, allowed: Allowed | None) -> Rows:
        """At most `count` rows for a query f32 [dims], best first by the library's estimate; 1 <= count <= n_rows."""

    def save(self, directory: Path) -> dict[str, Any]:
        """Have the library write its files into an empty directory of the engine's; what `load` must be told.

        Libraries report what the disk refuses as RuntimeError.
        """


class LibraryModel(Protocol):
    """What all segments of a generation share."""

    @property
    def route(self) -> str:
        """The name of the route."""

    @property
    def metric(self) -> Metric:
        """The metric of the stored form."""

    @property
    def dims(self) -> int:
        """Numbers of a stored vector."""

    @property
    def prefix(self) -> int:
        """How many of them the library sees."""

    @property
    def lists(self) -> int:
        """Lists that the library files rows in; 0: it has none."""

    @property
    def graph(self) -> bool:
        """Whether the library walks a graph."""

    def arrays(self) -> tuple[dict[str, Any], Arrays]:
        """(JSON-able facts, arrays) from which the route's `model_from` makes the same model."""

    def assign(self, vectors: Vectors, progress: Callable[[int], None] | None = None) -> LibraryIndex:
        """Index float32|float16 [n, dims]; `progress` is told how many rows are done."""

    def load(self, directory: Path, facts: Mapping[str, Any], rows: int) -> LibraryIndex:
        """The index of `rows` rows that `save` wrote, from a directory whose files the engine has verified."""


class LibraryConfig(Protocol):
    """A route's settings, checked."""

    def to_json(self) -> dict[str, Any]:
        """The settings as they may be given."""

    def train(self, sample: Vectors, metric: Metric, total: int) -> LibraryModel:
        """A model for `total` rows, from a sample float32|float16 [n, dims] of them."""


class LibraryPart:
    """One segment to search: its index, stored vectors [n, dims], sequence numbers int64 [n], and a mask or None."""

    def __init__(self, index: LibraryIndex, vectors: Vectors, seqs: Rows, allowed: Mask | None) -> None:
        rows, dims = check_vectors(vectors)
        if (rows, dims) != (index.n_rows, index.model.dims):
            raise InvalidInput(f"vectors must have shape {(index.n_rows, index.model.dims)}, got {(rows, dims)}")
        if seqs.dtype != np.int64 or seqs.shape != (rows,):
            raise InvalidInput(f"seqs must be int64 of shape ({rows},), got {seqs.dtype} of {seqs.shape}")
        mask = check_allowed(allowed, rows)
        self.index, self.vectors, self.seqs = index, vectors, seqs
        self.allowed = None if mask is None else Allowed(mask)

    @property
    def count(self) -> int:
        """Rows that may be found."""
        return self.index.n_rows if self.allowed is None else self.allowed.count

    def candidates(self, query: Float32, keep: int, probes: int) -> Rows:
        """At most `keep` allowed rows by the library's estimate; a few more where the mask leaves only few."""
        index, allowed = self.index, self.allowed
        if self.count <= (keep if allowed is None else FEW * keep) or not index.indexed:
            return self._every_row()
        if allowed is None:
            return index.nearest(query, keep, probes, None)
        asked = keep
        if not index.filters:
            if self.count * MOST_OVERSAMPLING < index.n_rows:
                return self._every_row()
            asked = min(index.n_rows, math.ceil(_SLACK * keep * index.n_rows / self.count))
        rows = index.nearest(query, asked, probes, allowed if index.filters else None)
        return rows[allowed.mask[rows]][:keep]

    def _every_row(self) -> Rows:
        return np.arange(self.index.n_rows, dtype=np.int64) if self.allowed is None else self.allowed.rows


@dataclass(slots=True)
class _Held:
    """A part's rows that are still in, and what the bands read so far add up to; squares only for cosine stages."""

    part: LibraryPart
    rows: Rows
    sums: Float64 = field(init=False)
    squares: Float64 | None

    def __post_init__(self) -> None:
        self.sums = np.zeros(len(self.rows))

    @property
    def seqs(self) -> Rows:
        return self.part.seqs[self.rows]

    def pick(self, chosen: Mask) -> None:
        """Drop the other rows."""
        self.rows, self.sums = self.rows[chosen], self.sums[chosen]
        self.squares = None if self.squares is None else self.squares[chosen]

    def scores(self) -> Scores:
        """What the stages and the end order by."""
        with np.errstate(over="ignore"):  # beyond float32 is infinity
            if self.squares is None:
                return self.sums.astype(np.float32)
            return (self.sums / np.sqrt(np.where(self.squares == 0.0, 1.0, self.squares))).astype(np.float32)


class LibrarySearcher:
    """Searches the segments of one model as one. Any number of threads may use it at once."""

    def __init__(self, parts: Sequence[LibraryPart]) -> None:
        """Raises InvalidInput for no parts, and parts of several models."""
        if not parts:
            raise InvalidInput("a searcher needs at least one part, got none")
        self.model, self.parts = parts[0].index.model, tuple(parts)
        if any(part.index.model is not self.model for part in parts):
            raise InvalidInput("the parts of a searcher must share one model: index their rows with the same one")

    def search(self, query: Float32, k: int, plan: FunnelPlan) -> tuple[Rows, Scores]:
        """The best min(k, found) rows of float32 [dims]: (seqs, scores), score descending, then seq ascending.

        The plan's probes go to the library (lists visited, or the rows that a graph's walk keeps in view), and it is
        asked for as many rows of each segment as the shortlist keeps. Scores are exact, accumulated in float64.
        Raises InvalidInput for a query or plan that cannot be used.
        """
        return self.search_counted(query, k, plan)[:2]

    def search_counted(self, query: Float32, k: int, plan: FunnelPlan) -> tuple[Rows, Scores, Work]:
        """`search`, and what it touched: no codes are counted, for libraries do not tell."""
        keep = self._checked(k, plan)
        query = check_query(query, self.model.dims)
        clock = _Clock(self.model, sum(part.count for part in self.parts))
        cosine = plan.stage_metric == "cosine"
        held = [_held(part, part.candidates(query, keep, plan.probes), cosine) for part in self.parts if part.count]
        clock.work.partitions = min(plan.probes, self.model.lists) * len(held)
        clock.lap("route", self.model.prefix, held)
        done = 0
        for stage in plan.stages:
            clock.work.bytes += self._add(held, query, done, stage.dims)
            done = stage.dims
            _cut(held, max(k, stage.keep))
            clock.lap(f"stage {done}", done, held)
        for each in held:
            each.squares = None  # the end orders by the score itself
        clock.work.bytes += self._add(held, query, done, self.model.dims)
        seqs, scores = _best(held, k)
        clock.lap("final", self.model.dims, held, len(seqs))
        return seqs, scores, clock.work

    def search_batch(self, queries: Float32, k: int, plan: FunnelPlan) -> tuple[Rows, Scores, list[Work]]:
        """`search` for float32 [b, dims]: seqs int64 [b, k], -1 where none, and scores float32 [b, k], then -inf.

        One query after the other: libraries round batches differently, and an answer depends on its query alone.
        """
        seqs = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        works = []
        for i, query in enumerate(queries):
            found, best, work = self.search_counted(query, k, plan)
            seqs[i, : len(found)], scores[i, : len(found)] = found, best
            works.append(work)
        return seqs, scores, works

    def _checked(self, k: int, plan: FunnelPlan) -> int:
        """The rows to ask each segment for. Raises InvalidInput where the plan does not suit."""
        check_stage_metric(plan.stage_metric, self.model.metric)
        if k < 1:
            raise InvalidInput(f"k must be >= 1, got {k}")
        check_library_plan(plan, self.model.route)
        if plan.stages and plan.stages[-1].dims > self.model.dims:
            raise InvalidInput(f"a stage of {plan.stages[-1].dims} dims is beyond the vectors' {self.model.dims}")
        if plan.shortlist:
            return max(k, plan.shortlist.keep)
        return SHORTLIST_FACTOR * max(k, plan.stages[0].keep) if plan.stages else 1 << 40

    def _add(self, held: list[_Held], query: Float32, lo: int, hi: int) -> int:
        """Add the band lo to hi to every row's score; the bytes read."""
        read = 0
        for each in held:
            vectors = each.part.vectors
            kernels.band_scores(query, vectors, each.rows, lo, hi, self.model.metric, each.sums, each.squares)
            read += len(each.rows) * (hi - lo) * vectors.dtype.itemsize
        return read


def _held(part: LibraryPart, rows: Rows, cosine: bool) -> _Held:
    return _Held(part, rows, np.zeros(len(rows)) if cosine else None)


def _cut(held: list[_Held], keep: int) -> None:
    """Leave the best `keep` rows of all parts in, ties by seq."""
    ends = np.cumsum([len(each.rows) for each in held])
    if not held or ends[-1] <= keep:
        return
    scores = np.concatenate([each.scores() for each in held])
    chosen = np.zeros(len(scores), np.bool_)
    chosen[top_positions(scores, np.concatenate([each.seqs for each in held]), keep)] = True
    for each, mine in zip(held, np.split(chosen, ends[:-1]), strict=True):
        each.pick(mine)


def _best(held: list[_Held], k: int) -> tuple[Rows, Scores]:
    if not held:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    seqs = np.concatenate([each.seqs for each in held])
    scores = np.concatenate([each.scores() for each in held])
    best = top_positions(scores, seqs, k)
    return seqs[best], scores[best]


class _Clock:
    """Counts and times a search's steps."""

    def __init__(self, model: LibraryModel, rows: int) -> None:
        self.work = Work()
        self._left, self._at, self._read = rows, time.perf_counter(), 0

    def lap(self, step: str, dims: int, held: list[_Held], left: int | None = None) -> None:
        """A step is over: it scored by `dims`, and left these rows in."""
        now = time.perf_counter()
        micros, self._at = (now - self._at) * 1e6, now
        left = sum(len(each.rows) for each in held) if left is None else left
        if step == "route":
            self.work.rows = left
        self.work.add_micros(step, micros)
        read, self._read = self.work.bytes - self._read, self.work.bytes
        self.work.stages.append({"dims": dims, "in": self._left, "out": left, "micros": micros, "bytes": read})
        self._left = left
