"""What each part of a search does, on four rows whose scores are plain to see, and what it refuses."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

F32, U8 = np.float32, np.uint8
INF = math.inf
QUERY = np.ones(64, F32)
TRUTH = {100: 5.0, 101: 1.0, 102: 9.0, 103: 3.0}  # scores of the four rows, by seq
PLAN = {"probes": 9, "probe_margin": INF, "keep": 99, "margin": INF, "stages": (), "cosine": False}


def a_model() -> dict[str, Any]:
    """64 dims, one list, one sub-quantiser of one dimension whose centres run from -1 to 1."""
    return {
        "l2": False,
        "dims": 64,
        "centroid_codes": np.full((1, 16, 4), 128, U8),
        "centroid_scale": 1.0,
        "centroid_bias": np.zeros(1, F32),
        "codebook": np.linspace(-1, 1, 16, dtype=F32).reshape(1, 16, 1),
        "rescore_scale": np.ones(64, F32),
        "spread": 0.125,  # times the query's length 8: a margin of 1 is a score of 1
        "centre": np.zeros(64, F32),
    }


def a_segment() -> dict[str, Any]:
    """Codes say 15, 13, 9, 0; int8 rows say 2, 3, 1, 0; the vectors, in dimension 1, say what TRUTH says."""
    vectors, int8 = np.zeros((4, 64), F32), np.full((4, 64), 128, U8)
    vectors[:, 1] = list(TRUTH.values())
    int8[:, 0] = [130, 131, 129, 128]
    rows, codes = np.full(128, 0xFFFFFFFF, np.uint32), np.full((1, 1, 128), 15, U8)
    rows[:4], codes[0, 0, :4] = range(4), [15, 13, 9, 0]
    return {
        "codes": codes,
        "offsets": np.array([0, 128]),
        "counts": np.array([4], np.int32),
        "rows": rows,
        "bias_top": 0.0,
        "bias_step": 0.0,
        "rescore": int8,
        "rescore_bias": None,
        "vectors": vectors,
        "seqs": np.array(list(TRUTH)),
        "allowed": None,
    }


def searcher(kernel: ModuleType, *segments: dict[str, Any], **model: Any) -> Any:  # noqa: ANN401
    parts = [kernel.Segment(*one.values()) for one in segments]
    return kernel.Searcher(kernel.Model(*(a_model() | model).values()), parts)


def plan_of(kernel: ModuleType, **changes: Any) -> Any:  # noqa: ANN401
    return kernel.Plan(*(PLAN | changes).values())


@pytest.mark.parametrize(
    ("plan", "found", "after"),
    [
        ({}, 102, []),
        ({"keep": 1}, 100, []),
        ({"keep": 2}, 100, []),
        ({"keep": 3}, 102, []),
        # Codes differ by 2/15, so estimates are 0.27 and 0.8 below the best.
        ({"margin": 0.2}, 100, []),
        ({"margin": 0.5}, 100, []),
        ({"margin": 1.0}, 102, []),
        ({"stages": ((64, 1, INF, True),)}, 101, [1]),
        ({"stages": ((64, 9, 1.5, True),)}, 100, [2]),
        ({"stages": ((64, 9, 2.5, True),)}, 102, [3]),
        ({"stages": ((1, 1, INF, False),)}, 100, [1]),  # dimension 0 is 0 everywhere, and ties go to the first row
        ({"stages": ((2, 9, 4.5, False),)}, 102, [2]),
        ({"stages": ((64, 2, INF, True), (2, 1, INF, False))}, 100, [2, 1]),
        ({"stages": ((2, 9, 0.0, False),)}, 102, [1]),
        ({"stages": ((2, 9, 0.0, False),), "cosine": True}, 102, [4]),  # all four point the same way
    ],
)
def test_each_cut_does_what_its_words_say(
    kernel: ModuleType, plan: dict[str, Any], found: int, after: list[int]
) -> None:
    seqs, scores, counts, _ = searcher(kernel, a_segment()).search_counted(QUERY, 1, plan_of(kernel, **plan))
    assert (seqs.tolist(), counts[3:].tolist()) == ([found], [*after, 1])
    assert scores.tolist() == [TRUTH[found]]


def test_a_row_counts_once_with_its_best_posting(kernel: ModuleType) -> None:
    segment = a_segment()
    segment["rows"][:4] = [0, 2, 2, 1]  # row 2 is filed under codes 13 and 9, row 1 under 0, row 3 nowhere
    held = searcher(kernel, segment)
    seqs, _, counts, _ = held.search_counted(QUERY, 3, plan_of(kernel, keep=1))
    assert (seqs.tolist(), counts.tolist()) == ([102, 100, 101], [1, 4, 3, 3])
    seqs, _, counts, _ = held.search_counted(QUERY, 1, plan_of(kernel, keep=2))
    assert (seqs.tolist(), counts.tolist()) == ([102], [1, 4, 2, 1])


def test_int8_sums_at_the_ends_of_32_bits(kernel: ModuleType) -> None:
    wide = {"dims": 2048, "rescore_scale": np.ones(2048, F32), "centre": np.zeros(2048, F32)}
    vectors = np.zeros((4, 2048), F32)
    vectors[:, :64] = a_segment()["vectors"]
    for best, bytes_ in ((100, [255, 128, 127, 0]), (103, [0, 127, 128, 255]), (102, [0, 254, 255, 0])):
        rescore = np.repeat(np.array(bytes_, U8)[:, None], 2048, axis=1)
        held = searcher(kernel, a_segment() | {"rescore": rescore, "vectors": vectors}, **wide)
        plan = plan_of(kernel, stages=((1024, 4, INF, True), (2048, 1, INF, True)))
        assert held.search(np.ones(2048, F32), 1, plan)[0].tolist() == [best]


def test_an_int8_stage_scales_the_query_by_all_its_dims(kernel: ModuleType) -> None:
    wide = {"dims": 128, "rescore_scale": np.ones(128, F32), "centre": np.zeros(128, F32)}
    vectors, rescore = np.zeros((4, 128), F32), np.full((4, 128), 128, U8)
    vectors[:, :64], rescore[:, :64] = a_segment()["vectors"], a_segment()["rescore"]
    held = searcher(kernel, a_segment() | {"vectors": vectors, "rescore": rescore}, **wide)
    plan, query = plan_of(kernel, stages=((64, 1, INF, True),)), np.ones(128, F32)
    assert held.search(query, 1, plan)[0].tolist() == [101]
    query[100] = 1e6  # beside which 1 is nothing: all rows are equal
    assert held.search(query, 1, plan)[0].tolist() == [100]


def test_halves_round_to_even(kernel: ModuleType) -> None:
    codebook = np.linspace(-160, 160, 16, dtype=F32).reshape(1, 16, 1)  # so that a table step is a score of 1
    codebook[0, 13] = 159.5  # nothing below 160, like code 15; the first row comes first
    segment = a_segment()
    segment["codes"][0, 0, :4] = [0, 13, 15, 15]
    assert searcher(kernel, segment, codebook=codebook).search(QUERY, 1, plan_of(kernel, keep=1))[0].tolist() == [101]
    codebook[0, 13] = 158.5  # two below
    assert searcher(kernel, segment, codebook=codebook).search(QUERY, 1, plan_of(kernel, keep=1))[0].tolist() == [102]

    query, centroids = np.zeros(64, F32), np.full((1, 16, 4), 128, U8)
    query[:2] = 127, 0.5  # in int8, 127 and 0
    centroids[0, 1, 1] = 255  # the second list would win by dimension 1
    lists = {"offsets": np.array([0, 128, 256]), "counts": np.array([1, 1], np.int32), "rows": np.zeros(256, np.uint32)}
    segment |= lists | {"codes": np.zeros((2, 1, 128), U8)}
    segment["rows"][128] = 1
    held = searcher(kernel, segment, centroid_codes=centroids, centroid_bias=np.zeros(2, F32))
    assert held.search(query, 1, plan_of(kernel, probes=1))[0].tolist() == [100]
    query[1] = 1.5  # in int8, 2
    assert held.search(query, 1, plan_of(kernel, probes=1))[0].tolist() == [101]


def test_a_cut_never_leaves_fewer_than_k(kernel: ModuleType) -> None:
    tight = plan_of(kernel, keep=1, margin=0.0, stages=((64, 1, 0.0, True), (2, 1, 0.0, False)))
    seqs, _, counts, _ = searcher(kernel, a_segment()).search_counted(QUERY, 3, tight)
    assert (seqs.tolist(), counts.tolist()) == ([102, 100, 101], [1, 4, 3, 3, 3, 3])


def test_equal_scores_go_by_seq_across_segments(kernel: ModuleType) -> None:
    segments = [a_segment() | {"seqs": np.array(seqs)} for seqs in ([40, 30, 20, 10], [41, 31, 21, 11], [9, 8, -7, 6])]
    seqs, scores = searcher(kernel, *segments).search(QUERY, 5, plan_of(kernel))
    assert (seqs.tolist(), scores.tolist()) == ([-7, 20, 21, 9, 40], [9, 9, 9, 5, 5])


def test_a_mask_hides_rows_and_another_mask_leaves_the_first_segment_alone(kernel: ModuleType) -> None:
    model, segment = kernel.Model(*a_model().values()), kernel.Segment(*a_segment().values())
    masked = segment.with_allowed(np.array([True, True, False, True]))
    bare = masked.with_allowed(None)
    for one, found in (
        (segment, 102),
        (masked, 100),
        (bare, 102),
        (masked.with_allowed(np.array([0, 0, 0, 9], U8)), 103),
    ):
        assert kernel.Searcher(model, [one]).search(QUERY, 1, plan_of(kernel))[0].tolist() == [found]
    with pytest.raises(ValueError, match="allowed must have shape"):
        segment.with_allowed(np.ones(3, bool))


def test_no_segments_and_empty_segments_find_nothing(kernel: ModuleType) -> None:
    empty = {
        name: value[:0] if name in {"codes", "rows", "vectors", "seqs"} else value
        for name, value in a_segment().items()
    }
    empty |= {"offsets": np.zeros(2, np.int64), "counts": np.zeros(1, np.int32), "rescore": None}
    plan = plan_of(kernel, stages=((64, 5, INF, True),))
    for segments in ((), (empty,)):
        seqs, scores, counts, _ = searcher(kernel, *segments).search_counted(QUERY, 1, plan)
        assert len(seqs) == len(scores) == 0
        assert counts.tolist() == [1, 0, 0, 0, 0]
    seqs, _, counts, _ = searcher(kernel, empty, a_segment(), empty).search_counted(QUERY, 1, plan)
    assert (seqs.tolist(), counts.tolist()) == ([102], [1, 4, 4, 4, 1])


def test_resident_arrays_are_the_same_arrays(kernel: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for shape, dtype in (((3, 5), F32), ((0, 7), U8), ((2**21 + 5,), U8), ((4, 3, 2), np.float16)):
        array = rng.integers(0, 100, shape).astype(dtype)
        kept = kernel.resident(array)
        assert (kept.dtype, kept.shape, kept.flags.c_contiguous) == (array.dtype, shape, True)
        assert np.array_equal(kept, array)
    with pytest.raises(ValueError, match="C-contiguous"):
        kernel.resident(np.zeros((4, 4))[:, ::2])


BAD_MODELS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dims": 0}, ValueError, "dims|centre"),
    ({"dims": -1}, ValueError, "dims|centre"),
    ({"dims": 63}, ValueError, "centre must have shape"),
    ({"centroid_codes": np.zeros((1, 16, 4), np.int8)}, TypeError, "centroid_codes must be uint8"),
    ({"centroid_codes": np.zeros((1, 16, 3), U8)}, ValueError, "centroid_codes must have shape"),
    ({"centroid_codes": np.zeros((0, 16, 4), U8)}, ValueError, "centroid_codes"),
    ({"centroid_codes": np.zeros((1, 32, 4), U8)}, ValueError, "centroid_codes"),
    ({"centroid_codes": np.zeros((1, 1, 4), U8)}, ValueError, "centroid_codes"),
    ({"centroid_codes": np.zeros((1, 32, 4), U8)[:, ::2]}, ValueError, "C-contiguous"),
    ({"centroid_bias": np.zeros(0, F32), "centroid_codes": np.zeros((1, 0, 4), U8)}, ValueError, "centroid"),
    ({"centroid_bias": np.zeros(1)}, TypeError, "centroid_bias must be float32"),
    ({"centroid_bias": np.full(1, np.nan, F32)}, ValueError, "centroid_bias must be finite"),
    ({"centroid_scale": 0.0}, ValueError, "centroid_scale"),
    ({"centroid_scale": 1e39}, ValueError, "centroid_scale must be finite"),
    ({"codebook": np.zeros((1, 8, 1), F32)}, ValueError, "codebook must have shape"),
    ({"codebook": np.zeros((0, 16, 1), F32)}, ValueError, "codebook"),
    ({"codebook": np.zeros((1, 16, 0), F32)}, ValueError, "codebook"),
    ({"codebook": np.full((1, 16, 1), np.inf, F32)}, ValueError, "codebook must be finite"),
    ({"rescore_scale": np.ones(32, F32)}, ValueError, "multiple of 64"),
    ({"rescore_scale": np.ones(2112, F32)}, ValueError, "at most 2048"),
    ({"rescore_scale": np.full(64, np.nan, F32)}, ValueError, "rescore_scale must be finite"),
    ({"spread": -1.0}, ValueError, "spread"),
    ({"spread": np.nan}, ValueError, "spread must be finite"),
    ({"centre": np.full(64, np.inf, F32)}, ValueError, "centre must be finite"),
]
BAD_SEGMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"codes": np.zeros((1, 1, 64), U8)}, ValueError, "codes must have shape"),
    ({"codes": np.zeros((1, 1, 128), np.int8)}, TypeError, "codes must be uint8"),
    ({"codes": np.zeros((2, 1, 128), U8)}, ValueError, "rows must have shape"),
    ({"counts": np.array([4])}, TypeError, "counts must be int32"),
    ({"counts": np.array([-1], np.int32)}, ValueError, "damaged"),
    ({"counts": np.array([129], np.int32)}, ValueError, "damaged"),
    ({"counts": np.array([5], np.int32)}, IndexError, "not one of the 4 rows"),
    ({"offsets": np.array([0, 128, 128])}, ValueError, "offsets must have shape"),
    ({"offsets": np.array([0, 256])}, ValueError, "damaged"),
    ({"offsets": np.array([-128, 0])}, ValueError, "damaged"),
    ({"offsets": np.array([1, 128])}, ValueError, "damaged"),
    ({"offsets": np.array([128, 0])}, ValueError, "damaged"),
    ({"offsets": np.array([2**62, -(2**62)])}, ValueError, "damaged"),
    ({"offsets": np.array([-(2**63), 2**63 - 128])}, ValueError, "damaged"),
    ({"rows": np.zeros(128, ">u4")}, TypeError, "rows must be uint32"),
    ({"rows": np.full(128, 4, np.uint32)}, IndexError, "not one of the 4 rows"),
    ({"bias_top": np.nan}, ValueError, "bias_top must be finite"),
    ({"bias_step": -1.0}, ValueError, "bias_step"),
    ({"bias_step": np.inf}, ValueError, "bias_step must be finite"),
    ({"rescore": np.zeros((3, 64), U8)}, ValueError, "rescore must have shape"),
    ({"rescore_bias": np.zeros(3, F32)}, ValueError, "rescore_bias must have shape"),
    ({"rescore_bias": np.full(4, np.nan, F32)}, ValueError, "rescore_bias must be finite"),
    ({"vectors": np.zeros((4, 64))}, TypeError, "vectors must be float32 or float16"),
    ({"vectors": np.zeros((64, 4), F32).T}, ValueError, "C-contiguous"),
    ({"seqs": np.arange(5)}, ValueError, "seqs must have shape"),
    ({"seqs": np.arange(4, dtype=np.int32)}, TypeError, "seqs must be int64"),
    ({"allowed": np.ones(5, bool)}, ValueError, "allowed must have shape"),
    ({"allowed": np.ones(4, np.int8)}, TypeError, "allowed must be"),
    ({"allowed": np.ones(8, bool)[::2]}, ValueError, "C-contiguous"),
    ({"allowed": [True] * 4}, TypeError, "allowed|arguments"),
]
BAD_FITS: list[tuple[dict[str, Any], str]] = [
    ({"offsets": np.array([0, 128, 128]), "counts": np.array([4, 0], np.int32)}, "lists"),
    ({"codes": np.zeros((1, 2, 128), U8)}, "bytes"),
    ({"vectors": np.zeros((4, 65), F32)}, "dims"),
    ({"rescore": np.zeros((4, 128), U8)}, "int8"),
    ({"rescore_bias": np.zeros(4, F32)}, "rescore_bias"),
]
BAD_PLANS: list[tuple[dict[str, Any], str]] = [
    ({"probes": 0}, "probes must be >= 1"),
    ({"probe_margin": -0.5}, "probe_margin must be >= 0"),
    ({"keep": 0}, "keep must be >= 1"),
    ({"margin": np.nan}, "margin must be >= 0"),
    ({"stages": ((0, 1, INF, False),)}, "dims must be >= 1"),
    ({"stages": ((5, 0, INF, False),)}, "keep must be >= 1"),
    ({"stages": ((5, 1, -1.0, False),)}, "margin must be >= 0"),
    ({"stages": ((32, 1, INF, True),)}, "multiple of 64"),
    ({"stages": ((5, 1, INF, False), (64, 1, INF, True))}, "int8 stages come before"),
    ({"stages": ((5, 1, INF, False), (5, 1, INF, False))}, "must ascend"),
    ({"stages": ((64, 1, INF, True), (64, 1, INF, True))}, "must ascend"),
]


def ids(bad: list[Any]) -> list[str]:
    return [f"{i}-{'-'.join(one[0])}" for i, one in enumerate(bad)]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_MODELS, ids=ids(BAD_MODELS))
def test_a_bad_model_is_refused(
    kernel: ModuleType, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kernel.Model(*(a_model() | changes).values())


@pytest.mark.parametrize(("changes", "error", "message"), BAD_SEGMENTS, ids=ids(BAD_SEGMENTS))
def test_a_damaged_segment_is_refused(
    kernel: ModuleType, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kernel.Segment(*(a_segment() | changes).values())


def test_gathered_rows_stand_in_place_of_the_given_ones_and_fit(kernel: ModuleType) -> None:
    one = a_segment()
    lists = [one[name] for name in ("offsets", "counts", "rows")]
    made = kernel.GatheredRows(*lists, one["rescore"], None)
    with pytest.raises(ValueError, match="stand in place of rescore"):
        kernel.Segment(*one.values(), gathered=made)
    short = kernel.GatheredRows(lists[0] * 0, lists[1] * 0, lists[2][:0], one["rescore"], None)
    with pytest.raises(ValueError, match=r"in 0$"):
        kernel.Segment(*(one | {"rescore": None}).values(), gathered=short)
    with pytest.raises(IndexError, match="is not one of"):
        kernel.GatheredRows(*lists, one["rescore"][:1], None)


@pytest.mark.parametrize(("changes", "message"), BAD_FITS, ids=ids(BAD_FITS))
def test_a_segment_of_another_model_is_refused(kernel: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        searcher(kernel, a_segment(), a_segment() | changes)


@pytest.mark.parametrize(("changes", "message"), BAD_PLANS, ids=ids(BAD_PLANS))
def test_a_bad_plan_is_refused(kernel: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(kernel, **changes)


BAD_SEARCHES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": np.ones(64)}, TypeError, "must be float32"),
    ({"query": np.ones(63, F32)}, ValueError, "must have shape"),
    ({"query": np.ones((65, 2), F32)[:64, 0]}, ValueError, "C-contiguous"),
    ({"query": np.ones(64).tolist()}, TypeError, "quer|arguments"),
    ({"query": np.full(64, np.nan, F32)}, ValueError, "finite"),
    ({"query": np.full(64, -np.inf, F32)}, ValueError, "finite"),
    ({"query": np.full(64, 3e38, F32)}, ValueError, "finite"),  # its length is not
    ({"k": 0}, ValueError, "k must be >= 1"),
    ({"k": -1}, ValueError, "k must be >= 1"),
    ({"k": 1.5}, TypeError, "k must|arguments"),
    ({"stages": ((65, 1, INF, False),)}, ValueError, "64"),
    ({"stages": ((128, 1, INF, True),)}, ValueError, "64"),
    ({"stages": ((64, 1, INF, True),), "segment": {"rescore": None}}, ValueError, "int8 rows"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_SEARCHES, ids=ids(BAD_SEARCHES))
def test_a_bad_search_is_refused(
    kernel: ModuleType, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    held = searcher(kernel, a_segment(), a_segment() | changes.get("segment", {}), spread=1.0)
    query, k, plan = changes.get("query", QUERY), changes.get("k", 1), plan_of(kernel, stages=changes.get("stages", ()))
    with pytest.raises(error, match=message):
        held.search(query, k, plan)
    with pytest.raises(error, match=message):
        held.search_counted(query, k, plan)
    batch = query
    if isinstance(query, np.ndarray):
        batch = query[:, None].repeat(2, axis=1).T if query.flags.c_contiguous else np.ones((64, 2), F32).T
        batch = np.ascontiguousarray(batch) if query.flags.c_contiguous else batch
    with pytest.raises(error, match=message):
        held.search_batch(batch, k, plan, 1)


def test_a_batch_needs_a_thread(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="threads must be >= 1"):
        searcher(kernel, a_segment()).search_batch(QUERY[None], 1, plan_of(kernel), 0)
