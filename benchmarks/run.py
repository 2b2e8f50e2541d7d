"""A run of `nestvec bench`: its phases, one after the other, and the report."""

from __future__ import annotations

from collections.abc import Callable

from nestvec.benchmarks.baseline import Baseline
from nestvec.benchmarks.figures import Figures
from nestvec.benchmarks.final import final
from nestvec.benchmarks.report import write_report
from nestvec.benchmarks.results import Results
from nestvec.benchmarks.session import Request, Session
from nestvec.benchmarks.sweep import sweep
from nestvec.errors import InvalidInput, NestvecError


def run(request: Request, emit: Callable[[Figures], None], log: Callable[[str], None]) -> list[Figures]:
    """Measure what `request` asks for; `emit` gets the figures of each setting as soon as they are known.

    Leaves results.sqlite, results.md and a plot per way of asking in `request.out`; returns the figures of the last
    phase. Raises InvalidInput for what cannot be measured, and NestvecError, after the report, where a system failed.
    """
    with Results(request.out / "results.sqlite") as results:
        session = Session(request, results, emit, log)
        before = None
        if request.baseline is not None:
            before = Baseline(request.baseline, session.fingerprint, session.inputs.n_queries)
        identity = _measure(session)
        points, facts = list(results.measured(identity)), results.run_facts(identity)
        compared = [] if before is None else before.compare(points, facts["phase"])
        write_report(request.out, facts, points, compared, [message for _, message in results.failures(identity)])
        log(f"results in {request.out / 'results.md'}")
        figures = session.figures(identity)
    if session.failures:
        raise NestvecError("; ".join(dict.fromkeys(session.failures)))
    return figures


def _measure(session: Session) -> int:
    """Run the phases; returns the id of the last one's run, or of the newest there is for a mere report."""
    phase, identity = session.request.phase, None
    if phase in ("sweep", "both"):
        identity = sweep(session)
    if phase in ("final", "both"):
        identity = final(session)
    if phase == "report":
        runs = [run for one in ("sweep", "final") for run in session.results.runs(session.fingerprint, one)]
        identity = runs[-1] if runs else None
    if identity is None:
        raise InvalidInput(f"{session.request.out} has no run over these vectors to report")
    return identity
