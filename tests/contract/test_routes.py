"""One contract for every route: told to look at everything, it gives what an exact scan of all rows gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestvec.index.ehi import model as ehi
from nestvec.index.ehi import store as ehi_store
from nestvec.index.ehi.router import Layer, Residual, Router
from nestvec.index.funnel import Cut, FunnelPlan, Stage
from nestvec.index.library import scann
from nestvec.index.library.faiss import FaissConfig
from nestvec.index.library.search import LibraryConfig, LibraryIndex, LibraryPart, LibrarySearcher
from nestvec.index.lists.model import ListModel
from nestvec.index.lists.search import ListIndex, ListSearcher, SearchPart
from nestvec.index.lists.store import postings_arrays, postings_from
from nestvec.index.metric import Metric
from nestvec.index.rescore import RescoreRows, rescore_rows
from nestvec.index.scan import exact_search
from nestvec.index.soar import store as soar_store
from nestvec.index.soar.assign import assign
from nestvec.index.soar.train import SoarConfig, train

N, DIMS = 1500, 32
PARTS = (700, 0, 799, 1)  # rows of each segment
ORDER = (2, 0, 3, 1)  # of the segments: sequence numbers do not ascend with the segment
EVERYTHING = 10**6
CONFIG = SoarConfig(
    partitions=12, partition_dims=16, code_dims=11, dims_per_block=3, rescore_dims=64, iterations=4, seed=7
)
ALL = FunnelPlan(EVERYTHING)
STORED = (Stage(8, N), Stage(20, N), Stage(DIMS, N))
NARROW = FunnelPlan(4, 0.5, Cut(60, 0.4), (Stage(8, 30, 0.3), Stage(20, 12)))
BY_COUNT = FunnelPlan(4, shortlist=Cut(60), stages=(Stage(8, 30), Stage(20, 12)))
SHORT = (replace(ALL, stages=(Stage(8, 12),)), replace(ALL, shortlist=Cut(1, 0.0)))
SHORT_BY_COUNT = (replace(ALL, stages=(Stage(8, 12),)), replace(ALL, shortlist=Cut(1)))

EHI = ehi.EhiConfig(12, partition_dims=16, code_dims=11, dims_per_block=3, rescore_dims=64, iterations=4, seed=7)


@dataclass(frozen=True)
class Grown:
    """A tree with those branches, features of so many hidden numbers, and other settings of its config."""

    branches: tuple[int, ...]
    hidden: int = 0
    filing: dict[str, Any] = field(default_factory=dict)


Answer = tuple[np.ndarray, np.ndarray]
Search = Callable[[np.ndarray, int, FunnelPlan], Answer]


def nested_vectors(n: int, dims: int, seed: int) -> np.ndarray:
    """Unit vectors in clusters, energy decaying with the dim, a third of them exact duplicates."""
    rng = np.random.default_rng(seed)
    decay = 1.0 / np.sqrt(1.0 + np.arange(dims))
    centres = rng.standard_normal((20, dims)) * decay
    vectors = centres[rng.integers(20, size=n)] + 0.5 * rng.standard_normal((n, dims)) * decay
    vectors[n - n // 3 :] = vectors[rng.integers(n // 3, size=n // 3)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """Vectors in the order of their sequence numbers, and a route over segments of them.

    open: makes a search over segments, with a mask by sequence number or None; `reload` sends all through a store.
    int8: whether the route has int8 stages. narrow: a plan that cuts. short: plans that keep hardly more than k.
    """

    vectors: np.ndarray
    queries: np.ndarray
    metric: Metric
    open: Callable[[np.ndarray | None, bool], Search]
    int8: bool
    narrow: FunnelPlan = NARROW
    short: tuple[FunnelPlan, ...] = SHORT


def segments(vectors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(vectors, sequence numbers) of each segment, in the order of the segments."""
    bounds = np.cumsum((0, *PARTS))
    spans = [np.arange(bounds[i], bounds[i + 1]) for i in ORDER]
    return [(np.ascontiguousarray(vectors[span]), span) for span in spans]


