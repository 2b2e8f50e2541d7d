"""What a search sees: one instant of a collection, immutable, shared by all threads of a process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.points import Calibration
from nestvec.engine.coordinates import PLAIN, Turn
from nestvec.engine.filters.columns import GrowingColumns, SealedColumns
from nestvec.engine.filters.tree import Filter
from nestvec.engine.plan import LIBRARY_ROUTES, ListRoute, Plan, default_plan, filtered_plan, library_plan
from nestvec.engine.planner import Choice, Goal, Scope, choose, without_calibration
from nestvec.engine.recent import Recent
from nestvec.engine.routes import FirstStage, Model, Searcher, lists_of, open_searcher
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage.catalog import State
from nestvec.engine.storage.generation import Generation
from nestvec.engine.storage.segment import Segment
from nestvec.index.ehi.model import EhiModel
from nestvec.index.lists.model import ListModel

Live = NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class SegmentView:
    """A sealed segment at one instant. `live` is bool [rows], None when every row is alive."""

    segment: Segment
    live: Live
    live_rows: int
    first: FirstStage | None
    generation: int | None
    columns: SealedColumns

    def without(self, dead: NDArray[np.int64]) -> SegmentView:
        """The same with these sequence numbers dead too."""
        live, count = kill(self.segment.find(dead)[1], self.live, self.segment.rows)
        return self if live is self.live else replace(self, live=live, live_rows=count)

    def matching(self, connection: apsw.Connection, state: State, filter: Filter) -> SegmentView:
        """The same with only those rows alive that match the filter."""
        live, count = both(self.columns.mask(connection, state, filter), self.live)
        return replace(self, live=live, live_rows=count)


class SealedSegments:
    """The sealed segments at one instant, as searches use them; shared by every snapshot that has the same ones."""

    def __init__(self, views: tuple[SegmentView, ...]) -> None:
        self.views = views
        live = [view for view in views if view.live_rows]
        self.coded = tuple(view for view in live if view.first is not None)
        self.uncoded = tuple(view for view in live if view.first is None)
        self._lock = threading.Lock()
        self._searcher: Searcher | None = None
        self._matching: Recent[Filter, SealedSegments] = Recent()

    @property
    def searcher(self) -> Searcher | None:
        """One searcher over all coded segments, made by the first search that asks; None where there are none."""
        if self._searcher is None and self.coded:
            with self._lock:
                self._searcher = self._searcher or open_searcher(
                    [
                        (view.first, view.segment.vectors, view.segment.seqs, view.live)
                        for view in self.coded
                        if view.first is not None
                    ]
                )
        return self._searcher

    def without(self, dead: NDArray[np.int64]) -> SealedSegments:
        """The same with these sequence numbers dead too."""
        views = tuple(view.without(dead) for view in self.views)
        unchanged = all(new is old for new, old in zip(views, self.views, strict=True))
        return self if unchanged else SealedSegments(views)

    def matching(self, connection: apsw.Connection, state: State, filter: Filter) -> SealedSegments:
        """The same with only those rows alive that match the filter; kept for filters that come again."""
        found = self._matching.get(filter)
        if found is None:
            views = tuple(view.matching(connection, state, filter) for view in self.views)
            found = self._matching.keep(filter, SealedSegments(views))
        return found


@dataclass(frozen=True, eq=False)
class Delta:
    """The growing rows at one instant, in stored form; scanned exactly."""

    seqs: NDArray[np.int64]
    vectors: NDArray[Any]
    norms: NDArray[np.float32] | None
    live: Live
    live_rows: int
    columns: GrowingColumns

    @cached_property
    def alive(self) -> NDArray[np.int64]:
        """The rows that are."""
        return np.arange(len(self.seqs)) if self.live is None else np.flatnonzero(self.live)

    def matching(self, connection: apsw.Connection, state: State, filter: Filter) -> Delta:
        """The same with only those rows alive that match the filter."""
        live, count = both(self.columns.mask(self.seqs, connection, state, filter), self.live)
        return replace(self, live=live, live_rows=count)

    def find(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions in the argument, rows here) of the sequence numbers that are growing rows."""
        if not len(self.seqs) or not len(seqs):
            empty = np.empty(0, np.int64)
            return empty, empty
        rows = np.minimum(np.searchsorted(self.seqs, seqs), len(self.seqs) - 1)
        inside = self.seqs[rows] == seqs
        return np.flatnonzero(inside).astype(np.int64), rows[inside].astype(np.int64)


def kill(rows: NDArray[np.int64], live: Live, total: int) -> tuple[Live, int]:
    """(the mask with these rows dead too, None while all of `total` are alive; how many are alive)."""
    if len(rows):
        live = np.ones(total, np.bool_) if live is None else live.copy()
        live[rows] = False
    return live, total if live is None else int(np.count_nonzero(live))


