"""Jobs: work that outlives its request, one at a time per process, told in the ledger for every process to read."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import apsw

from nestvec.engine.progress import Progress
from nestvec.engine.storage.ledger import Ledger, rows_of
from nestvec.errors import Busy, Conflict, Damaged, InvalidInput, NestvecError, NotFound

log = logging.getLogger("nestvec")

State = Literal["queued", "running", "done", "failed", "cancelled"]
Work = Callable[[Progress], dict[str, Any]]
"""`work(progress)` does it, telling where it is; the result is a JSON object."""

MAX_QUEUED = 16
KEPT_JOBS = 1000
MAX_KEY_BYTES = 256
_REPORT_SECONDS = 0.2
_STOP_SECONDS = 10.0
_COLUMNS = "id, kind, collection, state, progress, result, error, created, finished, cancel"
_INTERRUPTED = "interrupted by a restart"
_NICE = 5  # a build takes every core that it gets, and nobody waits for it as for a search


class Cancelled(Exception):
    """Raised inside a job's work, by the progress callback, when it is to stop."""


@dataclass(frozen=True)
class Job:
    """What the ledger knows. `progress`: {"stage", "done", "total"}; times are ISO 8601 in UTC; `cancel`: asked for."""

    id: int
    kind: str
    collection: str | None
    state: State
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None
    created: str
    finished: str | None
    cancel: bool

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")


@dataclass
class _Task:
    """A job of this process."""

    id: int
    work: Work
    release: Callable[[], None]
    stop: threading.Event


