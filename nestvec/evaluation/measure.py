"""Ask every judged query in every way, and score the answers with ir-measures."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nestvec.engine.collection import Collection
from nestvec.engine.coordinates import F32
from nestvec.engine.database import Database, open
from nestvec.engine.encoders import Encoder, load_encoder
from nestvec.engine.fusion import Fusion
from nestvec.engine.plan import Plan
from nestvec.engine.progress import Progress, silent
from nestvec.engine.ranking import RANKS, Rank
from nestvec.engine.record import Hits
from nestvec.errors import InvalidInput, MissingDependency
from nestvec.evaluation.collections import Corpus, calibrate, encode_corpus, encode_queries
from nestvec.evaluation.files import JudgedSet, read_set

Search = Literal["words", "exact", "planned", "plan"]
"""How candidates are found: by words alone; by vector exactly, by the planner's choice, or by a plan that was given."""

TOP, DEEP = 10, 100
"""nDCG and MRR are of searches for TOP hits, recall of searches for DEEP ones."""


@dataclass(frozen=True)
class Row:
    """What one way to search reached: means over the queries, with the standard error of nDCG@10, and milliseconds a
    query for TOP hits, asked one at a time, its vector at hand. `dims` is None for words alone, `route` that of most
    answers. `basis`: what a planned search rests on, such as "872 queries": other queries of the set, pieces of its
    texts, or documents; None where nothing was chosen by recall."""

    rank: Rank
    search: Search
    dims: int | None
    ndcg: float
    ndcg_error: float
    mrr: float
    recall: float
    p50_ms: float
    p99_ms: float
    route: str | None
    basis: str | None


@dataclass(frozen=True)
class Evaluation:
    """All ways on one set. `unreachable`: judged relevant, but not in the corpus or without text; they count as
    missed. `empty`: documents without text."""

    name: str
    split: str
    encoder: str
    fingerprint: str
    documents: int
    empty: int
    queries: int
    unreachable: int
    rows: list[Row]


@dataclass(frozen=True)
class _Way:
    rank: Rank
    search: Search
    dims: int | None
    ask: Callable[..., Hits]


