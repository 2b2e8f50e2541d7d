"""Step 2: the nearest passages of each query, found by our own engine over the current encoder's vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from nestvec.engine import database as databases
from nestvec.engine.collection import Collection
from nestvec.engine.encoders import load_encoder
from nestvec.engine.encoders.protocol import Encoder
from nestvec.engine.intake import Batch
from nestvec.engine.progress import Progress, silent
from nestvec.engine.record import Hits
from nestvec.engine.storage.files import new_directory, remove_tree
from nestvec.engine.storage.locks import FileLock
from nestvec.errors import InvalidInput
from nestvec.train.encoder.tables import Step, read_passages, rows, write
from nestvec.train.encoder.vectors import SCRATCH, Floats, Vectors, encoded
from nestvec.train.files import Row

_NAME = "passages"
_AT_ONCE = 256  # queries of one search
_CHECKED = 200  # queries that are answered exactly as well
_FEWEST, _MOST = 100, 1000  # queries to calibrate with


@dataclass(frozen=True)
class Mining:
    """What to look for: `candidates` passages a query, by this encoder, at this mean recall."""

    encoder: str = "static"
    candidates: int = 20
    recall: float = 0.95

    def __post_init__(self) -> None:
        if not 2 <= self.candidates <= 1000 or not 0 < self.recall <= 1:
            raise InvalidInput(f"expected 2 to 1,000 candidates and a recall above 0 and at most 1, got {self}")


def mine(folder: Path, wanted: Mining, *, progress: Progress = silent) -> dict[str, Any]:
    """Write the table candidates into `folder`, from its passages and pairs; nothing is done where it is there.

    The seed is always among the candidates: where it is not found, it comes last, and seed_rank is 0. Returns the
    summary: what the search cost, and which recall it had. Raises Busy where another
    process mines there, and what loading and calling the encoder raise.
    """
    encoder = load_encoder(wanted.encoder)
    settings = {**asdict(wanted), "fingerprint": encoder.fingerprint}
    step = Step(folder, "mine", settings, ("passages", "pairs"), ("candidates",))
    if (before := step.finished()) is not None:
        return before
    scratch = new_directory(folder / SCRATCH)
    lock = FileLock(scratch / "LOCK")
    lock.acquire(0.0, "mine")
    try:
        summary = _mine(folder, wanted, encoder, progress)
        remove_tree(scratch)
    finally:
        lock.release()
    return step.finish(summary)


def _mine(folder: Path, wanted: Mining, encoder: Encoder, progress: Progress) -> dict[str, Any]:
    begun = time.perf_counter()
    passages, pairs = read_passages(folder), list(rows(folder, "pairs"))
    documents, queries = _encoded(folder, encoder, [each.document for each in passages.values()], pairs, progress)
    encoding = time.perf_counter() - begun
    number = {doc_id: row for row, doc_id in enumerate(passages)}
    with databases.open(folder / SCRATCH / "database") as database:
        collection = _build(database, encoder, documents, progress)
        _calibrate(collection, queries, len(pairs), progress)
        search = _Search(collection, queries, documents, list(passages), [number[pair["doc_id"]] for pair in pairs])
        write(folder, "candidates", search.rows(pairs, wanted, progress))
        facts = search.facts(wanted)
    return {
        "queries": len(pairs),
        "passages": len(passages),
        "encoder": wanted.encoder,
        **facts,
        "encoding_seconds": round(encoding, 3),
        "seconds": round(time.perf_counter() - begun, 3),
    }


def _encoded(
    folder: Path, encoder: Encoder, documents: Sequence[str], pairs: Sequence[Row], progress: Progress
) -> tuple[Vectors, Vectors]:
    """The vectors of all passages and of all queries."""
    made, name = encoder.encode_documents, encoder.fingerprint
    found = encoded(folder, f"{name} document", documents, made, progress, "encode passages")
    queries = [pair["query"] for pair in pairs]
    return found, encoded(folder, f"{name} query", queries, encoder.encode_queries, progress, "encode queries")


def _build(database: databases.Database, encoder: Encoder, documents: Vectors, progress: Progress) -> Collection:
    """A collection whose ids are the passages' numbers; what an earlier run left is removed."""
    for info in database.collections():
        database.delete_collection(info.name)
    collection = database.create_collection(_NAME, dims=encoder.dims, granularities=encoder.granularities)
    starts = [0, *accumulate(len(block) for block in documents.blocks)]
    batches = [Batch(start, vectors=block) for start, block in zip(starts, documents.blocks, strict=False)]
    collection.build(batches, progress=progress, calibrate=False)
    return collection


