"""This run beside an earlier one: the same systems at the same settings on the same data, ratio of medians."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nestvec.benchmarks.figures import identity, queries_per_second
from nestvec.benchmarks.fronts import Spread, spread
from nestvec.benchmarks.results import Measured, Results
from nestvec.errors import InvalidInput


@dataclass(frozen=True)
class Compared:
    """One setting now and then."""

    now: Measured
    then: Measured
    ratio: float
    """Queries per second now over then."""


class Baseline:
    """The newest run of a results directory over the same data.

    Raises InvalidInput where there is none.
    """

    def __init__(self, folder: Path, fingerprint: str, n_queries: int) -> None:
        self._n_queries = n_queries
        with Results(folder / "results.sqlite", create=False) as results:
            runs = {phase: results.runs(fingerprint, phase) for phase in ("final", "sweep")}
            if not any(runs.values()):
                raise InvalidInput(f"{folder} has no run over these vectors and queries to compare with")
            self._points = {
                phase: {identity(one): one for one in results.measured(found[-1])}
                for phase, found in runs.items()
                if found
            }

    def compare(self, points: list[Measured], phase: str) -> list[Compared]:
        """Every point that the baseline has too, from its run of the same phase where it has one."""
        then = self._points.get(phase) or next(iter(self._points.values()))
        pairs = [(one, then[identity(one)]) for one in points if identity(one) in then]
        return [Compared(now, old, self._speed(now) / self._speed(old)) for now, old in pairs]

    def _speed(self, one: Measured) -> float:
        return queries_per_second([each for passes in one.rounds.values() for each in passes], self._n_queries)


def by_system(compared: list[Compared]) -> dict[str, Spread | None]:
    """The spread of each system's ratios."""
    systems = dict.fromkeys(one.now.system for one in compared)
    return {system: spread(one.ratio for one in compared if one.now.system == system) for system in systems}
