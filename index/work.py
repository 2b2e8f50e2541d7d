"""What a query touched: the cost side of every recall figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

StageWork = TypedDict("StageWork", {"dims": int, "in": int, "out": int, "micros": float, "bytes": int})


@dataclass(slots=True)
class Work:
    """Counts of one query (or, after `add`, of several).

    partitions: posting lists visited. codes: postings whose code was summed. rows: rows of which some band was read,
    as int8 or as stored. bytes: of centroids or router, codes, int8 and stored bands read. router: multiply-adds that
    chose the lists, of centroids or of a learned tree (of several levels: at most so many). micros: microseconds by
    step; a batch is not timed step by step. stages: one entry per cut: the codes', each stage's, and the final one.
    """

    partitions: int = 0
    codes: int = 0
    rows: int = 0
    bytes: int = 0
    router: int = 0
    micros: dict[str, float] = field(default_factory=dict)
    stages: list[StageWork] = field(default_factory=list)

    def add_micros(self, step: str, micros: float) -> None:
        """Add time to one step."""
        self.micros[step] = self.micros.get(step, 0.0) + micros

    def add(self, other: Work) -> None:
        """Add the counts, times and stages of `other`."""
        self.partitions += other.partitions
        self.codes += other.codes
        self.rows += other.rows
        self.bytes += other.bytes
        self.router += other.router
        for step, micros in other.micros.items():
            self.add_micros(step, micros)
        self.stages.extend(other.stages)
