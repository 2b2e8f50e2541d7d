"""One contract for every first stage: whatever it is, visiting everything must equal the exact search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from nestvec.errors import InvalidInput
from nestvec.index.funnel import Stage, search
from nestvec.index.metric import Metric
from nestvec.index.protocol import FirstStage
from nestvec.index.scan import exact_search
from nestvec.index.soar.assign import assign
from nestvec.index.soar.search import SoarIndex
from nestvec.index.soar.store import model_arrays, model_from, postings_arrays, postings_from
from nestvec.index.soar.train import SoarConfig, train
from nestvec.index.work import Work

N, DIMS = 1500, 32
CONFIG = SoarConfig(partitions=12, partition_dims=16, code_dims=11, dims_per_block=3, iterations=4, seed=7)
EVERYTHING = 10**6


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
    """One first stage over one kind of vectors; `first` is None for the exact route."""

    vectors: np.ndarray
    queries: np.ndarray
    metric: Metric
    build: Callable[[], FirstStage | None]
    reload: Callable[[FirstStage | None], FirstStage | None]

    def run(
        self,
        first: FirstStage | None,
        query: np.ndarray,
        k: int,
        stages: tuple[Stage, ...] = (),
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        prepared = None if first is None else first.prepare(query, EVERYTHING)
        return search(
            self.vectors,
            first,
            prepared,
            query,
            k,
            stages=stages,
            metric=self.metric,
            allowed=allowed,
            work=Work(),
        )


def _soar(vectors: np.ndarray, metric: Metric, spill: bool) -> FirstStage:
    model = train(vectors, replace(CONFIG, spill=spill), metric)
    return SoarIndex(model, assign(model, vectors))


def _reloaded_soar(first: FirstStage | None) -> FirstStage:
    assert isinstance(first, SoarIndex)
    return SoarIndex(model_from(*model_arrays(first.model)), postings_from(*postings_arrays(first.postings)))


@pytest.fixture(scope="module", params=["float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["dot", "l2"])
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param


@pytest.fixture(scope="module", params=["exact", "soar", "soar without spill"])
def case(request: pytest.FixtureRequest, metric: Metric, dtype: str) -> Case:
    vectors = nested_vectors(N, DIMS, 1).astype(dtype)
    if metric == "l2":
        vectors = (vectors * (0.5 + np.abs(vectors[:, :1]))).astype(dtype)  # several norms; duplicates stay duplicates
    queries = np.concatenate((vectors[:3].astype(np.float32), nested_vectors(4, DIMS, 2)))
    if request.param == "exact":
        return Case(vectors, queries, metric, lambda: None, lambda first: first)
    spill = request.param == "soar"
    return Case(vectors, queries, metric, lambda: _soar(vectors, metric, spill), _reloaded_soar)


@pytest.fixture(scope="module")
def first(case: Case) -> FirstStage | None:
    return case.build()


def test_visiting_everything_equals_exact_search_ties_included(case: Case, first: FirstStage | None) -> None:
    tied = 0
    for query in case.queries:
        for k in (1, 10, N, N + 5):
            rows, scores = case.run(first, query, k)
            wanted_rows, wanted_scores = exact_search(case.vectors, query, k, metric=case.metric)
            np.testing.assert_array_equal(rows, wanted_rows)
            np.testing.assert_array_equal(scores, wanted_scores)
            tied += int((scores[1:] == scores[:-1]).sum())
    assert tied > 100


def test_a_funnel_that_cuts_nothing_equals_exact_search(case: Case, first: FirstStage | None) -> None:
    stages = (Stage(8, N), Stage(20, N), Stage(DIMS, N))
    for query in case.queries:
        rows, scores = case.run(first, query, 25, stages)
        wanted_rows, wanted_scores = exact_search(case.vectors, query, 25, metric=case.metric)
        np.testing.assert_array_equal(rows, wanted_rows)
        np.testing.assert_array_equal(scores, wanted_scores)


@pytest.mark.parametrize("share", [0.0, 0.004, 0.5])
def test_masked_rows_never_return_and_allowed_rows_always_fill_k(
    case: Case, first: FirstStage | None, share: float
) -> None:
    allowed = np.random.default_rng(3).random(N) < share
    for query in case.queries:
        for stages in ((), (Stage(8, 12),)):
            rows, _ = case.run(first, query, 10, stages, allowed)
            assert allowed[rows].all()
            assert len(rows) == min(10, int(allowed.sum()))
        rows, _ = case.run(first, query, 10, (), allowed)
        np.testing.assert_array_equal(
            rows, exact_search(case.vectors, query, 10, metric=case.metric, allowed=allowed)[0]
        )


def test_saved_and_loaded_answers_are_the_same(case: Case, first: FirstStage | None) -> None:
    loaded = case.reload(first)
    for query in case.queries:
        for one, other in zip(
            case.run(first, query, 10, (Stage(8, 30),)), case.run(loaded, query, 10, (Stage(8, 30),)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_building_twice_gives_the_same_candidates(case: Case, first: FirstStage | None) -> None:
    again = case.build()
    if first is None or again is None:
        assert first is again
        return
    for query in case.queries:
        one = first.candidates(first.prepare(query, 3), 50, None, Work())
        np.testing.assert_array_equal(one, again.candidates(again.prepare(query, 3), 50, None, Work()))


def test_candidates_are_distinct_bounded_and_counted(case: Case, first: FirstStage | None) -> None:
    if first is None:
        return
    for query in case.queries:
        for probes, keep in ((1, 5), (3, 40), (first.max_probes, N), (EVERYTHING, 10 * N)):
            work = Work()
            rows = first.candidates(first.prepare(query, probes), keep, None, work)
            assert rows.dtype == np.int64
            assert len(np.unique(rows)) == len(rows) <= keep
            assert work.partitions == min(probes, first.max_probes)
            assert work.codes >= len(rows)
            assert work.bytes > 0
            assert set(work.micros) == {"probe", "scan"}
    assert len(rows) == N == first.n_rows
    assert first.resident_bytes > 0


def test_more_candidates_extend_fewer(case: Case, first: FirstStage | None) -> None:
    if first is None:
        return
    prepared = first.prepare(case.queries[0], 4)
    long = first.candidates(prepared, 80, None, Work())
    np.testing.assert_array_equal(first.candidates(prepared, 20, None, Work()), long[:20])


def test_bad_probes_and_keep_are_refused_with_the_bound(case: Case, first: FirstStage | None) -> None:
    if first is None:
        return
    with pytest.raises(InvalidInput, match="probes must be >= 1, got 0"):
        first.prepare(case.queries[0], 0)
    with pytest.raises(InvalidInput, match="keep must be >= 1, got 0"):
        first.candidates(first.prepare(case.queries[0], 1), 0, None, Work())
    with pytest.raises(InvalidInput, match="allowed must be bool"):
        first.candidates(first.prepare(case.queries[0], 1), 1, np.ones(3, np.bool_), Work())
