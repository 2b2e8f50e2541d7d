"""Jobs over REST: work that outlives its request is submitted, waited for, and told about meanwhile."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from nestvec.client import wire
from nestvec.client.steps import Call, Operation, Pause, Target
from nestvec.client.wire import call, decode
from nestvec.engine.jobs import Job
from nestvec.engine.progress import Progress
from nestvec.errors import NestvecError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


def jobs(self: Target, *, limit: int = 100) -> Operation[list[Job]]:
    """The newest jobs of the service, newest first."""
    reply = yield from self.ask(call("GET", f"/v1/jobs?limit={limit:d}", repeatable=True))
    return [wire.known(Job, job) for job in decode(reply)["jobs"]]


def job(self: Target, id: int) -> Operation[Job]:
    """The job of this number. Raises NotFound."""
    return wire.known(Job, decode((yield from self.ask(call("GET", f"/v1/jobs/{id:d}", repeatable=True)))))


def cancel_job(self: Target, id: int) -> Operation[Job]:
    """Ask a job to stop; one that ended stays as it is. Raises NotFound.

    A waiting job is cancelled at once, a running one at its next report.
    """
    return wire.known(Job, decode((yield from self.ask(call("DELETE", f"/v1/jobs/{id:d}", repeatable=True)))))


def wait(self: Target, id: int, *, progress: Progress | None = None) -> Operation[Job]:
    """The job, once it is done; `progress(stage, done, total)` is called meanwhile.

    Raises NestvecError with the job's own message where it failed or was cancelled. Who stops waiting does not stop it.
    """
    delay, told = _FIRST_WAIT_S, None
    while not (found := (yield from job(self, id))).ended:
        if progress is not None and found.progress is not None and found.progress != told:
            told = found.progress
            progress(told["stage"], told["done"], told["total"])
        yield Pause(delay)
        delay = min(1.5 * delay, _LONGEST_WAIT_S)
    if found.state != "done":
        raise NestvecError(f"job {id} ({found.kind}) {found.state}" + (f": {found.error}" if found.error else ""))
    return found


def run(self: Target, request: Call, progress: Progress | None) -> Operation[tuple[int, dict[str, Any]]]:
    """Submit a job, and wait until it is done; (its number, its result).

    A key of its own makes the request safe to send again: the service starts one job for it.
    """
    keyed = replace(request, headers={**request.headers, "Idempotency-Key": uuid.uuid4().hex}, repeatable=True)
    submitted = decode((yield from self.ask(keyed)))
    done = yield from wait(self, submitted["id"], progress=progress)
    return done.id, done.result or {}