def exact_route(vectors: np.ndarray, metric: Metric) -> Callable[[np.ndarray | None, bool], Search]:
    def open_route(allowed: np.ndarray | None, reload: bool) -> Search:
        def search(query: np.ndarray, k: int, plan: FunnelPlan) -> Answer:
            found = []
            for rows, seqs in segments(vectors):
                mask = None if allowed is None else allowed[seqs]
                best, scores = exact_search(rows, query, k, metric=metric, allowed=mask)
                found.append((seqs[best], scores))
            every, score = (np.concatenate(each) for each in zip(*found, strict=True))
            order = np.lexsort((every, -score))[:k]
            return every[order], score[order]

        return search

    return open_route


def grown_tree(vectors: np.ndarray, branches: tuple[int, ...], hidden: int = 0) -> Router:
    """A tree whose heads point at rows of each node's own, with random features on top if `hidden`."""
    rng, rows = np.random.default_rng(5), vectors.astype(np.float32)
    heads, count = [], 1
    for branch in branches:
        count *= branch
        weights = 12 * rows[rng.integers(0, len(rows), count), :20]
        heads.append(Layer(np.ascontiguousarray(weights), rng.standard_normal(count).astype(np.float32)))
    if not hidden:
        return Router(branches, tuple(heads), beam=1)
    first, second = (rng.standard_normal(shape).astype(np.float32) * 0.2 for shape in ((hidden, 20), (20, hidden)))
    features = Residual(Layer(first, np.zeros(hidden, np.float32)), Layer(second, np.zeros(20, np.float32)))
    return Router(branches, tuple(heads), features, beam=1)


def trained(vectors: np.ndarray, metric: Metric, config: SoarConfig | Grown) -> ListModel:
    if isinstance(config, SoarConfig):
        return train(vectors, config, metric)
    router = grown_tree(vectors, config.branches, config.hidden)
    return ehi.train(vectors, router, replace(EHI, partitions=router.leaves, **config.filing), metric)


def lists_route(
    vectors: np.ndarray, metric: Metric, config: SoarConfig | Grown
) -> Callable[[np.ndarray | None, bool], Search]:
    model = trained(vectors, metric, config)
    indexes = [index_of(model, rows) for rows, _ in segments(vectors)]

    def open_route(allowed: np.ndarray | None, reload: bool) -> Search:
        used = reloaded(indexes) if reload else indexes
        parts = [
            SearchPart(index, rows, seqs, None if allowed is None else allowed[seqs])
            for index, (rows, seqs) in zip(used, segments(vectors), strict=True)
        ]
        return ListSearcher(parts).search

    return open_route


def index_of(model: ListModel, rows: np.ndarray) -> ListIndex:
    postings = ehi.assign(model, rows) if isinstance(model, ehi.EhiModel) else assign(model, rows)
    return ListIndex(model, postings, rescore_rows(model, rows) if model.config.rescore_dims else None)


def reloaded(indexes: list[ListIndex]) -> list[ListIndex]:
    held = indexes[0].model
    store = ehi_store if isinstance(held, ehi.EhiModel) else soar_store
    model = store.model_from(*store.model_arrays(held))
    return [
        ListIndex(
            model,
            postings_from(*postings_arrays(index.postings)),
            RescoreRows(index.rescore.codes, index.rescore.bias) if index.rescore else None,
        )
        for index in indexes
    ]


def library_config(name: str, metric: Metric) -> LibraryConfig:
    """ "scann", or a faiss factory string and perhaps the prefix that it sees: "PQ8x4fs over 16"."""
    if name == "scann":
        pytest.importorskip("scann")
        return scann.ScannConfig.of({"dims": 20, "leaves": 12}, DIMS, metric)
    factory, _, dims = name.partition(" over ")
    return FaissConfig.of({"factory": factory, "dims": int(dims or DIMS)}, DIMS, metric)


