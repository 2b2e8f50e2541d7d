"""Search, from checked input to hits: which plan, all at one instant, ranked, folded, and watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import apsw
import numpy as np
from numpy.typing import ArrayLike

from nestvec.engine import documents
from nestvec.engine.answers import WithPayload, check_with_payload, filter_report, to_hits, together
from nestvec.engine.coordinates import F32
from nestvec.engine.execute import EXACT, Found, execute
from nestvec.engine.explain import Explanation
from nestvec.engine.filters.tree import Filter
from nestvec.engine.fusion import Fusion
from nestvec.engine.lexical import WordSearch
from nestvec.engine.maintenance import Part
from nestvec.engine.monitor import LiveRecall, RecallMonitor, recall_report, share_found
from nestvec.engine.plan import Plan, check_k, check_plan
from nestvec.engine.planner import NO_GOAL, Choice, Goal
from nestvec.engine.ranking import Rank, Ranking, check_rank
from nestvec.engine.record import Hits
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage.catalog import StoredRecord
from nestvec.engine.storage.records import RecordMemory
from nestvec.errors import InvalidInput


@dataclass(frozen=True)
class Asked:
    """What a search asks for besides its queries; see `Collection.search`."""

    k: int = 10
    filter: Filter | None = None
    goal: Goal = NO_GOAL
    plan: Plan | None = None
    exact: bool = False
    rank: Rank = "dense"
    fusion: Fusion | None = None
    with_payload: WithPayload = True
    with_vector: bool = False

    def check(self, vectors: ArrayLike | None, texts: Sequence[str] | None, config: CollectionConfig) -> None:
        """Raise InvalidInput for what does not fit together, or the collection."""
        check_k(self.k)
        check_with_payload(self.with_payload)
        if (self.plan is not None) + self.exact + (self.goal != NO_GOAL) > 1:
            raise InvalidInput("give at most one of recall, budget_ms, budget_bytes, plan and exact=True")
        if self.plan is not None:
            check_plan(self.plan, config, self.k)
        check_rank(self.rank, self.fusion, vectors, texts, config)

    def seen(self, connection: apsw.Connection, newest: Snapshot) -> Snapshot:
        """What the filter leaves of a snapshot, in whose transaction `connection` is."""
        return newest if self.filter is None else newest.matching(connection, self.filter)

    def choice(self, snapshot: Snapshot, config: CollectionConfig, k: int) -> Choice:
        """The plan that finds k rows by vector, and why: the caller's own, or the planner's."""
        if self.exact:
            return Choice(EXACT, "asked for", estimate=1.0, k=k)
        if self.plan is not None:
            return Choice(self.plan if k == self.k else documents.widened(self.plan, k), "asked for", k=k)
        return snapshot.choose(config, self.goal, k)

    def depth(self, config: CollectionConfig) -> int:
        """How many rows the vectors' side is asked for, at first: more than k where they are candidates."""
        candidates = (self.fusion or Fusion()).candidates
        k = self.k if config.chunking is None else documents.OVERSAMPLE * self.k
        return candidates(k) if self.rank == "hybrid" else k


