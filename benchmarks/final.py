"""The final: the settings near the recall targets of every system, asked in turn, round after round.

All indexes stay in memory, each in its own process, and one pass of one setting follows one of another system, so that
a drift of the machine meets all of them alike. Every second round goes the other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest

from nestvec.benchmarks import machine
from nestvec.benchmarks.choose import Task, choose, text_of
from nestvec.benchmarks.figures import Asked
from nestvec.benchmarks.metrics import Rows
from nestvec.benchmarks.session import Session
from nestvec.benchmarks.systems import Setting, System
from nestvec.benchmarks.worker import Worker
from nestvec.errors import InvalidInput, NestvecError

_SHARE_OF_MEMORY = 0.8
_BYTES_PER_NUMBER = 6
"""Of the vectors, that an index keeps: float32 and a graph, or float16 and codes; half as much again while it grows."""


@dataclass
class Candidate:
    """One chosen build of one system; while held, its process, its id, and the ids of its points."""

    system: System
    settings: Setting
    tasks: tuple[Task, ...]
    worker: Worker | None = None
    build: int = 0
    points: dict[int, int] = field(default_factory=dict)
    work: dict[str, Rows | None] = field(default_factory=dict)


def final(session: Session) -> int:
    """Measure what earlier sweeps over the same data chose; returns the run's id.

    Raises InvalidInput where no system has a sweep; one without is recorded, and the others go on.
    """
    chosen = [_candidates(session, system) for system in session.systems]
    if not any(chosen):
        raise InvalidInput(f"{session.request.out} has no sweep over these vectors: run --phase sweep first")
    run = session.start("final")
    for system, candidates in zip(session.systems, chosen, strict=True):
        if not candidates:
            session.fail(run, system, NestvecError(f"{system.name} has no sweep over these vectors"))
    first, *others = chosen
    with ExitStack() as always:
        _hold(session, run, first, always)
        for turn, group in enumerate(groups(len(first), others, _hold_at_most(session, chosen))):
            with ExitStack() as meanwhile:
                _hold(session, run, group, meanwhile)
                _rounds(session, run, [*first, *group], turn * session.repeats)
    for one in session.figures(run):
        session.emit(one)
    return run


def _hold_at_most(session: Session, chosen: Sequence[list[Candidate]]) -> int:
    """How many indexes to keep at once: as asked, else as many as memory seems to allow."""
    everything, least = sum(map(len, chosen)), len(chosen[0]) + max(map(len, chosen[1:]), default=0)
    available = machine.available_bytes()
    if session.request.hold is not None or available is None:
        return session.request.hold or everything
    return max(least, int(_SHARE_OF_MEMORY * available / (_BYTES_PER_NUMBER * session.shape.n * session.shape.dims)))


def _candidates(session: Session, system: System) -> list[Candidate]:
    """The chosen builds of one system; none where it has no sweep.

    Peers stand still: all their sweeps count. nestvec's own code changes from run to run: only its newest one does.
    """
    runs = session.results.runs(session.fingerprint, "sweep", system.name)
    points = [
        one
        for run in (runs[-1:] if system.ours else runs)
        for one in session.results.measured(run)
        if one.system == system.name
    ]
    ways = [(context, k) for context in session.contexts(system) for k in session.request.ks]
    found = choose(points, ways, session.inputs.n_queries, session.request.builds)
    return [Candidate(system, choice.build, choice.tasks) for choice in found]


def groups(first: int, others: Sequence[list[Candidate]], hold: int) -> Iterator[list[Candidate]]:
    """Systems packed into as few groups as fit beside the `first` builds with at most `hold` indexes in memory.

    A system is never divided. Raises InvalidInput where one does not fit.
    """
    room = hold - first
    group: list[Candidate] = []
    for candidates in others:
        if len(candidates) > room:
            raise InvalidInput(
                f"--hold {hold} is too few: {first} builds of the subject and {len(candidates)} of a peer"
            )
        if len(group) + len(candidates) > room:
            yield group
            group = []
        group = [*group, *candidates]
    if group or not others:
        yield group


def in_turn(candidates: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """Every task, by its place in its candidate: for each way of asking, one of each system after the other."""
    ways: dict[Asked, dict[str, list[tuple[Candidate, int]]]] = {}
    for candidate in candidates:
        for place, task in enumerate(candidate.tasks):
            by_system = ways.setdefault((task.context, task.k), {})
            by_system.setdefault(candidate.system.name, []).append((candidate, place))
    turns = (turn for by_system in ways.values() for turn in zip_longest(*by_system.values()))
    return [each for turn in turns for each in turn if each is not None]


def _hold(session: Session, run: int, candidates: Iterable[Candidate], stack: ExitStack) -> None:
    """Build the candidates and keep their processes until `stack` closes."""
    for candidate in candidates:
        worker = stack.enter_context(session.worker(candidate.system))
        try:
            candidate.build = session.build(worker, run, candidate.settings)
            for task in candidate.tasks:
                text = text_of([task.setting, task.k])
                if text not in candidate.work:
                    candidate.work[text] = worker.work(task.setting, task.k)
            candidate.worker = worker
        except NestvecError as error:
            session.fail(run, candidate.system, error)


def _rounds(session: Session, run: int, candidates: Sequence[Candidate], start: int) -> None:
    turns = in_turn(candidates)
    session.log(f"rounds of {len(turns)} settings, {len(candidates)} indexes in memory")
    for number in range(start, start + session.repeats):
        for candidate, place in turns if (number - start) % 2 == 0 else reversed(turns):
            if candidate.worker is None:
                continue
            try:
                _measure(session, candidate, candidate.worker, place, number)
            except NestvecError as error:
                candidate.worker = None
                session.fail(run, candidate.system, error)
        session.log(f"round {number + 1 - start} of {session.repeats}")


def _measure(session: Session, candidate: Candidate, worker: Worker, place: int, number: int) -> None:
    task, seconds = candidate.tasks[place], session.seconds
    if place in candidate.points:
        passes = worker.again(task.setting, task.k, task.context, seconds)
    else:
        rows, passes = worker.search(task.setting, task.k, task.context, seconds)
        candidate.points[place] = session.results.add_point(
            candidate.build,
            task.setting,
            task.k,
            task.context,
            rows,
            session.judge.recall(rows),
            candidate.work[text_of([task.setting, task.k])],
        )
    session.results.add_passes(candidate.points[place], number, passes)