def library_route(vectors: np.ndarray, metric: Metric, name: str) -> Callable[[np.ndarray | None, bool], Search]:
    model = library_config(name, metric).train(vectors, metric, N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scann, "SMALL", 100)
        indexes = [model.assign(rows) for rows, _ in segments(vectors)]

    def open_route(allowed: np.ndarray | None, reload: bool) -> Search:
        used = [saved_and_loaded(index) for index in indexes] if reload else indexes
        parts = [
            LibraryPart(index, rows, seqs, None if allowed is None else allowed[seqs])
            for index, (rows, seqs) in zip(used, segments(vectors), strict=True)
        ]
        return LibrarySearcher(parts).search

    return open_route


def saved_and_loaded(index: LibraryIndex) -> LibraryIndex:
    with tempfile.TemporaryDirectory() as written:
        facts = index.save(Path(written))
        return index.model.load(Path(written), facts, index.n_rows)


FLAT = ("IVF12,Flat", "IVF12,FlatPanorama4", "HNSW16")
CODED = ("IVF12,RaBitQ", "RR,IVF12,RaBitQfs", "PQ16x4fs", "PQ8x4fs over 16", "IVF12,PQ16x4fs,Refine(SQ8)", "scann")
LIBRARIES = (*FLAT, *CODED)

ROUTES = {
    "soar": CONFIG,
    "soar plain": replace(CONFIG, spill_share=0.0, anisotropy=1.0, rescore_dims=0),
    "soar spilled": replace(CONFIG, spill_share=1.0, dims_per_block=2),
    "ehi": Grown((12,)),
    "ehi features": Grown((12,), hidden=7),
    "ehi two levels": Grown((3, 4)),
    "ehi two leaves a row": Grown((4, 2), filing={"leaves_per_row": 2}),
    "ehi spilled": Grown((12,), filing={"spill": "soar"}),
    "ehi plain": Grown((2, 3, 2), filing={"rescore_dims": 0, "anisotropy": 1.0}),
}


