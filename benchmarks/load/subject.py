"""What is loaded: a collection of vectors, searches in it, and writes to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import nestvec
from nestvec.benchmarks.data import load_matrix, smoke_data
from nestvec.benchmarks.load.closed import request

F32 = NDArray[np.float32]

COLLECTION, K = "load", 10
CHURN = 200
"""Ids that are written again and again: the growing rows stay as many, so that the load is the same all the time."""
_QUERIES = 500
_BATCH = 5000


@dataclass(frozen=True)
class Subject:
    """A database with one collection of the rows of `base` [n, d], whose ids are their numbers; queries [q, d]."""

    db: Path
    base: NDArray[np.floating]
    queries: F32

    @property
    def searches(self) -> list[bytes]:
        """Whole requests, one for each query."""
        path = f"/v1/collections/{COLLECTION}/query"
        return [_json(path, {"vector": query.tolist(), "k": K}) for query in self.queries]

    @property
    def writes(self) -> list[bytes]:
        """Whole requests that replace one record each."""
        return [write([f"churn-{i}"], self.queries[i % len(self.queries)][None]) for i in range(CHURN)]


def write(ids: list[str], vectors: NDArray[np.floating], collection: str = COLLECTION) -> bytes:
    """A whole request that writes these records, as lists of numbers of four digits."""
    rows = vectors.astype(np.float64).round(4).tolist()
    records = [{"id": id, "vector": row} for id, row in zip(ids, rows, strict=True)]
    made = _json(f"/v1/collections/{collection}/records", {"records": records})
    return made.replace(b"POST", b"PUT", 1)


def _json(path: str, body: object) -> bytes:
    return request(path, json.dumps(body, separators=(",", ":")).encode(), "application/json", "application/json")


def vectors(rows: int, base: Path | None, queries: Path | None, scratch: Path) -> tuple[NDArray[np.floating], F32]:
    """(base [rows, d], queries [q, d]) from files, or else made from the documentation of the standard library: two
    passages for each row, the vectors of the static encoder side by side and mixed (768 dims)."""
    if base is not None and queries is not None:
        return load_matrix(base)[:rows], load_matrix(queries)[:_QUERIES].astype(np.float32)
    made = smoke_data(scratch / "text")
    texts, asked = load_matrix(made.base).astype(np.float32), load_matrix(made.queries).astype(np.float32)
    rng = np.random.default_rng(1)
    return _mixed(texts, rows, rng), _mixed(asked, _QUERIES, rng)


def _mixed(texts: F32, rows: int, rng: np.random.Generator) -> F32:
    first, second = rng.integers(0, len(texts), (2, rows))
    share = rng.random((rows, 1), np.float32)
    one, two = texts[first], texts[second]
    return np.concatenate([one, share * one + (1 - share) * two, two], axis=1)


def build(db: Path, base: NDArray[np.floating], queries: F32) -> Subject:
    """Make the database; rows in float16, with small payloads."""
    with nestvec.open(db) as database:
        collection = database.create_collection(COLLECTION, dims=base.shape[1], metric="cosine", dtype="float16")
        collection.build(
            nestvec.Batch(
                start,
                vectors=np.asarray(base[start : start + _BATCH], np.float32),
                payloads=[{"row": row, "lang": "en"} for row in range(start, min(start + _BATCH, len(base)))],
            )
            for start in range(0, len(base), _BATCH)
        )
    return Subject(db, base, queries)
