"""Hybrid search is its two sides, fused as the formulas say, and always as many hits as there can be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documentation import python_passages

import nestvec
from nestvec import Collection, Fusion, Hits, Record
from nestvec.engine.encoders import load_encoder
from nestvec.engine.fusion import Kind, reciprocal, weighted
from nestvec.engine.ranking import Rank
from nestvec.engine.schema import Metric
from nestvec.errors import InvalidInput

QUERIES = (
    "open a file for reading",
    "what collects cycles of garbage?",
    "thread safe queue with priorities",
    "time zone of a datetime",
    "zzzunheardof",
)
ROWS = 2500


@pytest.fixture(scope="module", params=["exact", "soar"])
def collection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    """Two segments and growing rows, some deleted; with route soar a generation too."""
    with nestvec.open(tmp_path_factory.mktemp(request.param) / "db") as database:
        made = database.create_collection("c", encoder="static")
        items = [Record(p["id"], None, {"n": n}, p["text"]) for n, p in enumerate(python_passages()[:ROWS])]
        if request.param == "soar":
            built = items[:2200]
            payloads = [record.payload or {} for record in built]
            batch = nestvec.Batch(0, [r.id for r in built], None, [r.text or "" for r in built], payloads)
            made.build([batch], rotate="pca")
        else:
            made.upsert(items[:900])
            made.seal()
            made.upsert(items[900:2200])
        made.upsert(items[2200:])
        made.delete([record.id for record in items[::11]])
        yield made


def scores_of(hits: Hits) -> dict[str, float]:
    return {hit.id: hit.score for hit in hits}


@cache
def live_vectors(collection: Collection) -> tuple[list[str], np.ndarray]:
    """Ids of the live records, and their vectors f64 as users get them."""
    records = collection.get([p["id"] for p in python_passages()[:ROWS]], with_vector=True)
    matrix = np.stack([record.vector for record in records if record.vector is not None]).astype(np.float64)
    return [record.id for record in records], matrix


def dense_scores(collection: Collection, query: str) -> dict[str, float]:
    """The cosine of every live record, by plain numpy over the vectors as users get them."""
    ids, matrix = live_vectors(collection)
    values = matrix @ np.asarray(load_encoder("static").encode_queries([query])[0], np.float64)
    return dict(zip(ids, values.tolist(), strict=True))


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("depth", [None, 7, 300])
def test_rrf_adds_reciprocal_ranks(collection: Collection, query: str, depth: int | None) -> None:
    k, taken = 20, max(20, depth or 200)
    dense = [hit.id for hit in collection.search(text=query, k=taken)]
    words = [hit.id for hit in collection.search(text=query, k=taken, rank="bm25")]
    wanted: dict[str, float] = {}
    for order, share in ((dense, 0.3), (words, 0.7)):
        for place, id in enumerate(order, 1):
            wanted[id] = wanted.get(id, 0) + share / (10 + place)
    fusion = Fusion("rrf", weight=0.3, depth=depth, rrf_k=10)
    hits = collection.search(text=query, k=k, rank="hybrid", fusion=fusion)
    np.testing.assert_allclose([hit.score for hit in hits], sorted(wanted.values(), reverse=True)[:k], rtol=1e-6)
    for hit in hits:
        assert hit.score == pytest.approx(wanted[hit.id], rel=1e-6)


@pytest.mark.parametrize("query", QUERIES)
def test_weighted_adds_scaled_scores_of_all_candidates(collection: Collection, query: str) -> None:
    exact = dense_scores(collection, query)
    dense = [hit.id for hit in collection.search(text=query, k=100)]
    words = scores_of(collection.search(text=query, k=100, rank="bm25"))
    union = {*dense, *words}
    low, high = min(exact[id] for id in union), max(exact[id] for id in union)
    best = max(words.values(), default=1.0)
    wanted = {id: 0.3 * (exact[id] - low) / (high - low) + 0.7 * words.get(id, 0) / best for id in union}
    hits = collection.search(text=query, rank="hybrid")
    assert hits.plan is not None
    np.testing.assert_allclose([hit.score for hit in hits], sorted(wanted.values(), reverse=True)[:10], atol=1e-5)
    for hit in hits:
        assert hit.score == pytest.approx(wanted[hit.id], abs=1e-5)


@pytest.mark.parametrize("kind", ["weighted", "rrf"])
def test_all_weight_on_one_side_is_that_side(collection: Collection, kind: Kind) -> None:
    for query in QUERIES[:4]:
        dense = [hit.id for hit in collection.search(text=query)]
        words = [hit.id for hit in collection.search(text=query, rank="bm25")]
        for weight, order in ((1.0, dense), (0.0, words)):
            hits = collection.search(text=query, rank="hybrid", fusion=Fusion(kind, weight))
            assert [hit.id for hit in hits] == order


@pytest.mark.parametrize("k", [1, 10, 999, 1000])
@pytest.mark.parametrize("filter", [None, {"field": "n", "range": {"gte": 880, "lt": 920}}, {"field": "n", "eq": 11}])
def test_there_are_always_as_many_hits_as_can_be(collection: Collection, k: int, filter: dict[str, Any] | None) -> None:
    wanted = min(k, collection.count(filter=filter))
    for query in QUERIES:
        for fusion in (None, Fusion("rrf"), Fusion(depth=1)):
            hits = collection.search(text=query, k=k, rank="hybrid", fusion=fusion, filter=filter)
            assert len(hits) == len(scores_of(hits)) == wanted
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("rank", ["bm25", "hybrid"])
def test_a_batch_is_its_queries(collection: Collection, rank: Rank) -> None:
    batch = collection.search_batch(texts=QUERIES, rank=rank, k=5)
    for query, hits in zip(QUERIES, batch, strict=True):
        alone = collection.search(text=query, rank=rank, k=5)
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-6)


def test_a_vector_beside_the_text_is_the_dense_side(collection: Collection) -> None:
    target = collection.search(text=QUERIES[1], with_vector=True, k=3)[2]
    hits = collection.search(target.vector, text="zzzunheardof", rank="hybrid")
    assert hits[0].id == target.id
    both = collection.search(target.vector, text=QUERIES[3], rank="hybrid", fusion=Fusion(weight=0.0))
    assert both[0].id == collection.search(text=QUERIES[3], rank="bm25")[0].id
    with pytest.raises(InvalidInput, match="one of each"):
        collection.search_batch(np.ones((2, collection.config.dims)), texts=["a"], rank="hybrid")


def test_all_sides_are_of_one_instant(collection: Collection) -> None:
    """An upsert between two searches changes both sides; none of them finds what the other lost."""
    record = Record("fleeting", None, {"n": -1}, "an ephemeral mayfly")
    for _ in range(3):
        collection.upsert([record])
        assert collection.search(text="ephemeral mayfly", rank="hybrid")[0].id == "fleeting"
        collection.delete(["fleeting"])
        assert "fleeting" not in scores_of(collection.search(text="ephemeral mayfly", rank="hybrid"))


def test_an_empty_collection_has_no_hits(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        empty = database.create_collection("c", encoder="static")
        for rank in ("dense", "bm25", "hybrid"):
            assert empty.search(text="anything", rank=rank).hits == []


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_other_metrics_are_scaled_too(tmp_path: Path, metric: Metric) -> None:
    with nestvec.open(tmp_path / "db") as database:
        made = database.create_collection("c", dims=2, metric=metric, bm25=True)
        vectors = {"near": (1.0, 1.0), "far": (-30.0, 0.0), "worded": (0.9, 0.9), "other": (0.0, 0.0)}
        made.upsert(
            [Record(id, np.array(v), None, "some words" if id == "worded" else id) for id, v in vectors.items()]
        )
        hits = scores_of(made.search((1.0, 1.0), text="words", rank="hybrid"))
        assert next(iter(hits)) == "worded"
        assert hits["near"] == pytest.approx(0.3)
        assert hits["far"] == pytest.approx(0.0)
        assert 0.98 < hits["worded"] < 1


def test_equal_scores_are_fused_without_dividing_by_zero() -> None:
    np.testing.assert_allclose(weighted(np.ones(2), np.zeros(2), 0.4), [0.4, 0.4])
    np.testing.assert_allclose(weighted(np.ones(1), np.full(1, 3.0), 0.4), [1.0])
    fused = reciprocal(np.array([2, 5, 9]), np.array([9, 2]), np.array([5]), 0.5, 0.0)
    np.testing.assert_allclose(fused, [0.25, 0.5, 0.5])


@pytest.mark.parametrize("fusion", [Fusion(), Fusion("rrf", 0.25, 50, 12.5), Fusion(weight=0, depth=1000)])
def test_a_fusion_survives_json(fusion: Fusion) -> None:
    assert Fusion.from_json(fusion.to_json()) == fusion


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "max"},
        {"weight": 1.01},
        {"weight": float("nan")},
        {"weight": True},
        {"weight": "0.5"},
        {"depth": 0},
        {"depth": 1001},
        {"depth": 10.0},
        {"rrf_k": -1},
        {"k": 60},
        ["rrf"],
    ],
)
def test_other_fusions_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="fusion"):
        Fusion.from_json(data)


def test_candidates_grow_with_k_within_bounds() -> None:
    assert [Fusion().candidates(k) for k in (1, 10, 11, 100, 1000, 4000)] == [100, 100, 110, 1000, 1000, 4000]
    assert [Fusion(depth=50).candidates(k) for k in (1, 50, 51)] == [50, 50, 51]
    assert (Fusion().share, Fusion("rrf").share, Fusion("rrf", 0.2).share) == (0.3, 0.5, 0.2)
