"""A reader: a collection pinned at one instant, for loops that search and do nothing else."""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestvec.engine.coordinates import prepare_queries, unit_query
from nestvec.engine.execute import execute
from nestvec.engine.maintenance import Part
from nestvec.engine.plan import LIST_ROUTES, Plan, check_int8, check_k, check_plan
from nestvec.engine.planner import NO_GOAL, Goal
from nestvec.engine.storage import catalog
from nestvec.errors import InvalidInput, NestvecError
from nestvec.index import kernels
from nestvec.index.lists.search import ListSearcher, native_plan

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]

_F32: Final = np.dtype(np.float32)
_READ_ROWS = 1000

_Native = tuple[kernels.Searcher, kernels.Plan]
_Choice = tuple[Plan | None, int, _Native | None, int]
"""The plan and k asked for last, how to run them in one native call (None: not possible), and min(k, len)."""


class Reader:
    """A collection as it was when `Collection.reader` made this: make a new one to see later writes.

    Searches give rows and scores as arrays, without ids, payloads or counts of work, in as little time as possible.
    Rows are positions, 0 to len-1, of the live records in the order of their writing: after one build, row i is the
    i-th record that was read. Safe to use from many threads. Close it, or use it as a context manager: while it is
    open, SQLite keeps its log from the reader's instant on, and deleted files their space.
    """

    def __init__(self, part: Part) -> None:
        self._catalog, self._config = part.catalog, part.config
        self._connection, self._snapshot = part.keeper.pin()
        self._unpin = weakref.finalize(self, part.catalog.unpin, self._connection)
        self._lock = threading.Lock()
        self._closed = False
        self._seqs = self._snapshot.live_seqs()
        self._first = int(self._seqs[0]) if len(self._seqs) else 0
        self._contiguous = not len(self._seqs) or int(self._seqs[-1]) - self._first == len(self._seqs) - 1
        self._offset = self._first if self._contiguous else 0
        self._turn, self._cosine = self._snapshot.turn, self._config.metric == "cosine"
        self._as_given = self._turn.plain and not self._cosine
        self._choice: _Choice = (None, 0, None, 0)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Live records at the reader's instant."""
        return len(self._seqs)

    def close(self) -> None:
        """Let go of the instant: searches raise NestvecError from now on. Fine if closed already."""
        self._closed, self._choice = True, (None, 0, None, 0)
        with self._lock:
            self._unpin()

    def plan(self, k: int = 10, *, recall: float | None = None) -> Plan:
        """The plan of a search for k hits that brings none; with `recall` the cheapest that is sure to reach it."""
        check_k(k)
        return self._snapshot.choose(self._config, NO_GOAL if recall is None else Goal(recall), k).plan

    def search(self, vector: ArrayLike, *, k: int = 10, plan: Plan | None = None) -> tuple[Rows, Scores]:
        """The k best rows for one vector [dims]: (rows i64 [m], scores f32 [m]), m = min(k, len), best first.

        Raises InvalidInput as `Collection.search` does. A C-contiguous float32 array takes the shortest way, and so
        does the same plan object again.
        """
        asked, wanted, native, enough = self._choice
        if asked is not plan or wanted != k:
            native, enough = self._choose(plan, k)
        if native is not None and isinstance(vector, np.ndarray) and vector.dtype is _F32:
            try:
                query = vector if self._as_given else self._stored(vector)
                rows, scores = native[0].search(query, k, native[1], self._offset)
            except (TypeError, ValueError):
                pass  # another shape, or not finite: the careful way has the words for it
            else:
                if len(rows) == enough:
                    return (rows if self._contiguous else np.searchsorted(self._seqs, rows)), scores
        if np.ndim(vector) != 1:
            raise InvalidInput(f"a query is one vector of {self._config.dims} numbers, got shape {np.shape(vector)}")
        (answer,) = self._carefully(prepare_queries(np.asarray(vector)[None], self._config), k, plan)
        return answer

    def search_batch(
        self, vectors: ArrayLike, *, k: int = 10, plan: Plan | None = None, threads: int = 1
    ) -> tuple[Rows, Scores]:
        """`search` for many vectors [b, dims]: (rows i64 [b, k], -1 past the last; scores f32 [b, k], there -inf).

        `threads` share the queries among them; the answers are those of single searches.
        """
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise InvalidInput(f"threads must be an integer >= 1, got {threads!r}")
        asked, wanted, native, enough = self._choice
        if asked is not plan or wanted != k:
            native, enough = self._choose(plan, k)
        queries = prepare_queries(vectors, self._config)
        if native is not None:
            searcher, prepared = native
            seqs, scores, _ = searcher.search_batch(self._turn.queries(queries), k, prepared, threads)
            rows = np.where(seqs >= 0, self._positions(seqs), -1)
            short = np.flatnonzero(rows[:, enough - 1] < 0)
        else:
            rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
            short = np.arange(len(queries))
        for i, (found, score) in zip(short, self._carefully(queries[short], k, plan), strict=True):
            rows[i], scores[i] = -1, -np.inf
            rows[i, :enough], scores[i, :enough] = found, score
        return rows, scores

    def ids(self, rows: ArrayLike) -> list[str]:
        """The ids of rows [m], as they were at the reader's instant. Raises InvalidInput for a row that is none."""
        positions = np.asarray(rows)
        wrong = positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu")
        if wrong or ((positions < 0) | (positions >= len(self))).any():
            raise InvalidInput(
                f"rows are whole numbers from 0 to {len(self) - 1}, one after the other; got {rows!r:.100}"
            )
        seqs: list[int] = self._seqs[positions.astype(np.int64)].tolist()
        with self._lock, self._catalog.translated():
            self._check_open()
            blocks = (seqs[start : start + _READ_ROWS] for start in range(0, len(seqs), _READ_ROWS))
            return [id for block in blocks for id, _, _ in catalog.read_records(self._connection, block)]

    def _check_open(self) -> None:
        if self._closed:
            raise NestvecError("this reader is closed; make a new one with Collection.reader()")

    def _choose(self, plan: Plan | None, k: int) -> tuple[_Native | None, int]:
        """Check a plan once, and keep what is needed to run it again."""
        self._check_open()
        check_k(k)
        if plan is not None:
            check_plan(plan, self._config, k)
        chosen = plan or self.plan(k)
        searcher = self._snapshot.sealed.searcher
        native = None
        if chosen.route in LIST_ROUTES and isinstance(searcher, ListSearcher) and not self._snapshot.scanned:
            check_int8(chosen, self._snapshot.rescore_dims)
            native = searcher.native, native_plan(chosen.funnel, k)
        enough = min(k, len(self))
        self._choice = plan, k, native, enough
        return native, enough

    def _stored(self, query: Scores) -> Scores:
        """f32 [dims] as stored vectors are."""
        return self._turn.query(unit_query(query) if self._cosine else query)

    def _carefully(self, queries: Scores, k: int, plan: Plan | None) -> list[tuple[Rows, Scores]]:
        """Any prepared queries [b, dims], as a collection answers them: always min(k, len) rows."""
        if not len(queries):
            return []
        found = execute(self._snapshot, self._config, queries, k, plan or self.plan(k))
        return [(self._positions(answer.seqs), answer.scores) for answer in found]

    def _positions(self, seqs: Rows) -> Rows:
        """Sequence numbers of live records as rows; overwrites them."""
        if self._contiguous:
            seqs -= self._first
            return seqs
        return np.searchsorted(self._seqs, seqs)
