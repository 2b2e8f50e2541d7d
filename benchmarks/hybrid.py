"""Ranking by vector, by words and by both on judged text sets: nDCG@10, and milliseconds a query.

    python -m nestvec.benchmarks.hybrid FOLDER --sets squad_dev cranfield medquad

A set is a folder in FOLDER with corpus.jsonl.gz ({id, title, text}), queries.jsonl.gz ({id, text, split}) and
qrels.tsv.gz (query, document, grade). Its documents are indexed as title and text; a seeded sample of at most --queries
judged queries of its test split is asked, one at a time. A set that is absent is skipped. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import nestvec
from nestvec import Collection, Fusion
from nestvec.benchmarks.machine import describe

HITS = 10
_BATCH = 2000


@dataclass(frozen=True)
class Way:
    """One way to rank."""

    name: str
    rank: Literal["dense", "bm25", "hybrid"]
    fusion: Fusion | None = None


WAYS = (
    Way("dense", "dense"),
    Way("BM25", "bm25"),
    Way("hybrid, RRF", "hybrid", Fusion("rrf")),
    Way("hybrid, weighted", "hybrid"),
)


@dataclass(frozen=True)
class Judged:
    """Documents (id, text), queries (id, text), and query -> document -> grade, of relevant documents only."""

    documents: list[tuple[str, str]]
    queries: list[tuple[str, str]]
    grades: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Row:
    """What one way reached on one set: the mean of nDCG@10, and milliseconds a query."""

    data: str
    way: str
    ndcg: float
    p50: float
    p99: float


def read(folder: Path, most: int) -> Judged:
    """A judged set; of its test queries with a relevant document a sample of at most `most`."""
    documents = []
    for line in _lines(folder / "corpus.jsonl.gz"):
        document = json.loads(line)
        text = f"{document['title']}\n{document['text']}".strip()
        if text:
            documents.append((str(document["id"]), text))
    grades: dict[str, dict[str, float]] = {}
    for line in _lines(folder / "qrels.tsv.gz"):
        query, id, grade = line.rstrip("\n").split("\t")
        if float(grade) > 0:
            grades.setdefault(query, {})[id] = float(grade)
    asked = [json.loads(line) for line in _lines(folder / "queries.jsonl.gz")]
    queries = [(q["id"], q["text"]) for q in asked if q["split"] == "test" and q["id"] in grades]
    if len(queries) > most:
        queries = random.Random(0).sample(queries, most)
    return Judged(documents, queries, grades)


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from file


def ndcg(ids: Sequence[str], grades: dict[str, float]) -> float:
    """nDCG@10 of a ranking, with the grades as gains."""
    ideal = sorted(grades.values(), reverse=True)[:HITS]
    return _gain([grades.get(id, 0.0) for id in ids[:HITS]]) / _gain(ideal)


def _gain(grades: Sequence[float]) -> float:
    return sum(grade / math.log2(place + 2) for place, grade in enumerate(grades))


def index(judged: Judged, folder: Path, encoder: str) -> Collection:
    """A built collection of the documents."""
    collection = nestvec.open(folder).create_collection("hybrid", encoder=encoder, bm25=True)
    documents = judged.documents
    blocks = [documents[start : start + _BATCH] for start in range(0, len(documents), _BATCH)]
    collection.build(
        nestvec.Batch(i * _BATCH, ids=[id for id, _ in block], texts=[text for _, text in block])
        for i, block in enumerate(blocks)
    )
    collection.warm()
    return collection


def ask(collection: Collection, judged: Judged, data: str, way: Way) -> Row:
    """Ask all queries one way."""
    gains, seconds = [], []
    for id, text in judged.queries:
        start = time.perf_counter()
        hits = collection.search(text=text, k=HITS, rank=way.rank, fusion=way.fusion, with_payload=False)
        seconds.append(time.perf_counter() - start)
        gains.append(ndcg([hit.id for hit in hits], judged.grades[id]))
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return Row(data, way.name, float(np.mean(gains)), float(p50), float(p99))


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, one line for each way."""
    sets = list(dict.fromkeys(row.data for row in rows))
    lines = ["| nDCG@10 (ms p50 / p99) | " + " | ".join(sets) + " | mean |", "|---" * (len(sets) + 2) + "|"]
    for way in dict.fromkeys(row.way for row in rows):
        mine = [row for row in rows if row.way == way]
        cells = [f"{row.ndcg:.3f} ({row.p50:.1f} / {row.p99:.1f})" for row in mine]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {np.mean([row.ndcg for row in mine]):.3f} |")
    return "\n".join(lines)


def run(folder: Path, sets: Sequence[str], most: int, encoder: str) -> list[Row]:
    """All ways on all sets that are there."""
    rows: list[Row] = []
    for name in sets:
        if not (folder / name / "corpus.jsonl.gz").is_file():
            sys.stderr.write(f"{folder / name} is absent: skipped\n")
            continue
        judged = read(folder / name, most)
        with tempfile.TemporaryDirectory(prefix="nestvec-hybrid-") as scratch:
            collection = index(judged, Path(scratch), encoder)
            rows += [ask(collection, judged, name, way) for way in WAYS]
            collection.close()
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sets are")
    parser.add_argument("--sets", nargs="+", default=["squad_dev", "cranfield", "medquad"])
    parser.add_argument("--queries", type=int, default=1000, help="at most so many of each set")
    parser.add_argument("--encoder", default="static")
    arguments = parser.parse_args()
    rows = run(arguments.folder, arguments.sets, arguments.queries, arguments.encoder)
    if not rows:
        parser.error(f"none of {', '.join(arguments.sets)} is in {arguments.folder}")
    told: dict[str, Any] = {"machine": describe(), "encoder": arguments.encoder, "rows": [asdict(row) for row in rows]}
    sys.stdout.write(table(rows) + "\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