@dataclass(frozen=True)
class Asking:
    """What searches of one collection need. `monitor` is told of every answer; None: nobody watches."""

    part: Part
    words: WordSearch
    records: RecordMemory
    monitor: RecallMonitor | None

    def search(self, queries: F32 | None, texts: Sequence[str] | None, asked: Asked, encoding: float) -> list[Hits]:
        """Hits for prepared queries f32 [b, dims] (None: words alone); `encoding`: microseconds that theirs took."""
        if queries is not None and asked.filter is None and asked.rank == "dense" and self.part.config.chunking is None:
            known = self._known(queries, asked, encoding)
            if known is not None:
                return known
        with self.part.keeper.current() as (connection, newest):
            snapshot = asked.seen(connection, newest)
            return self._hits(connection, snapshot, queries, texts, asked, encoding)

    def _known(self, queries: F32, asked: Asked, encoding: float) -> list[Hits] | None:
        """The hits where nobody has written since the last search: a transaction, and what is read in it, takes as
        long as a quick search, and is needed only for records that are not in memory. None where somebody has."""
        keeper = self.part.keeper
        snapshot = keeper.glance()
        if snapshot is None:
            return None
        answers = self._dense(snapshot, asked, queries, asked.k)
        seqs = together([found.seqs for found in answers])
        records = self.records.known(seqs)
        if records is None:
            with keeper.current() as (connection, newest):
                if newest.state != snapshot.state:
                    return None
                records = self.records.read(connection, seqs)
        return self._to_hits(records, snapshot, answers, asked, encoding)

    def _hits(
        self,
        connection: apsw.Connection,
        snapshot: Snapshot,
        queries: F32 | None,
        texts: Sequence[str] | None,
        asked: Asked,
        encoding: float,
    ) -> list[Hits]:
        answers = self._answers(connection, snapshot, queries, texts, asked)
        records = self.records.read(connection, together([found.seqs for found in answers]))
        return self._to_hits(records, snapshot, answers, asked, encoding)

    def _to_hits(
        self,
        records: Sequence[StoredRecord],
        snapshot: Snapshot,
        answers: Sequence[Found],
        asked: Asked,
        encoding: float,
    ) -> list[Hits]:
        if encoding:
            for found in answers:
                found.work.add_micros("encode", encoding / len(answers))
        return to_hits(records, snapshot, self.part.config, answers, asked.with_payload, asked.with_vector)

    def _answers(
        self,
        connection: apsw.Connection,
        snapshot: Snapshot,
        queries: F32 | None,
        texts: Sequence[str] | None,
        asked: Asked,
    ) -> list[Found]:
        config = self.part.config
        if asked.rank == "dense" and config.chunking is None and queries is not None:
            return self._dense(snapshot, asked, queries, asked.k)
        dense = partial(self._dense, snapshot, asked)
        ranking = Ranking(asked.rank, asked.fusion or Fusion(), queries, texts, dense, self.words, config)
        find = partial(ranking.find, connection, snapshot)
        if config.chunking is not None:
            return documents.folded(connection, find, len(ranking), asked.k)
        return find(range(len(ranking)), asked.k)

    def _dense(self, snapshot: Snapshot, asked: Asked, queries: F32, k: int) -> list[Found]:
        """The k best rows by vector. What is promised, and watched, is that of these k: they may be candidates."""
        choice = asked.choice(snapshot, self.part.config, k)
        answers = execute(snapshot, self.part.config, queries, k, choice.plan)
        if asked.plan is None and not asked.exact:
            for found in answers:
                found.choice = choice
            if self.monitor is not None:
                self.monitor.offer(queries, k, snapshot, choice, answers)
        return answers

    def explain(self, query: F32 | None, asked: Asked) -> Explanation:
        """Why a search runs as it does; what it does too, where there is a prepared query f32 [1, dims]."""
        with self.part.keeper.current() as (connection, newest):
            snapshot = asked.seen(connection, newest)
            choice = asked.choice(snapshot, self.part.config, asked.depth(self.part.config))
            if query is None:
                return Explanation(asked.k, newest.rows, filter_report(snapshot, choice.plan), choice)
            (hits,) = self._hits(connection, snapshot, query, None, asked, 0.0)
        return Explanation(asked.k, newest.rows, hits.filter, hits.choice or choice, hits.work, hits)

    def measure_recall(self, queries: F32, asked: Asked) -> LiveRecall:
        """Mean recall@k of prepared queries f32 [b, dims], each answered exactly as well. Raises InvalidInput for none.

        With chunking it is that of chunks.
        """
        if not len(queries):
            raise InvalidInput("recall is measured on at least one query, got none")
        with self.part.keeper.current() as (connection, newest):
            snapshot = asked.seen(connection, newest)
            choice = asked.choice(snapshot, self.part.config, asked.k)
            found = execute(snapshot, self.part.config, queries, asked.k, choice.plan)
            truth = execute(snapshot, self.part.config, queries, asked.k, EXACT)
        shares = [share_found(mine.scores, true.scores) for mine, true in zip(found, truth, strict=True)]
        return recall_report(asked.k, snapshot.selectivity, np.array(shares), choice.target)
