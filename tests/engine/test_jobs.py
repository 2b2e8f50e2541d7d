"""Jobs: states, progress, cancelling, idempotency, restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nestvec.engine import jobs as module
from nestvec.engine.jobs import MAX_QUEUED, Job, Jobs, fail_interrupted, fail_jobs_of
from nestvec.engine.progress import Progress
from nestvec.engine.storage.ledger import FILE_NAME, Ledger, create_ledger
from nestvec.errors import Busy, Conflict, Damaged, InvalidInput, NotFound


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    create_ledger(tmp_path / FILE_NAME)
    ledger = Ledger(tmp_path / FILE_NAME)
    yield ledger
    ledger.close()


@pytest.fixture
def jobs(ledger: Ledger) -> Iterator[Jobs]:
    jobs = Jobs(ledger)
    yield jobs
    jobs.close()


class Blocked:
    """Work that goes on until it is let go, reporting all the time."""

    def __init__(self) -> None:
        self.started, self.go, self.reports = threading.Event(), threading.Event(), 0

    def __call__(self, progress: Progress) -> dict[str, object]:
        self.started.set()
        while not self.go.wait(0.001):
            self.reports += 1
            progress("wait", self.reports, None)
        return {"reports": self.reports}


def until(get: Callable[[], Job], wanted: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 20
    while not wanted(job := get()):
        assert time.monotonic() < deadline, job
        time.sleep(0.005)
    return job


def ended(jobs: Jobs, id: int) -> Job:
    return until(lambda: jobs.get(id), lambda job: job.ended)


def test_work_is_done_and_its_result_told(jobs: Jobs) -> None:
    job = jobs.submit("seal", "c", lambda _: {"rows": 3})
    assert (job.kind, job.collection, job.state, job.cancel) == ("seal", "c", "queued", False)
    done = ended(jobs, job.id)
    assert (done.state, done.result, done.error) == ("done", {"rows": 3}, None)
    assert done.finished is not None
    assert done.created <= done.finished
    assert jobs.list() == [done]


def test_jobs_of_a_process_run_one_after_the_other(jobs: Jobs) -> None:
    seen: list[int] = []
    running = threading.Lock()

    def work(number: int) -> dict[str, int]:
        assert running.acquire(blocking=False)
        time.sleep(0.005)
        seen.append(number)
        running.release()
        return {}

    ids = [jobs.submit("x", None, lambda _, n=n: work(n)).id for n in range(8)]
    for id in ids:
        assert ended(jobs, id).state == "done"
    assert seen == list(range(8))
    assert [job.id for job in jobs.list(3)] == ids[:-4:-1]


def test_progress_is_told_at_most_five_times_a_second(
    jobs: Jobs, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = ledger.write
    monkeypatch.setattr(ledger, "write", lambda: (writes.append(1), write())[1])
    work = Blocked()
    job = jobs.submit("x", None, work)
    until(lambda: jobs.get(job.id), lambda job: job.progress is not None)
    started, before = time.monotonic(), len(writes)
    time.sleep(1.0)
    spent, made = time.monotonic() - started, len(writes) - before
    assert work.reports > 50
    assert 2 <= made <= 5 * spent + 1
    work.go.set()
    done = ended(jobs, job.id)
    assert done.progress is not None
    assert (done.progress["stage"], done.progress["total"]) == ("wait", None)


def test_a_running_job_is_cancelled_at_its_next_report(jobs: Jobs) -> None:
    work = Blocked()
    job = jobs.submit("x", None, work)
    work.started.wait(10)
    assert jobs.cancel(job.id).cancel
    assert ended(jobs, job.id).state == "cancelled"
    assert jobs.cancel(job.id).state == "cancelled"


def test_another_process_cancels_through_the_ledger(jobs: Jobs, ledger: Ledger) -> None:
    work = Blocked()
    job = jobs.submit("x", None, work)
    work.started.wait(10)
    other = Ledger(ledger.path)
    assert Jobs(other).cancel(job.id).state == "running"
    assert ended(jobs, job.id).state == "cancelled"
    other.close()


def test_a_waiting_job_is_cancelled_at_once_and_never_begins(jobs: Jobs) -> None:
    first, ran, released = Blocked(), [], []
    running = jobs.submit("x", None, first)
    waiting = jobs.submit("x", None, lambda _: ran.append(1) or {}, release=lambda: released.append(1))
    assert jobs.cancel(waiting.id).state == "cancelled"
    first.go.set()
    assert ended(jobs, running.id).state == "done"
    last = jobs.submit("x", None, lambda _: {})
    assert ended(jobs, last.id).state == "done"
    assert (ran, released) == ([], [1])


def test_a_failure_says_why_without_the_server_s_insides(jobs: Jobs) -> None:
    def fail(error: Exception) -> dict[str, object]:
        raise error

    known = jobs.submit("x", None, lambda _: fail(InvalidInput("dims are wrong")))
    unknown = jobs.submit("x", None, lambda _: fail(ValueError("/secret/path")))
    damaged = jobs.submit("x", None, lambda _: fail(Damaged("/secret/path", "is torn")))
    assert (ended(jobs, known.id).state, ended(jobs, known.id).error) == ("failed", "dims are wrong")
    for job in (unknown, damaged):
        error = ended(jobs, job.id).error
        assert error is not None
        assert "secret" not in error


def test_the_same_request_is_the_same_job(jobs: Jobs) -> None:
    released: list[int] = []

    def submit(key: str, digest: bytes) -> Job:
        return jobs.submit("x", "c", lambda _: {}, request_key=key, request_digest=digest,
                           release=lambda: released.append(1))  # fmt: skip

    first = submit("k", b"one")
    assert ended(jobs, first.id).state == "done"
    assert submit("k", b"one").id == first.id
    with pytest.raises(Conflict, match=f"job {first.id}"):
        submit("k", b"two")
    assert len(jobs.list()) == 1
    assert len(released) == 3
    assert submit("other", b"one").id != first.id
    for key in ("", "k" * 257):
        with pytest.raises(InvalidInput, match="1 to 256"):
            submit(key, b"")


def test_the_queue_is_bounded_and_known_requests_still_find_their_job(jobs: Jobs) -> None:
    work, released = Blocked(), []
    running = jobs.submit("x", None, work, request_key="k", request_digest=b"d")
    work.started.wait(10)
    waiting = [jobs.submit("x", None, lambda _: {}) for _ in range(MAX_QUEUED)]
    with pytest.raises(Busy, match=f"{MAX_QUEUED} jobs"):
        jobs.submit("x", None, lambda _: {}, release=lambda: released.append(1))
    assert released == [1]
    assert jobs.submit("x", None, work, request_key="k", request_digest=b"d").id == running.id
    assert len(jobs.list()) == MAX_QUEUED + 1
    work.go.set()
    assert ended(jobs, waiting[-1].id).state == "done"


def test_a_restart_fails_what_a_dead_process_left(ledger: Ledger) -> None:
    dead = Jobs(ledger)
    work = Blocked()
    running, waiting = dead.submit("x", None, work), dead.submit("x", None, lambda _: {})
    work.started.wait(10)
    later = Ledger(ledger.path)
    assert fail_jobs_of(later, 1) == 0
    assert fail_interrupted(later) == 2
    for job in (running, waiting):
        found = Jobs(later).get(job.id)
        assert (found.state, found.error) == ("failed", "interrupted by a restart")
    work.go.set()
    assert until(lambda: dead.get(running.id), lambda job: job.ended).state == "failed"  # and it stays so
    dead.close()
    later.close()


def test_closing_stops_the_running_job_and_fails_the_waiting_ones(ledger: Ledger) -> None:
    jobs, work, released = Jobs(ledger), Blocked(), []
    running = jobs.submit("x", None, work, release=lambda: released.append(1))
    waiting = jobs.submit("x", None, lambda _: {}, release=lambda: released.append(2))
    work.started.wait(10)
    jobs.close()
    assert {jobs.get(job.id).state for job in (running, waiting)} == {"failed"}
    assert sorted(released) == [1, 2]
    with pytest.raises(Busy, match="stopping"):
        jobs.submit("x", None, lambda _: {})


def test_old_jobs_are_forgotten_but_not_those_that_live(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_JOBS", 5)
    work = Blocked()
    living = jobs.submit("x", None, work)
    for _ in range(8):
        jobs.cancel(jobs.submit("x", None, lambda _: {}).id)
    found = [job.id for job in jobs.list(5)]
    assert len(found) == 5
    assert jobs.get(living.id).state == "running"
    with pytest.raises(NotFound):
        jobs.get(living.id + 1)
    work.go.set()


def test_unknown_jobs_and_silly_limits_are_refused(jobs: Jobs) -> None:
    with pytest.raises(NotFound):
        jobs.get(99)
    with pytest.raises(NotFound):
        jobs.cancel(99)
    for limit in (0, 1001):
        with pytest.raises(InvalidInput, match=f"got {limit}"):
            jobs.list(limit)
