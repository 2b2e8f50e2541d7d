"""What goes in and what comes out: records, hits, and the small reports of the verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.plan import Plan
from nestvec.engine.planner import Choice
from nestvec.engine.schema import CollectionConfig
from nestvec.index.work import Work

Vector = NDArray[np.float32]

_PAYLOADS = msgspec.json.Decoder(dict[str, Any] | None)


@dataclass(eq=False)
class Record:
    """One record. `vector` is f32 [dims] in the user's own coordinates and scale; `text` is kept and returned."""

    id: str
    vector: Vector | None = None
    payload: dict[str, Any] | None = None
    text: str | None = None


class Hit:
    """One found record. `score`: higher is better (cosine: the cosine; dot: the product; l2: minus the square).

    In a collection with chunking `id` is the chunk's and `document` its document's; elsewhere `document` is None.
    A payload given as the JSON that is stored (b"null" for none) is decoded when it is first read.
    """

    __slots__ = ("_payload", "document", "id", "score", "text", "vector")

    def __init__(
        self,
        id: str,
        score: float,
        payload: dict[str, Any] | bytes | None = None,
        text: str | None = None,
        vector: Vector | None = None,
        document: str | None = None,
    ) -> None:
        self.id, self.score, self._payload, self.text, self.vector = id, score, payload, text, vector
        self.document = document

    def __repr__(self) -> str:
        return f"Hit(id={self.id!r}, score={self.score!r}, payload={self.payload!r}, text={self.text!r})"

    @property
    def payload(self) -> dict[str, Any] | None:
        """The payload; None where there is none, or it was not asked for."""
        if isinstance(self._payload, bytes):
            self._payload = payload_of(self._payload)
        return self._payload

    @property
    def payload_json(self) -> bytes:
        """The payload as JSON, b"null" for None."""
        held = self._payload
        return held if isinstance(held, bytes) else json.dumps(held, ensure_ascii=False).encode()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the vector as a list."""
        vector = None if self.vector is None else self.vector.tolist()
        return {
            "id": self.id,
            "score": self.score,
            "payload": self.payload,
            "text": self.text,
            "vector": vector,
            "document": self.document,
        }


def payload_of(stored: bytes) -> dict[str, Any] | None:
    """A payload from its stored form, which is JSON."""
    payload: dict[str, Any] | None = _PAYLOADS.decode(stored)
    return payload


@dataclass(frozen=True)
class FilterReport:
    """What a filter left of the live rows: how many, and which share of them.

    mode: "none" there was no filter; "scan" the rows that match were found by the plan; "exact" all were compared.
    """

    mode: Literal["none", "scan", "exact"]
    matching: int
    selectivity: float


class FoundRows(NamedTuple):
    """Hits as they were read: (id, payload as JSON, text) of each, and the scores."""

    records: Sequence[tuple[str, bytes, str | None]]
    scores: Sequence[float]


class Hits:
    """The answer to one query, best first, ties by order of writing; `plan`: what was done; `work`: what it touched.

    `plan` is None where words alone were searched (rank="bm25"); `work` counts the vectors' side. `choice` says why
    this plan, and which recall it promises; None where the caller chose.
    """

    __slots__ = ("_held", "choice", "filter", "generation", "plan", "work")

    def __init__(
        self,
        hits: list[Hit] | FoundRows,
        plan: Plan | None,
        work: Work,
        generation: int | None,
        filter: FilterReport,
        choice: Choice | None = None,
    ) -> None:
        self._held, self.plan, self.work, self.generation = hits, plan, work, generation
        self.filter, self.choice = filter, choice

    def __repr__(self) -> str:
        return f"Hits(hits={self.hits!r}, plan={self.plan!r}, filter={self.filter!r}, choice={self.choice!r})"

    @property
    def hits(self) -> list[Hit]:
        """The found records; of rows they are made when first asked for."""
        held = self._held
        if isinstance(held, FoundRows):
            held = [Hit(id, score, payload, text) for (id, payload, text), score in zip(*held, strict=True)]
            self._held = held
        return held

    @property
    def rows(self) -> FoundRows | None:
        """The same as rows, for who writes them on; None once they are hits."""
        held = self._held
        return held if isinstance(held, FoundRows) else None

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self._held.records if isinstance(self._held, FoundRows) else self._held)

    def __getitem__(self, position: int) -> Hit:
        return self.hits[position]


@dataclass(eq=False)
class Page:
    """Some records in the order of their writing, and the cursor of the next page; None: this is the last one."""

    records: list[Record]
    cursor: str | None

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


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

    `index_bytes` is the resident size of the first-stage index, in bytes. `route`: of the current generation, None
    without one. `adapted`: its learned adapter has taken the place of the vectors as they were written.
    """

    name: str
    config: CollectionConfig
    count: int
    growing: int
    sealed: int
    segments: int
    generation: int | None
    index_bytes: int
    route: str | None = None
    adapted: bool = False