def _calibrate(collection: Collection, queries: Vectors, count: int, progress: Progress) -> None:
    """With the queries themselves, evenly drawn, where there are enough of them."""
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST)).astype(int)).tolist()
    collection.calibrate(queries.take(chosen) if len(chosen) >= _FEWEST else None, progress=progress)


class _Search:
    """All queries through the funnel, and what it cost."""

    def __init__(
        self,
        collection: Collection,
        queries: Vectors,
        documents: Vectors,
        doc_ids: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        """`seeds`: the number of each query's own passage."""
        self._collection, self._queries, self._documents = collection, queries, documents
        self._doc_ids, self._seeds = doc_ids, seeds
        self._seconds = 0.0
        self._ranks: list[int] = []
        self._how: Hits | None = None

    def rows(self, pairs: Sequence[Row], wanted: Mining, progress: Progress) -> Iterator[Row]:
        """The table's rows, in the order of the pairs."""
        for start in range(0, len(pairs), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(pairs)))
            vectors = self._queries.take(numbers)
            begun = time.perf_counter()
            answers = self._collection.search_batch(
                vectors, k=wanted.candidates, recall=wanted.recall, with_payload=False
            )
            self._seconds += time.perf_counter() - begun
            self._how = answers[0]
            for query, vector, hits in zip(numbers, vectors, answers, strict=True):
                yield {"id": pairs[query]["id"], **self._row(self._seeds[query], vector, hits)}
            progress("search", numbers[-1] + 1, len(pairs))

    def _row(self, seed: int, vector: Floats, hits: Hits) -> Row:
        found = [int(hit.id) for hit in hits]
        scores = [round(float(hit.score), 6) for hit in hits]
        rank = found.index(seed) + 1 if seed in found else 0
        self._ranks.append(rank)
        if not rank:
            found.append(seed)
            scores.append(round(float(vector @ self._documents[seed]), 6))
        return {"doc_ids": [self._doc_ids[each] for each in found], "scores": scores, "seed_rank": rank}

    def facts(self, wanted: Mining) -> dict[str, Any]:
        """µs a query, the plan with what its recall rests on, the recall as measured now, and where the seeds were."""
        ranks = np.asarray(self._ranks)
        chosen = np.unique(np.linspace(0, len(ranks) - 1, min(len(ranks), _CHECKED)).astype(int)).tolist()
        vectors = self._queries.take(chosen)
        measured = self._collection.measure_recall(vectors, k=wanted.candidates, recall=wanted.recall)
        choice = self._how.choice if self._how else None
        return {
            "candidates": wanted.candidates,
            "micros_per_query": round(1e6 * self._seconds / len(ranks), 1),
            "plan": self._how.plan.to_json() if self._how and self._how.plan else None,
            "recall": {
                "target": wanted.recall,
                "calibrated": round(choice.estimate, 4) if choice and choice.estimate is not None else None,
                "because": choice.reason if choice else None,
                "measured": round(measured.recall, 4),
                "low": round(measured.low, 4),
                "high": round(measured.high, 4),
                "measured_on": measured.queries,
            },
            "seed_is_first": round(float((ranks == 1).mean()), 4),
            "seed_is_found": round(float((ranks > 0).mean()), 4),
        }
