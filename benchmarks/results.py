"""The results database: raw answers and times first; every figure is computed from it afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from nestvec.benchmarks.metrics import Rows, Scores
from nestvec.benchmarks.systems import Context, Setting
from nestvec.benchmarks.worker import BuildInfo, Pass
from nestvec.errors import InvalidInput

VERSION = 2
SCHEMA = """
-- One run of `nestvec bench`. A results directory keeps all of its runs.
CREATE TABLE run(
    id          INTEGER PRIMARY KEY,
    started     TEXT NOT NULL,      -- UTC, ISO 8601
    phase       TEXT NOT NULL,      -- sweep: every setting, one round; final: chosen settings, rounds in turn
    suite       TEXT NOT NULL,
    base        TEXT NOT NULL,      -- path of the vectors searched
    queries     TEXT NOT NULL,      -- path of the query vectors
    fingerprint TEXT NOT NULL,      -- of the data and what is asked of it: only equal ones can be compared
    metric      TEXT NOT NULL,      -- cosine, dot or l2
    n           INTEGER NOT NULL,   -- rows searched, after --limit-rows
    dims        INTEGER NOT NULL,
    n_queries   INTEGER NOT NULL,   -- after --limit-queries
    repeats     INTEGER NOT NULL,   -- rounds
    min_seconds REAL NOT NULL,      -- measured per setting and round, at least
    build_threads INTEGER NOT NULL,
    machine     TEXT NOT NULL       -- JSON
) STRICT;

-- What an answer must reach to count as found.
CREATE TABLE truth(
    run        INTEGER NOT NULL REFERENCES run(id),
    k          INTEGER NOT NULL,
    kth_scores BLOB NOT NULL,       -- float64 by query: score of the k-th true neighbour, higher is better
    PRIMARY KEY (run, k)
) STRICT, WITHOUT ROWID;

CREATE TABLE build(
    id          INTEGER PRIMARY KEY,
    run         INTEGER NOT NULL REFERENCES run(id),
    system      TEXT NOT NULL,
    settings    TEXT NOT NULL,      -- JSON
    build_s     REAL NOT NULL,      -- wall seconds
    peak_rss    INTEGER NOT NULL,   -- bytes: highest resident size of the system's process when built (VmHWM)
    resident    INTEGER NOT NULL,   -- bytes: resident size just after
    index_bytes INTEGER NOT NULL,   -- bytes of the index as the system saves it
    versions    TEXT NOT NULL       -- JSON: of Python and the packages
) STRICT;

-- Row numbers, stored once however many settings gave the same.
CREATE TABLE answers(
    id         INTEGER PRIMARY KEY,
    sha256     BLOB NOT NULL UNIQUE,
    k          INTEGER NOT NULL,
    neighbours BLOB NOT NULL        -- int32 little-endian, k by query, best first, -1: none
) STRICT;

-- One build asked in one way.
CREATE TABLE point(
    id          INTEGER PRIMARY KEY,
    build       INTEGER NOT NULL REFERENCES build(id),
    settings    TEXT NOT NULL,      -- JSON: search settings
    mode        TEXT NOT NULL,      -- single, batch
    threads     INTEGER NOT NULL,
    k           INTEGER NOT NULL,
    answers     INTEGER NOT NULL REFERENCES answers(id),
    recall      REAL NOT NULL,      -- of the answers: computed at once, because it needs the vectors
    rows_scored BLOB,               -- int64 by query: vectors or prefixes touched, where the system counts them
    bytes_read  BLOB                -- int64 by query: bytes of centroids, codes and vectors touched
) STRICT;

CREATE TABLE pass(
    point   INTEGER NOT NULL REFERENCES point(id),
    round   INTEGER NOT NULL,
    number  INTEGER NOT NULL,       -- within the round
    seconds REAL NOT NULL,          -- time in the system, all queries
    p50_us  REAL,                   -- percentiles of one query's time, mode single
    p99_us  REAL,
    PRIMARY KEY (point, round, number)
) STRICT, WITHOUT ROWID;

