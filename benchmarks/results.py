"""The results database: raw answers first; every figure is computed from it afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from nestvec.benchmarks.systems import Answers, BuildInfo, Setting

SCHEMA = """
-- One run of `nestvec bench`. A results directory keeps all of its runs; reports show the last one.
CREATE TABLE IF NOT EXISTS run(
    id        INTEGER PRIMARY KEY,
    started   TEXT NOT NULL,      -- UTC, ISO 8601
    base      TEXT NOT NULL,      -- path of the vectors searched
    queries   TEXT NOT NULL,      -- path of the query vectors
    metric    TEXT NOT NULL,      -- cosine, dot or l2
    n         INTEGER NOT NULL,   -- rows searched, after --limit-rows
    dims      INTEGER NOT NULL,
    n_queries INTEGER NOT NULL,   -- after --limit-queries
    k         INTEGER NOT NULL,
    threads   INTEGER NOT NULL,   -- of OpenMP, BLAS and faiss, in building and searching
    machine   TEXT NOT NULL       -- JSON: cpu, cores, kernels, versions
) STRICT;

-- What an answer must reach to count as found.
CREATE TABLE IF NOT EXISTS truth(
    run       INTEGER NOT NULL REFERENCES run(id),
    query     INTEGER NOT NULL,   -- row number in the query file
    kth_score REAL NOT NULL,      -- score of the k-th true neighbour, higher is better
    PRIMARY KEY (run, query)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS build(
    run         INTEGER NOT NULL REFERENCES run(id),
    system      TEXT NOT NULL,
    build_s     REAL NOT NULL,    -- wall seconds
    index_bytes INTEGER NOT NULL, -- bytes kept on disk, vectors included
    PRIMARY KEY (run, system)
) STRICT, WITHOUT ROWID;

-- One setting of one system, in the order measured.
CREATE TABLE IF NOT EXISTS setting(
    id       INTEGER PRIMARY KEY,
    run      INTEGER NOT NULL REFERENCES run(id),
    system   TEXT NOT NULL,
    setting  TEXT NOT NULL,       -- JSON
    peak_rss INTEGER NOT NULL     -- bytes: highest resident size of the system's process so far, build included
) STRICT;

-- The raw answer to one query.
CREATE TABLE IF NOT EXISTS answer(
    setting     INTEGER NOT NULL REFERENCES setting(id),
    query       INTEGER NOT NULL,
    neighbours  BLOB NOT NULL,    -- k int64 little-endian row numbers, best first, -1: none
    seconds     REAL NOT NULL,    -- wall time of this query alone
    rows_scored INTEGER NOT NULL, -- vectors touched
    bytes_read  INTEGER NOT NULL, -- bytes of codes and vectors touched
    PRIMARY KEY (setting, query)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Measured:
    """One setting's raw results, read back."""

    system: str
    setting: Setting
    peak_rss: int
    build: BuildInfo
    answers: Answers


class Results:
    """One results.sqlite; use as a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = apsw.Connection(str(path))
        self._connection.set_busy_timeout(10_000)
        self._connection.execute(SCHEMA)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add_run(self, facts: dict[str, Any], kth_scores: np.ndarray) -> int:
        """Record a run (keys: the columns of `run`) and its truth; returns its id."""
        columns = ", ".join(facts)
        marks = ", ".join(f":{name}" for name in facts)
        with self._connection:
            self._connection.execute(f"INSERT INTO run({columns}) VALUES ({marks})", facts)
            run = self._connection.last_insert_rowid()
            rows = [(run, query, float(score)) for query, score in enumerate(kth_scores)]
            self._connection.executemany("INSERT INTO truth VALUES (?, ?, ?)", rows)
        return run

    def add_build(self, run: int, system: str, build: BuildInfo) -> None:
        """Record what building `system` cost."""
        row = (run, system, build.build_s, build.index_bytes)
        self._connection.execute("INSERT INTO build VALUES (?, ?, ?, ?)", row)

    def add_answers(self, run: int, system: str, setting: Setting, peak_rss: int, answers: Answers) -> None:
        """Record one setting and its raw answers, in one transaction."""
        blobs = (row.astype("<i8").tobytes() for row in answers.rows)
        columns = (answers.seconds.tolist(), answers.rows_scored.tolist(), answers.bytes_read.tolist())
        with self._connection:
            self._connection.execute(
                "INSERT INTO setting(run, system, setting, peak_rss) VALUES (?, ?, ?, ?)",
                (run, system, json.dumps(setting), peak_rss),
            )
            identity = self._connection.last_insert_rowid()
            rows = [(identity, query, *cells) for query, cells in enumerate(zip(blobs, *columns, strict=True))]
            self._connection.executemany("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?)", rows)

    def run_facts(self, run: int) -> dict[str, Any]:
        """The row of `run`, by column name."""
        cursor = self._connection.execute("SELECT * FROM run WHERE id = ?", (run,))
        names = [column[0] for column in cursor.get_description()]
        return dict(zip(names, next(cursor), strict=True))

    def kth_scores(self, run: int) -> np.ndarray:
        """The scores f64[q] that an answer must reach."""
        cursor = self._connection.execute("SELECT kth_score FROM truth WHERE run = ? ORDER BY query", (run,))
        return np.array([row[0] for row in cursor])

    def measured(self, run: int, system: str) -> Iterator[Measured]:
        """Every setting of `system` in `run`, in the order measured."""
        sql = """SELECT setting.id, setting.setting, peak_rss, build_s, index_bytes
            FROM setting JOIN build USING (run, system) WHERE run = ? AND system = ? ORDER BY setting.id"""
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, (run, system)).fetchall()
        for identity, setting, peak, build_s, index_bytes in rows:
            build = BuildInfo(build_s, index_bytes)
            yield Measured(system, json.loads(setting), peak, build, self._answers(identity))

    def _answers(self, setting: int) -> Answers:
        sql = "SELECT neighbours, seconds, rows_scored, bytes_read FROM answer WHERE setting = ? ORDER BY query"
        blobs, seconds, rows_scored, bytes_read = zip(*self._connection.execute(sql, (setting,)), strict=True)
        rows = np.stack([np.frombuffer(blob, dtype="<i8") for blob in blobs]).astype(np.int64)
        return Answers(rows, np.array(seconds), np.array(rows_scored), np.array(bytes_read))