@pytest.fixture(scope="module", params=["float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["dot", "l2"])
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param


@pytest.fixture(scope="module", params=["exact", *ROUTES, *LIBRARIES])
def case(request: pytest.FixtureRequest, metric: Metric, dtype: str) -> Case:
    vectors, queries = stored_vectors(metric, dtype)
    if request.param == "exact":
        return Case(vectors, queries, metric, exact_route(vectors, metric), False)
    if request.param in LIBRARIES:
        route = library_route(vectors, metric, request.param)
        return Case(vectors, queries, metric, route, False, BY_COUNT, SHORT_BY_COUNT)
    config = ROUTES[request.param]
    int8 = config.rescore_dims > 0 if isinstance(config, SoarConfig) else "rescore_dims" not in config.filing
    return Case(vectors, queries, metric, lists_route(vectors, metric, config), int8)


def stored_vectors(metric: Metric, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(vectors, queries: some of them and others)."""
    vectors = nested_vectors(N, DIMS, 1).astype(dtype)
    if metric == "l2":
        vectors = (vectors * (0.5 + np.abs(vectors[:, :1]))).astype(dtype)  # several norms; duplicates stay duplicates
    return vectors, np.concatenate((vectors[:3].astype(np.float32), nested_vectors(3, DIMS, 2)))


def assert_same(found: Answer, wanted: Answer) -> None:
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def plans_that_cut_nothing(case: Case) -> list[FunnelPlan]:
    plans = [ALL, replace(ALL, stages=STORED)]
    if case.int8:
        coded = (Stage(64, N, rows="int8"),)
        plans += [replace(ALL, stages=coded), replace(ALL, stages=coded + STORED)]
    if case.metric == "dot":
        plans.append(replace(ALL, stages=STORED, stage_metric="cosine"))
    return plans


def test_looking_at_everything_equals_the_exact_scan_ties_included(case: Case) -> None:
    search, tied = case.open(None, False), 0
    for query in case.queries:
        for k in (1, 10, N, N + 5):
            wanted = exact_search(case.vectors, query, k, metric=case.metric)
            assert_same(search(query, k, ALL), wanted)
            tied += int((wanted[1][1:] == wanted[1][:-1]).sum())
    assert tied > 100


def test_stages_that_cut_nothing_change_nothing(case: Case) -> None:
    search = case.open(None, False)
    for plan in plans_that_cut_nothing(case):
        for query in case.queries:
            assert_same(search(query, 25, plan), exact_search(case.vectors, query, 25, metric=case.metric))


@pytest.mark.parametrize("share", [0.0, 0.004, 0.5])
def test_masked_rows_never_return_and_allowed_rows_always_fill_k(case: Case, share: float) -> None:
    allowed = np.random.default_rng(3).random(N) < share
    search = case.open(allowed, False)
    for query in case.queries:
        wanted = exact_search(case.vectors, query, 10, metric=case.metric, allowed=allowed)
        for plan in plans_that_cut_nothing(case):
            assert_same(search(query, 10, plan), wanted)
        for plan in case.short:
            seqs, _ = search(query, 10, plan)
            assert allowed[seqs].all()
            assert len(np.unique(seqs)) == len(seqs) == min(10, int(allowed.sum()))


def test_a_narrow_plan_finds_distinct_rows_with_their_exact_scores(case: Case) -> None:
    search = case.open(None, False)
    for query in case.queries:
        seqs, scores = search(query, 10, case.narrow)
        rows, exact = exact_search(case.vectors, query, N, metric=case.metric)
        assert len(np.unique(seqs)) == len(seqs) == 10
        np.testing.assert_array_equal(scores, exact[np.argsort(rows)][seqs])
        np.testing.assert_array_equal(np.lexsort((seqs, -scores)), np.arange(10))


def test_stored_and_loaded_answers_are_the_same(case: Case) -> None:
    one, other = case.open(None, False), case.open(None, True)
    for query in case.queries:
        assert_same(other(query, 10, case.narrow), one(query, 10, case.narrow))


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_visits_everything_has_the_nearest_among_its_candidates(metric: Metric, name: str) -> None:
    """Here the library chooses: 300 of some 700 rows in each of two segments, under a mask and without."""
    vectors, queries = stored_vectors(metric, "float32")
    route, plan = library_route(vectors, metric, name), replace(ALL, shortlist=Cut(300))
    half = np.random.default_rng(3).random(N) < 0.5
    for allowed, asked in ((None, plan), (half, replace(plan, shortlist=Cut(30)))):
        search, shares = route(allowed, False), []
        for query in queries:
            wanted = exact_search(vectors, query, 10, metric=metric, allowed=allowed)
            found = search(query, 10, asked)
            shares.append(np.isin(found[0], wanted[0]).mean())
            if name in FLAT and name != "HNSW16":
                assert_same(found, wanted)
        assert np.mean(shares) > 0.9


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_is_asked_for_no_more_than_the_plan_says(metric: Metric, name: str) -> None:
    vectors, queries = stored_vectors(metric, "float32")
    search = library_route(vectors, metric, name)(None, False)
    shallow = [search(query, 40, FunnelPlan(1, shortlist=Cut(40)))[0].tolist() for query in queries]
    assert shallow != [exact_search(vectors, query, 40, metric=metric)[0].tolist() for query in queries]


@pytest.mark.parametrize("name", LIBRARIES)
def test_building_twice_with_a_library_gives_the_same_answers(metric: Metric, name: str) -> None:
    vectors, queries = stored_vectors(metric, "float32")
    one, other = (library_route(vectors.copy(), metric, name)(None, False) for _ in range(2))
    for query in queries:
        assert_same(one(query, 10, BY_COUNT), other(query, 10, BY_COUNT))


@pytest.mark.parametrize("name", ["soar", "ehi spilled"])
def test_building_twice_gives_the_same_answers(metric: Metric, name: str) -> None:
    vectors = nested_vectors(N, DIMS, 1)
    one, other = (lists_route(vectors.copy(), metric, ROUTES[name])(None, False) for _ in range(2))
    for query in nested_vectors(5, DIMS, 4):
        assert_same(one(query, 10, NARROW), other(query, 10, NARROW))