-- A system that did not get through, in its own words.
CREATE TABLE failure(
    run     INTEGER NOT NULL REFERENCES run(id),
    system  TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Measured:
    """One point with what is known of it: `rounds` holds the passes of each round."""

    point: int
    system: str
    build: Setting
    settings: Setting
    context: Context
    k: int
    recall: float
    rows_scored: float | None
    bytes_read: float | None
    info: BuildInfo
    rounds: dict[int, list[Pass]]


class Results:
    """One results.sqlite; use as a context manager."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not path.exists():
            raise InvalidInput(f"{path} does not exist: expected the results of an earlier `nestvec bench`")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = apsw.Connection(str(path))
        if not self._connection.execute("SELECT count(*) FROM sqlite_schema").get:
            self._connection.execute(f"{SCHEMA}; PRAGMA user_version = {VERSION}")
        found = self._connection.execute("PRAGMA user_version").get
        if found != VERSION:
            self._connection.close()
            raise InvalidInput(f"{path} has version {found} of the results, expected {VERSION}: choose another --out")

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add_run(self, facts: dict[str, Any], kth_scores: dict[int, Scores]) -> int:
        """Record a run (keys: the columns of `run`) and its truth by k; returns its id."""
        run = self._insert("run", facts)
        for k, scores in kth_scores.items():
            self._insert("truth", {"run": run, "k": k, "kth_scores": scores.astype("<f8").tobytes()})
        return run

    def add_build(self, run: int, system: str, settings: Setting, info: BuildInfo) -> int:
        """Record a build; returns its id."""
        facts: dict[str, Any] = {"build_s": info.build_s, "peak_rss": info.peak_rss, "resident": info.resident}
        facts |= {"index_bytes": info.index_bytes, "versions": json.dumps(info.versions)}
        return self._insert("build", {"run": run, "system": system, "settings": json.dumps(settings)} | facts)

    def add_point(
        self, build: int, settings: Setting, k: int, context: Context, rows: Rows, recall: float, work: Rows | None
    ) -> int:
        """Record a setting and its answers i64[q, k]; `work` i64[q, 2] is rows and bytes by query. Returns its id."""
        facts: dict[str, Any] = {"build": build, "settings": json.dumps(settings), "k": k, "recall": recall}
        facts |= {"mode": context.mode, "threads": context.threads, "answers": self._answers(rows)}
        if work is not None:
            facts |= {
                "rows_scored": work[:, 0].astype("<i8").tobytes(),
                "bytes_read": work[:, 1].astype("<i8").tobytes(),
            }
        return self._insert("point", facts)

    def add_passes(self, point: int, round_number: int, passes: list[Pass]) -> None:
        """Record one round of a point, in one transaction."""
        rows = [(point, round_number, place, one.seconds, one.p50_us, one.p99_us) for place, one in enumerate(passes)]
        with self._connection:
            self._connection.executemany("INSERT INTO pass VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add_failure(self, run: int, system: str, message: str) -> None:
        """Record that a system did not get through."""
        self._insert("failure", {"run": run, "system": system, "message": message})

    def run_facts(self, run: int) -> dict[str, Any]:
        """The row of `run`, by column name."""
        return next(self._rows("SELECT * FROM run WHERE id = ?", run))

    def runs(self, fingerprint: str, phase: str, system: str | None = None) -> list[int]:
        """The runs of `phase` over the same data, oldest first, that built something (of `system`, if given)."""
        sql = """SELECT id FROM run WHERE fingerprint = :fingerprint AND phase = :phase AND EXISTS
            (SELECT * FROM build WHERE build.run = run.id AND (:system IS NULL OR system = :system)) ORDER BY id"""
        wanted = {"fingerprint": fingerprint, "phase": phase, "system": system}
        return [run for (run,) in self._connection.execute(sql, wanted)]

    def failures(self, run: int) -> list[tuple[str, str]]:
        """System and message of every failure."""
        return list(self._connection.execute("SELECT system, message FROM failure WHERE run = ?", (run,)))

    def measured(self, run: int, point: int | None = None) -> Iterator[Measured]:
        """Every point of `run`, or one of them, in the order measured."""
        sql = """SELECT point.id, system, build.settings AS build, point.settings, mode, threads, k, recall,
            rows_scored, bytes_read, build_s, peak_rss, resident, index_bytes, versions
            FROM point JOIN build ON build.id = point.build
            WHERE run = ? AND (? IS NULL OR point.id = ?) ORDER BY point.id"""
        for row in list(self._rows(sql, run, point, point)):
            yield Measured(
                point=row["id"],
                system=row["system"],
                build=json.loads(row["build"]),
                settings=json.loads(row["settings"]),
                context=Context(row["mode"], row["threads"]),
                k=row["k"],
                recall=row["recall"],
                rows_scored=_mean(row["rows_scored"]),
                bytes_read=_mean(row["bytes_read"]),
                info=_info(row),
                rounds=self._rounds(row["id"]),
            )

    def answers_of(self, point: int) -> Rows:
        """The row numbers i64[q, k] that a point gave."""
        sql = "SELECT answers.k, neighbours FROM answers JOIN point ON answers = answers.id WHERE point.id = ?"
        k, blob = next(iter(self._connection.execute(sql, (point,))))
        return np.frombuffer(blob, "<i4").reshape(-1, k).astype(np.int64)

    def _rounds(self, point: int) -> dict[int, list[Pass]]:
        sql = "SELECT round, seconds, p50_us, p99_us FROM pass WHERE point = ? ORDER BY round, number"
        rounds: dict[int, list[Pass]] = {}
        for number, *times in self._connection.execute(sql, (point,)):
            rounds.setdefault(number, []).append(Pass(*times))
        return rounds

    def _answers(self, rows: Rows) -> int:
        blob = np.ascontiguousarray(rows, "<i4").tobytes()
        digest = hashlib.sha256(f"{rows.shape}".encode() + blob).digest()
        found: int | None = self._connection.execute("SELECT id FROM answers WHERE sha256 = ?", (digest,)).get
        facts = {"sha256": digest, "k": int(rows.shape[1]), "neighbours": blob}
        return self._insert("answers", facts) if found is None else found

    def _insert(self, table: str, facts: dict[str, Any]) -> int:
        columns, marks = ", ".join(facts), ", ".join(f":{name}" for name in facts)
        query = f"INSERT INTO {table}({columns}) VALUES ({marks})"  # nosec B608 - names of our own; values are bound
        self._connection.execute(query, facts)
        return self._connection.last_insert_rowid()

    def _rows(self, sql: str, *values: str | int | None) -> Iterator[dict[str, Any]]:
        cursor = self._connection.execute(sql, values)
        for row in cursor:
            yield dict(zip((column[0] for column in cursor.get_description()), row, strict=True))


def _info(row: dict[str, Any]) -> BuildInfo:
    costs = {name: row[name] for name in ("build_s", "peak_rss", "resident", "index_bytes")}
    return BuildInfo(**costs, versions=json.loads(row["versions"]))


def _mean(blob: bytes | None) -> float | None:
    return None if blob is None else float(np.frombuffer(blob, "<i8").mean())