def evaluate(
    folder: Path,
    encoder: str = "static",
    *,
    ranks: Sequence[Rank] = ("dense",),
    dims: Sequence[int] | None = None,
    recall: float | None = None,
    plan: Plan | None = None,
    fusion: Fusion | None = None,
    split: str = "test",
    most: int | None = None,
    database: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """How well `encoder` ranks the judged set in `folder`, and how well the engine's plans keep that.

    `ranks`: by vector, by words, by both (as `fusion` says). `dims`: prefix lengths (None: the encoder's
    granularities). At each the search runs exactly, and by the planner's choice for `recall` (None: the engine's
    default); with `plan` that plan runs instead, at the largest of the dims. `most` queries at most. `database`: a
    directory that keeps what is encoded and built, for the next call or after a stop (None: nothing is kept).

    Raises MissingDependency without ir-measures, NotFound and InvalidInput for the folder, and what the encoder raises.
    """
    if find_spec("ir_measures") is None:
        raise MissingDependency("evaluation", "eval")
    _check_ranks(ranks)
    loaded, judged = load_encoder(encoder), read_set(folder, split, most)
    prefixes = _prefixes(dims, loaded)
    with _opened(database) as store:
        corpus = encode_corpus(store, judged.corpus, judged.name, loaded, progress)
        vectors = encode_queries(loaded, [text for _, text in judged.queries], progress)
        built = {each: corpus.prefix(store, each, loaded, progress) for each in prefixes}
        if plan is None and set(ranks) != {"bm25"}:
            others = encode_queries(loaded, judged.others, progress)
            for made in built.values():
                calibrate(made, others, loaded, progress)
        ways = list(_ways(built, ranks, partial(_planned, recall, plan, prefixes[-1]), fusion))
        rows = [_measure(way, judged, vectors, progress) for way in ways]
        lost = _unreachable(corpus, judged)
    return Evaluation(
        judged.name, split, loaded.name, loaded.fingerprint, corpus.rows, corpus.empty, len(judged.queries), lost, rows
    )


def _check_ranks(ranks: Sequence[Rank]) -> None:
    unknown = [rank for rank in ranks if rank not in RANKS]
    if unknown or not ranks:
        raise InvalidInput(f"ranks are some of {', '.join(RANKS)}; got {', '.join(unknown) or 'none'}")


def _prefixes(dims: Sequence[int] | None, encoder: Encoder) -> list[int]:
    """The prefix lengths to search by, ascending."""
    wanted = sorted(set(encoder.granularities if dims is None else dims))
    if not wanted or wanted[0] < 1 or wanted[-1] > encoder.dims:
        raise InvalidInput(f"dims are from 1 to {encoder.dims}, the encoder's; got {list(dims or ())}")
    return wanted


@contextmanager
def _opened(path: Path | None) -> Iterator[Database]:
    if path is not None:
        with open(path) as database:
            yield database
        return
    with tempfile.TemporaryDirectory(prefix="nestvec-eval-") as scratch, open(scratch) as database:
        yield database


def _planned(recall: float | None, plan: Plan | None, longest: int, dims: int) -> tuple[Search, dict[str, Any]] | None:
    """What to ask a collection of `dims` for besides the exact search."""
    if plan is None:
        return "planned", {"recall": recall}
    return ("plan", {"plan": plan}) if dims == longest else None


def _ways(
    built: dict[int, Collection],
    ranks: Sequence[Rank],
    planned: Callable[[int], tuple[Search, dict[str, Any]] | None],
    fusion: Fusion | None,
) -> Iterator[_Way]:
    for rank in dict.fromkeys(ranks):
        if rank == "bm25":
            yield _Way(rank, "words", None, partial(next(iter(built.values())).search, rank=rank))
            continue
        how = {"rank": rank} if rank == "dense" else {"rank": rank, "fusion": fusion}
        for dims, collection in built.items():
            yield _Way(rank, "exact", dims, partial(collection.search, exact=True, **how))
            other = planned(dims)
            if other is not None:
                yield _Way(rank, other[0], dims, partial(collection.search, **other[1], **how))


def _measure(way: _Way, judged: JudgedSet, vectors: F32, progress: Progress) -> Row:
    step = " ".join(str(part) for part in (way.rank, way.search, way.dims) if part is not None)
    top: dict[str, list[str]] = {}
    deep: dict[str, list[str]] = {}
    seconds, routes, basis = [], Counter[str](), None
    for number, ((id, text), vector) in enumerate(zip(judged.queries, vectors, strict=True), 1):
        query = None if way.rank == "bm25" else vector[: way.dims]
        words = None if way.rank == "dense" else text
        start = time.perf_counter()
        hits = way.ask(query, text=words, k=TOP, with_payload=False)
        seconds.append(time.perf_counter() - start)
        top[id] = [hit.id for hit in hits]
        deep[id] = [hit.id for hit in way.ask(query, text=words, k=DEEP, with_payload=False)]
        routes[hits.plan.route if hits.plan else ""] += 1
        basis = basis or _basis(hits)
        progress(step, number, len(judged.queries))
    ndcg, mrr, recall = _scores(judged, top, deep)
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    error = float(np.std(ndcg, ddof=1) / np.sqrt(len(ndcg))) if len(ndcg) > 1 else 0.0
    return Row(
        way.rank, way.search, way.dims, float(np.mean(ndcg)), error, float(np.mean(mrr)), float(np.mean(recall)),
        float(p50), float(p99), routes.most_common(1)[0][0] or None, basis,
    )  # fmt: skip


def _basis(hits: Hits) -> str | None:
    basis = hits.choice.basis if hits.choice else None
    return f"{basis.queries:,} {basis.source}" if basis else None


def _scores(
    judged: JudgedSet, top: dict[str, list[str]], deep: dict[str, list[str]]
) -> tuple[list[float], list[float], list[float]]:
    """nDCG@10, MRR@10 and R@100 of every query; a query without hits has 0."""
    import ir_measures
    from ir_measures import RR, R, nDCG

    # Places stand for scores: trec_eval would break ties by id, and the engine's order is the answer.
    runs = [
        {id: {hit: -float(place) for place, hit in enumerate(ids)} for id, ids in run.items()} for run in (top, deep)
    ]
    found: dict[str, list[float]] = {}
    for run, measures in zip(runs, ([nDCG @ TOP, RR @ TOP], [R @ DEEP]), strict=True):
        for each in ir_measures.iter_calc(measures, judged.grades, run):
            found.setdefault(str(each.measure), []).append(each.value)
    return found[str(nDCG @ TOP)], found[str(RR @ TOP)], found[str(R @ DEEP)]


def _unreachable(corpus: Corpus, judged: JudgedSet) -> int:
    """How many judged relevant documents are not in the collection. Raises InvalidInput where none is."""
    wanted = sorted({document for grades in judged.grades.values() for document in grades})
    there = sum(len(corpus.encoded.get(wanted[start : start + 1000])) for start in range(0, len(wanted), 1000))
    if not there:
        raise InvalidInput(f"{judged.corpus}: holds none of the documents that the qrels judge relevant")
    return len(wanted) - there
