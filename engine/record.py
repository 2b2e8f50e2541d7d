"""What goes in and what comes out: records, hits, and the small reports of the verbs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.plan import Plan
from nestvec.engine.schema import CollectionConfig
from nestvec.index.work import Work

Vector = NDArray[np.float32]


@dataclass(eq=False)
class Record:
    """One record. `vector` is f32 [dims] in the user's own coordinates and scale; `text` is kept and returned."""

    id: str
    vector: Vector | None = None
    payload: dict[str, Any] | None = None
    text: str | None = None


@dataclass(eq=False)
class Hit:
    """One found record. `score`: higher is better (cosine: the cosine; dot: the product; l2: minus the square)."""

    id: str
    score: float
    payload: dict[str, Any] | None = None
    text: str | None = None
    vector: Vector | None = None


@dataclass(eq=False)
class Hits:
    """The answer to one query, best first, ties by order of writing; `plan`: what was done; `work`: what it touched."""

    hits: list[Hit]
    plan: Plan
    work: Work
    generation: int | None

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, position: int) -> Hit:
        return self.hits[position]


@dataclass(frozen=True)
class UpsertResult:
    """`count` records are durable; `seq` is the sequence number of the last one."""

    count: int
    seq: int


@dataclass(frozen=True)
class SealResult:
    """`rows` moved into `segment` (None: there was nothing to seal), coded with `generation` (None: none yet)."""

    rows: int
    segment: int | None
    generation: int | None


@dataclass(frozen=True)
class CompactResult:
    """`segments_before` became at most one segment of `rows` rows; `dropped` dead rows are gone."""

    segments_before: int
    rows: int
    dropped: int


@dataclass(frozen=True)
class CollectionInfo:
    """Facts about a collection at one instant. `count` = live rows; `growing` and `sealed` are its two parts.

    `index_bytes` is the resident size of the first-stage index, in bytes.
    """

    name: str
    config: CollectionConfig
    count: int
    growing: int
    sealed: int
    segments: int
    generation: int | None
    index_bytes: int