class Jobs:
    """The jobs of a database. Each process works off those that were submitted to it, in one thread, in their order;
    all processes see and cancel all of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._wake = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._current: _Task | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(
        self,
        kind: str,
        collection: str | None,
        work: Work,
        *,
        request_key: str | None = None,
        request_digest: bytes | None = None,
        release: Callable[[], None] | None = None,
    ) -> Job:
        """Queue `work`, or find the job of an equal earlier request: same `request_key`, same `request_digest`.

        `release` is called once when the work is over, however it ended, also where it is never begun. Raises Conflict
        for a used key with another digest, Busy when 16 jobs wait already.
        """
        task = _Task(0, work, release or _nothing, threading.Event())
        try:
            _check_key(request_key)
            with self._wake:
                job, task.id = self._enter(kind, collection, request_key, request_digest)
                if task.id:
                    self._waiting.append(task)
                    self._start()
        except BaseException:
            task.release()
            raise
        if not task.id:
            task.release()
        return job

    def get(self, id: int) -> Job:
        """The job of this number. Raises NotFound."""
        with self._ledger.read() as connection:
            return _job(connection, id)

    def list(self, limit: int = 100) -> list[Job]:
        """The newest jobs of all processes, newest first."""
        if not 1 <= limit <= KEPT_JOBS:
            raise InvalidInput(f"limit must be 1 to {KEPT_JOBS}, got {limit}")
        with self._ledger.read() as connection:
            newest = f"SELECT {_COLUMNS} FROM job ORDER BY id DESC LIMIT ?"  # nosec B608 - a constant's columns
            return [_from(row) for row in rows_of(connection, newest, (limit,))]

    def cancel(self, id: int) -> Job:
        """Ask a job to stop; one that ended stays as it is. Raises NotFound.

        A waiting job is cancelled at once, a running one at its next report.
        """
        with self._ledger.write() as connection:
            connection.execute("UPDATE job SET cancel=1 WHERE id=? AND state='running'", (id,))
            connection.execute(
                "UPDATE job SET cancel=1, state='cancelled', finished=? WHERE id=? AND state='queued'", (_now(), id)
            )
            job = _job(connection, id)
        with self._wake:
            current = self._current
        if current is not None and current.id == id:
            current.stop.set()
        return job

    def close(self) -> None:
        """Stop: waiting jobs fail as interrupted; the running one is asked to stop and waited for a while."""
        with self._wake:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            if self._current is not None:
                self._current.stop.set()
            self._wake.notify_all()
            thread = self._thread
        for task in waiting:
            self._finish(task, "failed", None, _INTERRUPTED)
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def _enter(self, kind: str, collection: str | None, key: str | None, digest: bytes | None) -> tuple[Job, int]:
        """(job, its number if it is new, else 0)."""
        if self._closed:
            raise Busy("this process is stopping and takes no more jobs; try again when it has restarted")
        with self._ledger.write() as connection:
            known = None if key is None else _by_key(connection, key, digest)
            if known is not None:
                return known, 0
            if len(self._waiting) >= MAX_QUEUED:
                raise Busy(f"{MAX_QUEUED} jobs are waiting already; try again when some have ended")
            connection.execute(
                "INSERT INTO job(kind, collection, state, created, pid, request_key, request_digest) "
                "VALUES (?, ?, 'queued', ?, ?, ?, ?)",
                (kind, collection, _now(), os.getpid(), key, digest),
            )
            id = connection.last_insert_rowid()
            connection.execute("DELETE FROM job WHERE id<=? AND finished IS NOT NULL", (id - KEPT_JOBS,))
            return _job(connection, id), id

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nestvec-jobs", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def _run(self) -> None:
        _give_way()
        while (task := self._next()) is not None:
            self._carry_out(task)
            with self._wake:
                self._current = None

    def _next(self) -> _Task | None:
        with self._wake:
            self._wake.wait_for(lambda: bool(self._waiting) or self._closed)
            if self._closed:
                return None
            self._current = self._waiting.popleft()
            return self._current

    def _carry_out(self, task: _Task) -> None:
        """Run one job, and have its end in the ledger whatever happens."""
        try:
            if not self._begin(task.id):
                task.release()
                return
            report = _Report(self._ledger, task)
            result = task.work(report)
            self._finish(task, "done", result, None)
        except Cancelled:
            if self._closed:
                self._finish(task, "failed", None, _INTERRUPTED)
            else:
                self._finish(task, "cancelled", None, None)
        except Exception as error:
            # Our own errors may quote a record, and are told by the job to those who may read it.
            known = isinstance(error, NestvecError)
            log.error("job %d failed: %s", task.id, type(error).__name__, exc_info=not known)
            self._finish(task, "failed", None, _told(error, self._ledger.path.parent))

    def _begin(self, id: int) -> bool:
        """Whether it may start: False for one that was cancelled while it waited."""
        with self._ledger.write() as connection:
            connection.execute("UPDATE job SET state='running' WHERE id=? AND state='queued'", (id,))
            return bool(connection.changes())

    def _finish(self, task: _Task, state: State, result: dict[str, Any] | None, error: str | None) -> None:
        task.release()
        try:
            with self._ledger.write() as connection:
                connection.execute(
                    "UPDATE job SET state=?, result=?, error=?, finished=? WHERE id=? AND finished IS NULL",
                    (state, None if result is None else json.dumps(result), error, _now(), task.id),
                )
        except NestvecError:
            log.exception("job %d ended as %s, which the ledger could not be told", task.id, state)


def _give_way() -> None:
    """Let the threads that answer requests go before this one and those that it starts. Only Linux can for a thread."""
    if sys.platform == "linux":
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICE)


class _Report:
    """The progress callback of one job: into the ledger at most five times a second; raises Cancelled when asked."""

    def __init__(self, ledger: Ledger, task: _Task) -> None:
        self._ledger, self._task = ledger, task
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if time.monotonic() >= self._next:
            self._tell({"stage": stage, "done": done, "total": total})
            self._next = time.monotonic() + _REPORT_SECONDS
        if self._task.stop.is_set():
            raise Cancelled

    def _tell(self, progress: dict[str, Any]) -> None:
        try:
            with self._ledger.write() as connection:
                connection.execute("UPDATE job SET progress=? WHERE id=?", (json.dumps(progress), self._task.id))
                cancel = connection.execute("SELECT cancel FROM job WHERE id=?", (self._task.id,)).get
        except Busy:
            return  # the work matters more than its progress
        if cancel:
            self._task.stop.set()


def fail_interrupted(ledger: Ledger) -> int:
    """Mark what a dead process left queued or running as failed; how many jobs.

    The caller holds the service lock and has started no `Jobs` yet, or is the process that the jobs' own died under.
    """
    with ledger.write() as connection:
        connection.execute(
            "UPDATE job SET state='failed', error=?, finished=? WHERE finished IS NULL", (_INTERRUPTED, _now())
        )
        return connection.changes()


def fail_jobs_of(ledger: Ledger, pid: int) -> int:
    """The same for one process of a service that ended while others go on; how many jobs."""
    with ledger.write() as connection:
        connection.execute(
            "UPDATE job SET state='failed', error=?, finished=? WHERE finished IS NULL AND pid=?",
            (_INTERRUPTED, _now(), pid),
        )
        return connection.changes()


def _check_key(key: str | None) -> None:
    if key is not None and not 1 <= len(key.encode("utf-8", "surrogatepass")) <= MAX_KEY_BYTES:
        raise InvalidInput(f"an idempotency key has 1 to {MAX_KEY_BYTES} bytes, got {len(key)} characters")


def _by_key(connection: apsw.Connection, key: str, digest: bytes | None) -> Job | None:
    row = connection.execute("SELECT id, request_digest FROM job WHERE request_key=?", (key,)).get
    if row is None:
        return None
    if row[1] != digest:
        raise Conflict(f"this idempotency key was used by another request, job {row[0]}; choose a new key")
    return _job(connection, row[0])


def _job(connection: apsw.Connection, id: int) -> Job:
    query = f"SELECT {_COLUMNS} FROM job WHERE id=?"  # nosec B608 - a constant's columns
    row = connection.execute(query, (id,)).get
    if row is None:
        raise NotFound(f"there is no job {id}")
    return _from(row)


def _from(row: tuple[Any, ...]) -> Job:
    id, kind, collection, state, progress, result, error, created, finished, cancel = row
    return Job(id, kind, collection, cast(State, state), _object(progress), _object(result), error, created, finished,
               bool(cancel))  # fmt: skip


def _object(text: str | None) -> dict[str, Any] | None:
    return None if text is None else cast("dict[str, Any]", json.loads(text))


def _told(error: Exception, root: Path) -> str:
    """What everybody who may see the job may read: not where the database lies. The rest is in the log."""
    if isinstance(error, NestvecError) and not isinstance(error, Damaged):
        return str(error).replace(f"{root}/", "").replace(str(root), "the database")
    what = "stored data is damaged" if isinstance(error, Damaged) else "unexpected error"
    return f"{what}; the log has it"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _nothing() -> None:
    pass