def both(mask: NDArray[np.bool_], live: Live) -> tuple[Live, int]:
    """(where both hold, in how many rows that is)."""
    live = mask if live is None else mask & live
    return live, int(np.count_nonzero(live))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One instant: `state` tells which. `rows` counts live rows. `whole`: where a filter took its live rows from.
    `choices`: the plans of late, by what they depend on while generation and calibration stay."""

    state: State
    generation: Generation | None
    sealed: SealedSegments
    delta: Delta
    whole: Snapshot | None = None
    calibration: Calibration | None = None
    choices: Recent[tuple[Goal, int, int, bool], Choice] = field(default_factory=Recent)

    @property
    def segments(self) -> tuple[SegmentView, ...]:
        return self.sealed.views

    def matching(self, connection: apsw.Connection, filter: Filter) -> Snapshot:
        """The same instant with only those rows alive that match the filter: what every route searches under it.

        `connection` is in the transaction of this instant. The first filter on a field reads every payload.
        """
        found = self._matching.get(filter)
        if found is None:
            sealed = self.sealed.matching(connection, self.state, filter)
            delta = self.delta.matching(connection, self.state, filter)
            found = self._matching.keep(filter, replace(self, sealed=sealed, delta=delta, whole=self, choices=Recent()))
        return found

    @cached_property
    def _matching(self) -> Recent[Filter, Snapshot]:
        return Recent()

    @property
    def selectivity(self) -> float:
        """The share of the live rows that the filter left; 1 without a filter."""
        return self.rows / self.whole.rows if self.whole is not None and self.whole.rows else 1.0

    @cached_property
    def rows(self) -> int:
        return self.delta.live_rows + sum(view.live_rows for view in self.segments)

    @cached_property
    def scanned(self) -> list[SegmentView | Delta]:
        """The parts that only an exact scan searches: live segments without an index, and growing rows."""
        parts: list[SegmentView | Delta] = [*self.sealed.uncoded, self.delta]
        return [part for part in parts if part.live_rows]

    def live_seqs(self) -> NDArray[np.int64]:
        """Sequence numbers of the live rows, ascending."""
        held = [(view.segment.seqs, view.live) for view in self.segments] + [(self.delta.seqs, self.delta.live)]
        live = [seqs if mask is None else seqs[mask] for seqs, mask in held]
        filled = [seqs for seqs in live if len(seqs)]
        return filled[0] if len(filled) == 1 else np.sort(np.concatenate(live))

    @cached_property
    def seq_mask(self) -> bytes:
        """One byte for each sequence number from 1 on: 1 where it is a live row."""
        mask = np.zeros(self.state.seq, np.uint8)
        mask[self.live_seqs() - 1] = 1
        return mask.tobytes()

    @property
    def turn(self) -> Turn:
        """What vectors go through before they are stored or searched."""
        return self.generation.turn if self.generation else PLAIN

    @property
    def model(self) -> Model | None:
        """The current model; None without a generation, or where its model is damaged."""
        return self.generation.model if self.generation else None

    @property
    def partitions(self) -> int:
        """Partitions of the model, 0 without one."""
        return lists_of(self.model) if self.model else 0

    @property
    def rescore_dims(self) -> int:
        """Dims of the int8 rows, 0 without any."""
        return self.model.config.rescore_dims if isinstance(self.model, ListModel) else 0

    @property
    def list_route(self) -> ListRoute:
        """The route of the model's lists; "soar" without one, for that is what will be trained."""
        return "ehi" if isinstance(self.model, EhiModel) else "soar"

    @property
    def keeps_int8(self) -> bool:
        """Whether a new model should have int8 rows: as the current one, and where there is none, yes."""
        return not isinstance(self.model, ListModel) or self.rescore_dims > 0

    def choose(self, config: CollectionConfig, goal: Goal, k: int) -> Choice:
        """The plan of a query that brings none, and why."""
        asked = goal, k, self.rows, bool(self.sealed.coded)
        return self.choices.get(asked) or self.choices.keep(asked, self._chosen(config, goal, k))

    def _chosen(self, config: CollectionConfig, goal: Goal, k: int) -> Choice:
        rows = self.whole.rows if self.whole is not None else self.rows
        if self.calibration is not None and self.sealed.coded:
            scope = Scope(k, self.rows, rows, config.dims * np.dtype(config.dtype).itemsize)
            return choose(self.calibration, goal, scope)
        return without_calibration(self.default_plan(config, k), goal, k)

    def default_plan(self, config: CollectionConfig, k: int) -> Plan:
        """The plan of a query that brings none, where nothing was measured."""
        rows = self.whole.rows if self.whole is not None else self.rows
        if self.model is not None and self.generation is not None and self.generation.route in LIBRARY_ROUTES:
            plan = library_plan(self.generation.route, rows, self.partitions, k)
        else:
            plan = default_plan(config, rows, self.partitions, self.rescore_dims, k, self.list_route)
        return plan if self.whole is None else filtered_plan(plan, self.partitions, self.rows, rows)
