"""Searching segments of one model: recall, work, plans, and parts that do not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.funnel import Cut, FunnelPlan, Stage
from nestvec.index.lists.search import ListIndex, ListSearcher, SearchPart, native_model, native_plan
from nestvec.index.metric import Metric
from nestvec.index.rescore import RescoreRows, rescore_rows
from nestvec.index.scan import exact_search
from nestvec.index.soar.assign import assign
from nestvec.index.soar.train import SoarConfig, SoarModel, default_config, train

N, DIMS = 6000, 96
CONFIG = SoarConfig(partitions=64, partition_dims=64, code_dims=48, dims_per_block=2, rescore_dims=64)
FUNNEL = FunnelPlan(8, 0.5, Cut(200, 0.3), (Stage(64, 60, 0.2, "int8"), Stage(80, 30)))


def nested_vectors(n: int, dims: int, seed: int) -> np.ndarray:
    """Unit vectors in overlapping clusters of a fixed mixture, energy decaying with the dim."""
    decay = 1.0 / np.sqrt(1.0 + np.arange(dims))
    centres = np.random.default_rng(99).standard_normal((60, dims)) * decay
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(60, size=n)] + 0.6 * rng.standard_normal((n, dims)) * decay
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


STORED, QUERIES = nested_vectors(N, DIMS, 10), nested_vectors(100, DIMS, 11)


def part_of(model: SoarModel, vectors: np.ndarray, start: int = 0) -> SearchPart:
    index = ListIndex(model, assign(model, vectors), rescore_rows(model, vectors))
    return SearchPart(index, vectors, np.arange(start, start + len(vectors)), None)


@pytest.fixture(scope="module", params=["dot", "l2"])
def model(request: pytest.FixtureRequest) -> SoarModel:
    return train(STORED, CONFIG, request.param)


@pytest.fixture(scope="module")
def part(model: SoarModel) -> SearchPart:
    return part_of(model, STORED)


@pytest.fixture(scope="module")
def searcher(part: SearchPart) -> ListSearcher:
    return ListSearcher([part])


def test_recall_on_nested_data_is_above_nine_tenths(searcher: ListSearcher) -> None:
    found = 0
    for query in QUERIES:
        seqs, _, work = searcher.search_counted(query, 10, FUNNEL)
        found += len(np.intersect1d(seqs, exact_search(STORED, query, 10, metric=searcher.model.metric)[0]))
        assert work.codes < N / 3
        assert work.rows <= 200
    assert found / 1000 > 0.9


def test_scores_are_the_exact_scores_in_order(searcher: ListSearcher) -> None:
    for query in QUERIES[:20]:
        rows, scores = exact_search(STORED, query, N, metric=searcher.model.metric)
        exact = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        seqs, found = searcher.search(query, 10, FUNNEL)
        assert found.tolist() == [exact[seq] for seq in seqs.tolist()]
        assert (np.diff(found) <= 0).all()


def test_a_batch_and_a_counted_search_answer_as_single_searches(searcher: ListSearcher) -> None:
    for threads in (1, 3):
        seqs, scores, works = searcher.search_batch(QUERIES, 7, FUNNEL, threads)
        for i, query in enumerate(QUERIES):
            for each in (searcher.search(query, 7, FUNNEL), searcher.search_counted(query, 7, FUNNEL)[:2]):
                np.testing.assert_array_equal(each[0], seqs[i])
                np.testing.assert_array_equal(each[1], scores[i])
            counted = searcher.search_counted(query, 7, FUNNEL)[2]
            assert (works[i].partitions, works[i].codes, works[i].bytes) == (
                counted.partitions,
                counted.codes,
                counted.bytes,
            )
            assert works[i].micros == {}


def test_a_batch_marks_what_was_not_found(model: SoarModel) -> None:
    few = ListSearcher([part_of(model, STORED[:3])])
    seqs, scores, _ = few.search_batch(QUERIES[:2], 5, FunnelPlan(64))
    assert (seqs[:, 3:] == -1).all()
    assert np.isneginf(scores[:, 3:]).all()
    assert (np.sort(seqs[:, :3], axis=1) == [0, 1, 2]).all()


def test_work_counts_lists_codes_rows_and_bytes(searcher: ListSearcher) -> None:
    _, _, work = searcher.search_counted(QUERIES[0], 5, FUNNEL)
    counts = [stage["in"] for stage in work.stages] + [work.stages[-1]["out"]]
    assert [stage["dims"] for stage in work.stages] == [48, 64, 80, 96]
    assert counts[0] == work.codes
    assert counts[1] == work.rows
    assert counts[-1] == 5
    assert sorted(counts, reverse=True) == counts
    pair = 1 if searcher.model.metric == "l2" else 0
    int8, stored, final = counts[1:4]
    bands = 64 * int8 + 4 * 80 * stored + 4 * 16 * final
    assert work.bytes == 64 * 64 + (12 + pair) * work.codes + bands
    assert 1 <= work.partitions <= 8
    assert list(work.micros) == ["route", "scan", "stage 64", "stage 80", "final"]
    assert all(taken >= 0 for taken in work.micros.values())


def test_the_shortlist_of_a_plan_without_one_follows_its_first_stage(searcher: ListSearcher) -> None:
    def shortlist(plan: FunnelPlan, k: int) -> int:
        return searcher.search_counted(QUERIES[1], k, plan)[2].rows

    wide = FunnelPlan(64)
    assert shortlist(wide, 5) == N
    assert shortlist(replace(wide, stages=(Stage(64, 20),)), 5) == 80
    assert shortlist(replace(wide, stages=(Stage(64, 20),)), 30) == 120
    assert shortlist(replace(wide, stages=(Stage(64, 20),), shortlist=Cut(33)), 30) == 33
    assert native_plan(wide, 5) is native_plan(FunnelPlan(64), 5)


def test_cosine_stages_are_for_dot(searcher: ListSearcher) -> None:
    plan = FunnelPlan(64, stages=(Stage(40, N),), stage_metric="cosine")
    if searcher.model.metric == "dot":
        seqs, _ = searcher.search(QUERIES[0], 9, plan)
        np.testing.assert_array_equal(seqs, exact_search(STORED, QUERIES[0], 9, metric="dot")[0])
    else:
        with pytest.raises(InvalidInput, match="needs metric 'dot', got 'l2'"):
            searcher.search(QUERIES[0], 9, plan)


def test_what_a_search_cannot_use_is_refused(searcher: ListSearcher, part: SearchPart) -> None:
    with pytest.raises(InvalidInput, match="k must be >= 1, got 0"):
        searcher.search(QUERIES[0], 0, FUNNEL)
    for query in (QUERIES[0][:5], QUERIES[:2]):
        with pytest.raises(InvalidInput, match=r"query must have shape \(96,\)"):
            searcher.search(query, 5, FUNNEL)
    for query in (np.full(DIMS, np.nan, np.float32), np.full(DIMS, np.inf, np.float32)):
        with pytest.raises(InvalidInput, match="must be finite"):
            searcher.search_counted(query, 5, FUNNEL)
    for stage, message in ((Stage(97, 5), "96"), (Stage(128, 5, rows="int8"), "64"), (Stage(32, 5, rows="int8"), "64")):
        with pytest.raises(InvalidInput, match=message):
            searcher.search(QUERIES[0], 5, FunnelPlan(4, stages=(stage,)))
    bare = ListSearcher([replace(part, index=ListIndex(part.index.model, part.index.postings, None))])
    with pytest.raises(InvalidInput, match="int8 rows"):
        bare.search(QUERIES[0], 5, FUNNEL)
    assert len(bare.search(QUERIES[0], 5, FunnelPlan(4))[0]) == 5


def test_parts_that_do_not_fit_are_refused(part: SearchPart) -> None:
    other = part_of(train(STORED, CONFIG, part.index.model.metric), STORED[:50])
    for parts, message in (
        ([], "at least one part"),
        ([part, other], "share one model"),
        ([replace(part, vectors=STORED[:-1])], r"vectors must have shape \(6000, 96\), got \(5999, 96\)"),
        ([replace(part, seqs=part.seqs.astype(np.int32))], "seqs must be int64"),
        ([replace(part, seqs=part.seqs[1:])], r"seqs must be int64 of shape \(6000,\)"),
        ([replace(part, allowed=np.ones(7, np.bool_))], r"allowed must be bool of shape \(6000,\)"),
    ):
        with pytest.raises(InvalidInput, match=message):
            ListSearcher(parts)


def test_an_index_of_parts_that_do_not_fit_is_refused(part: SearchPart) -> None:
    model, postings, rescore = part.index.model, part.index.postings, part.index.rescore
    assert rescore is not None
    assert part.index.resident_bytes == postings.nbytes + rescore.nbytes
    assert ListIndex(model, postings, None).resident_bytes == postings.nbytes
    fewer = train(STORED, replace(CONFIG, partitions=8), model.metric)
    metric: Metric = "l2" if model.metric == "dot" else "dot"
    for wrong in (fewer, train(STORED, CONFIG, metric)):
        with pytest.raises(InvalidInput, match="assign the rows with this model"):
            ListIndex(wrong, postings, None)
    with pytest.raises(InvalidInput, match=r"uint8 \(6000, 64\), got uint8 \(5999, 64\)"):
        ListIndex(model, postings, RescoreRows(rescore.codes[1:], rescore.bias))
    changed = None if rescore.bias is not None else np.zeros(N, np.float32)
    with pytest.raises(InvalidInput, match="only for 'l2'"):
        ListIndex(model, postings, RescoreRows(rescore.codes, changed))


def test_another_mask_keeps_the_checked_segment(part: SearchPart) -> None:
    index = part.index
    first = index.segment(part.vectors, part.seqs, None)
    assert index.segment(part.vectors, part.seqs, None) is first
    assert index.segment(part.vectors, part.seqs + 1, None) is not first
    none = np.zeros(N, np.bool_)
    assert len(ListSearcher([replace(part, allowed=none)]).search(QUERIES[0], 5, FUNNEL)[0]) == 0
    assert len(ListSearcher([part]).search(QUERIES[0], 5, FUNNEL)[0]) == 5


def test_centroid_codes_stand_for_the_centroids(model: SoarModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(kernels, "Model", lambda *given: made.append(given) or object())
    odd = replace(
        model, config=replace(CONFIG, partitions=19, partition_dims=49), centroids=model.centroids[:19, :49].copy()
    )
    assert native_model(odd) is native_model(odd)
    (given,) = made
    codes, scale, bias = given[2], given[3], given[4]
    assert isinstance(codes, np.ndarray)
    assert isinstance(bias, np.ndarray)
    assert isinstance(scale, float)
    assert codes.shape == (13, 32, 4)
    decoded = (codes.transpose(1, 0, 2).reshape(32, 52).astype(np.float64) - 128) * scale
    assert np.abs(decoded[:19, :49] - odd.centroids).max() <= 0.501 * scale
    assert not decoded[19:].any()
    assert not decoded[:, 49:].any()
    squares = np.square(odd.centroids.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(bias, -squares if model.metric == "l2" else 0 * squares, rtol=1e-5)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_a_handful_of_rows_or_only_duplicates_can_be_searched(n: int, metric: Metric) -> None:
    stored = np.tile(nested_vectors(1, 8, 0), (n, 1))
    model = train(stored, default_config(n, 8, (4, 8)), metric)
    seqs, scores = ListSearcher([part_of(model, stored, 5)]).search(stored[0], 99, FunnelPlan(99))
    assert seqs.tolist() == list(range(5, 5 + n))
    assert len(set(scores.tolist())) == 1


def test_a_segment_without_rows_has_no_hits(model: SoarModel) -> None:
    searcher = ListSearcher([part_of(model, STORED[:0])])
    seqs, scores, work = searcher.search_counted(QUERIES[0], 5, replace(FUNNEL, shortlist=Cut(10, math.inf)))
    assert len(seqs) == len(scores) == work.codes == work.rows == 0
