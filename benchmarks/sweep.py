"""The sweep: every declared setting of every system once, one system at a time, to find each one's front."""

from __future__ import annotations

from nestvec.benchmarks.grids import Build
from nestvec.benchmarks.session import Session
from nestvec.benchmarks.systems import Setting
from nestvec.benchmarks.worker import Worker
from nestvec.errors import NestvecError


def sweep(session: Session) -> int:
    """Measure the grids; returns the run's id. A system that fails is recorded, and the next one goes on."""
    run = session.start("sweep")
    for system in session.systems:
        builds = session.grid(system)
        for place, build in enumerate(builds, 1):
            session.log(f"{system.name}: build {place} of {len(builds)}")
            try:
                with session.worker(system) as worker:
                    _sweep_build(session, run, worker, build)
            except NestvecError as error:
                session.fail(run, system, error)
    return run


def _sweep_build(session: Session, run: int, worker: Worker, build: Build) -> None:
    identity = session.build(worker, run, build.settings)
    for k in session.request.ks:
        settings = build.searches(k)
        for setting in settings:
            _sweep_setting(session, run, worker, identity, setting, k)
        session.log(f"{worker.system.name}: {len(settings)} settings, k {k}")


def _sweep_setting(session: Session, run: int, worker: Worker, build: int, setting: Setting, k: int) -> None:
    work = worker.work(setting, k)
    for context in session.contexts(worker.system):
        rows, passes = worker.search(setting, k, context, session.seconds)
        recall = session.judge.recall(rows)
        point = session.results.add_point(build, setting, k, context, rows, recall, work)
        session.results.add_passes(point, 0, passes)
        for one in session.figures(run, point):
            session.emit(one)
