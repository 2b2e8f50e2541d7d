"""What calibration leaves behind: operating points by k and selectivity, with what they promise and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from nestvec.engine.plan import Plan
from nestvec.errors import InvalidInput

VERSION = 1
_OUTGROWN = 1.5  # rows now to rows then, or the other way round

Source = Literal["queries", "texts", "documents"]
"""Where calibration queries came from: given ones, pieces of stored texts, or documents that were held out."""


@dataclass(frozen=True)
class OperatingPoint:
    """One plan, measured. `recall`: mean recall@k; `floor`: what the mean over all such queries exceeds with
    probability 1 - delta. The rest are means per query: microseconds on one thread, bytes and rows read."""

    plan: Plan
    recall: float
    floor: float
    micros: float
    bytes: float
    rows: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back."""
        return {**vars(self), "plan": self.plan.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OperatingPoint:
        """The point that `to_json` wrote."""
        return cls(**{**data, "plan": Plan.from_json(data["plan"])})


@dataclass(frozen=True)
class Frontier:
    """The operating points for one k and one share of rows that pass the filter, costliest first."""

    k: int
    selectivity: float
    queries: int
    points: tuple[OperatingPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back."""
        return {**vars(self), "points": [point.to_json() for point in self.points]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Frontier:
        """The frontier that `to_json` wrote."""
        return cls(**{**data, "points": tuple(OperatingPoint.from_json(point) for point in data["points"])})


@dataclass(frozen=True)
class Calibration:
    """All frontiers of one generation, measured at one time.

    `created`: UTC, ISO 8601. `rows`: live rows of the collection then. `delta`: the chance that a floor is wrong.
    `exact_micros`: what the exact scan takes for a row. `seconds`: what the calibration took. `stale`: why it should no
    longer be trusted, None while it should.
    """

    created: str
    generation: int
    rows: int
    source: Source
    delta: float
    exact_micros: float
    seconds: float
    frontiers: tuple[Frontier, ...]
    stale: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back."""
        return {"version": VERSION, **vars(self), "frontiers": [each.to_json() for each in self.frontiers]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote; InvalidInput for another version's."""
        fields = dict(data)
        version = fields.pop("version", None)
        if version != VERSION or fields.get("source") not in get_args(Source):
            raise InvalidInput(f"expected a calibration of version {VERSION}, got {version!r}: calibrate again")
        return cls(**{**fields, "frontiers": tuple(Frontier.from_json(each) for each in fields["frontiers"])})

    def stale_at(self, rows: int) -> str | None:
        """Why it should not be trusted where the collection has so many live rows; None while it should."""
        if self.stale is None and not self.rows <= _OUTGROWN * rows <= _OUTGROWN**2 * self.rows:
            return f"measured on {self.rows:,} rows, and there are {rows:,} now: calibrate again"
        return self.stale

    def at(self, k: int) -> list[Frontier]:
        """The frontiers of one k, widest filter first."""
        return sorted((each for each in self.frontiers if each.k == k), key=lambda each: -each.selectivity)

    @property
    def ks(self) -> list[int]:
        """The numbers of hits that were measured, ascending."""
        return sorted({each.k for each in self.frontiers})
