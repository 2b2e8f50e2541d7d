"""What a load check says: a figure, the bar it has to clear, and whether it does."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Check:
    """One line of the report. `passed`: None where the run was too short to judge it."""

    name: str
    what: str
    figure: float
    bar: str
    passed: bool | None


@dataclass
class Report:
    """The checks so far. With `judge_times` off (a short run, a shared machine) times are shown and not judged."""

    judge_times: bool
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def most(self, name: str, what: str, figure: float, bar: float, *, time: bool = False) -> None:
        """The figure must be at most the bar; `time`: it is one that a busy machine spoils."""
        self._add(Check(name, what, figure, f"≤ {bar:.4g}", self._verdict(figure <= bar, time)))

    def least(self, name: str, what: str, figure: float, bar: float, *, time: bool = False) -> None:
        """The figure must be at least the bar."""
        self._add(Check(name, what, figure, f"≥ {bar:.4g}", self._verdict(figure >= bar, time)))

    def none(self, name: str, what: str, count: int) -> None:
        """There must be none of them."""
        self._add(Check(name, what, count, "= 0", bool(count == 0)))

    def note(self, name: str, what: str, figure: float) -> None:
        """A figure without a bar."""
        self._add(Check(name, what, figure, "–", None))

    @property
    def failed(self) -> list[Check]:
        """The checks that did not clear their bar."""
        return [check for check in self.checks if check.passed is False]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {"passed": not self.failed, "judged_times": self.judge_times, **self.facts,
                "checks": [asdict(check) for check in self.checks]}  # fmt: skip

    def _verdict(self, cleared: bool, time: bool) -> bool | None:
        return bool(cleared) if self.judge_times or not time else None  # numpy's False is not False

    def _add(self, check: Check) -> None:
        self.checks.append(replace(check, figure=float(check.figure)))
        verdict = {True: "pass", False: "FAIL", None: "-"}[check.passed]
        sys.stdout.write(f"{check.name:<4} {check.what:<58} {check.figure:>11,.4g} {check.bar:>12}  {verdict}\n")
        sys.stdout.flush()
