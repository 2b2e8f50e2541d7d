"""One contract for filters over every route: always min(k, matching) hits, all of which match, at any selectivity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import nestvec
from nestvec import Batch, Collection, Cut, Filter, Plan, Record, Stage
from nestvec.engine.schema import Metric

DIMS, BUILT, SEALED, GROWING = 32, 2400, 300, 60
ROWS = BUILT + SEALED + GROWING
GONE = range(0, ROWS, 17)
EVERYTHING = 10**4


class Route(NamedTuple):
    """How a collection is built for a route, and its plans: one that looks at everything, one that hardly looks."""

    build: dict[str, Any]
    all: Plan | None
    narrow: Plan | None


ROUTES = {
    "exact": Route({"soar": False}, Plan("exact"), None),
    "soar": Route(
        {"partitions": 40},
        Plan("soar", EVERYTHING, shortlist=Cut(EVERYTHING)),
        Plan("soar", 1, (Stage(8, 10),), probe_margin=0.0, shortlist=Cut(10, 0.01)),
    ),
    "faiss lists": Route(
        {"route": "faiss", "library": {"factory": "IVF20,PQ8x4fs", "dims": 16}},
        Plan("faiss", EVERYTHING, shortlist=Cut(EVERYTHING)),
        Plan("faiss", 1, shortlist=Cut(10)),
    ),
    "faiss graph": Route(
        {"route": "faiss", "library": {"factory": "HNSW8"}}, None, Plan("faiss", 1, shortlist=Cut(10))
    ),
    "scann": Route(
        {"route": "scann"}, Plan("scann", EVERYTHING, shortlist=Cut(EVERYTHING)), Plan("scann", 1, shortlist=Cut(10))
    ),
}

MASKS = {
    "all": ({"field": "n", "exists": True}, range(ROWS)),
    "most": ({"not": {"field": "word", "eq": "w3"}}, [n for n in range(ROWS) if n % 10 != 3]),
    "a tenth": ({"field": "tags", "contains": "w3"}, range(3, ROWS, 10)),
    "a hundredth": ({"field": "n", "in": [*range(5, ROWS, 100)]}, range(5, ROWS, 100)),
    "eleven rows": ({"field": "n", "range": {"gte": 1190, "lt": 1202}}, [n for n in range(1190, 1202) if n != 1190]),
    "a built row": ({"field": "n", "eq": 777}, [777]),
    "a sealed row": ({"field": "n", "eq": BUILT + 11}, [BUILT + 11]),
    "a growing row": ({"field": "n", "eq": ROWS - 1}, [ROWS - 1]),
    "no row": ({"field": "n", "eq": -1}, []),
    "only dead rows": ({"field": "n", "in": [*GONE][:1000]}, []),
}


def payload(n: int) -> dict[str, Any]:
    return {"n": n, "word": f"w{n % 10}", "tags": [f"w{n % 10}", "x"]}


def some(count: int, seed: int) -> np.ndarray:
    """Vectors in clusters, energy decaying with the dim."""
    rng = np.random.default_rng(seed)
    decay = 1.0 / np.sqrt(1.0 + np.arange(DIMS))
    centres = np.random.default_rng(42).standard_normal((20, DIMS)) * decay
    return (centres[rng.integers(20, size=count)] + 0.5 * rng.standard_normal((count, DIMS)) * decay).astype(np.float32)


@pytest.fixture(scope="module", params=["dot", "l2"])
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param


@pytest.fixture(scope="module", params=[*ROUTES])
def case(
    request: pytest.FixtureRequest, metric: Metric, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Route, Collection, np.ndarray]]:
    """A built segment, a sealed one and growing rows, with dead rows in all of them."""
    if request.param == "scann":
        pytest.importorskip("scann")
    route, vectors = ROUTES[request.param], some(ROWS, 1)
    with nestvec.open(tmp_path_factory.mktemp("filters") / "db") as database:
        collection = database.create_collection("c", dims=DIMS, metric=metric, granularities=(8, DIMS))
        ids = [str(n) for n in range(BUILT)]
        payloads = [payload(n) for n in range(BUILT)]
        collection.build([Batch(0, ids, vectors[:BUILT], None, payloads)], rotate="none", **route.build)
        later = [Record(str(n), vectors[n], payload(n)) for n in range(BUILT, ROWS)]
        collection.upsert(later[:SEALED])
        collection.seal()
        collection.upsert(later[SEALED:])
        collection.delete([str(n) for n in GONE])
        yield route, collection, vectors


def truth(vectors: np.ndarray, query: np.ndarray, k: int, metric: Metric, rows: list[int]) -> list[str]:
    wide = vectors[rows].astype(np.float64)
    scores = wide @ query if metric == "dot" else -np.square(wide - query).sum(axis=1)
    return [str(rows[i]) for i in np.argsort(-scores.astype(np.float32), kind="stable")[:k]]


@pytest.mark.parametrize("name", [*MASKS])
def test_every_route_gives_min_of_k_and_matching_hits(
    case: tuple[Route, Collection, np.ndarray], metric: Metric, name: str
) -> None:
    route, collection, vectors = case
    tree, matching = MASKS[name]
    rows = [n for n in matching if n not in GONE]
    for k in (1, 10):
        for query in some(3, 7):
            wanted = truth(vectors, query, k, metric, rows)
            exact = collection.search(query, k=k, filter=tree, exact=True)
            assert [hit.id for hit in exact] == wanted
            assert exact.work.rows == exact.filter.matching == len(rows)
            assert exact.filter.selectivity == len(rows) / (ROWS - len(GONE))
            for plan in (None, route.narrow, route.all):
                hits = collection.search(query, k=k, filter=Filter(tree), plan=plan)
                found = [hit.id for hit in hits]
                assert len(set(found)) == len(found) == min(k, len(rows))
                assert {int(id) for id in found} <= set(rows)
                assert hits.plan is not None
                assert hits.filter.mode == ("exact" if hits.plan.route == "exact" else "scan")
                if plan is not None and (plan is route.all or hits.filter.mode == "exact"):
                    assert found == wanted


@pytest.mark.parametrize("name", [*MASKS])
def test_batches_counts_and_scrolls_see_the_same_rows(
    case: tuple[Route, Collection, np.ndarray], metric: Metric, name: str
) -> None:
    _, collection, _ = case
    tree, matching = MASKS[name]
    rows = [str(n) for n in matching if n not in GONE]
    assert collection.count(filter=tree) == len(rows)
    page = collection.scroll(filter=tree, limit=1000)
    assert [record.id for record in page] == rows[:1000]
    queries = some(4, 8)
    together = collection.search_batch(queries, filter=tree, exact=True)
    alone = [collection.search(query, filter=tree, exact=True) for query in queries]
    assert [[hit.id for hit in hits] for hits in together] == [[hit.id for hit in hits] for hits in alone]


def test_without_a_filter_the_report_says_so(case: tuple[Route, Collection, np.ndarray], metric: Metric) -> None:
    _, collection, vectors = case
    report = collection.search(vectors[0]).filter
    assert (report.mode, report.matching, report.selectivity) == ("none", ROWS - len(GONE), 1.0)
