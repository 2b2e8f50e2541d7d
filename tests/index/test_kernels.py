"""Every instruction set of this machine gives the same bits, the same order and the same errors as the reference."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nestvec.index import kernels
from nestvec.index.kernels import reference

try:
    from nestvec.index.kernels import native

    NAMES = [*native.available(), "numpy"]
except ImportError:
    NAMES = ["numpy"]

PADDING = 0xFFFFFFFF


@pytest.fixture(params=NAMES)
def kernel(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    if request.param == "numpy":
        yield reference
        return
    before = native.isa()
    native.use_isa(request.param)
    yield native
    native.use_isa(before)


@dataclass(frozen=True)
class Scan:
    """The arguments of one scan_lists call."""

    codes: Any
    offsets: Any
    counts: Any
    rows: Any
    lists: Any
    list_bias: Any
    lut: Any
    scale: float = 0.01
    base: float = -3.5
    posting_bias: Any = None
    allowed: Any = None
    keep: int = 10

    def on(self, module: ModuleType) -> tuple[Any, Any, int]:
        result: tuple[Any, Any, int] = module.scan_lists(
            self.codes, self.offsets, self.counts, self.rows, self.lists, self.list_bias, self.lut,
            self.scale, self.base, self.posting_bias, self.allowed, self.keep,
        )  # fmt: skip
        return result


def make_scan(counts: list[int], subquantisers: int = 8, *, top: int = 256, seed: int = 0, **changes: Any) -> Scan:  # noqa: ANN401
    """Random lists of the given lengths; each row sits in one list or, as a twin, in two."""
    rng = np.random.default_rng(seed)
    even = subquantisers + subquantisers % 2
    padded = [-(-count // 32) * 32 for count in counts]
    offsets = np.concatenate([[0], np.cumsum(padded)]).astype(np.int64)
    rows = np.full(offsets[-1], PADDING, np.uint32)
    n_rows = max(1, max(counts), sum(counts) * 2 // 3)
    for start, count in zip(offsets, counts, strict=False):
        rows[start : start + count] = rng.permutation(n_rows)[:count]
    codes = kernels.pack(rng.integers(0, 16, (int(offsets[-1]), subquantisers)).astype(np.uint8))
    lut = np.zeros((even, 16), np.uint8)
    lut[:subquantisers] = rng.integers(0, top, (subquantisers, 16))
    lists = rng.permutation(len(counts)).astype(np.int32)
    bias = rng.standard_normal(len(counts)).astype(np.float32)
    scan = Scan(codes, offsets, np.array(counts, np.int32), rows, lists, bias, lut)
    return replace(scan, **changes)


def assert_same(scan: Scan, kernel: ModuleType) -> tuple[Any, Any, int]:
    rows, estimates, scanned = scan.on(kernel)
    want_rows, want_estimates, want_scanned = scan.on(reference)
    assert rows.dtype == np.int64
    assert estimates.dtype == np.float32
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(estimates.view(np.uint32), want_estimates.view(np.uint32))
    assert scanned == want_scanned
    return rows, estimates, scanned


def test_the_reference_is_the_formula_read_aloud() -> None:
    scan = make_scan([40, 5], 6, keep=1000)
    rows, estimates, scanned = scan.on(reference)
    best: dict[int, float] = {}
    for number, bias in zip(scan.lists, scan.list_bias, strict=True):
        for j in range(scan.offsets[number], scan.offsets[number] + scan.counts[number]):
            byte = scan.codes[j // 32, :, j % 32]
            total = sum(int(scan.lut[2 * p, b & 15]) + int(scan.lut[2 * p + 1, b >> 4]) for p, b in enumerate(byte))
            estimate = (bias + np.float32(scan.base)) + np.float32(scan.scale) * np.float32(total)
            best[int(scan.rows[j])] = max(float(estimate), best.get(int(scan.rows[j]), -np.inf))
    want = sorted(best, key=lambda row: (-best[row], row))
    assert rows.tolist() == want
    assert estimates.tolist() == [best[row] for row in want]
    assert scanned == 45


@pytest.mark.parametrize("subquantisers", [1, 2, 3, 4, 5, 7, 16, 33, 64, 255, 256])
@pytest.mark.parametrize("top", [2, 20, 90, 256])
def test_every_size_and_table_gives_the_reference_bits(kernel: ModuleType, subquantisers: int, top: int) -> None:
    assert_same(make_scan([33, 0, 700, 1, 32, 130], subquantisers, top=top, keep=50), kernel)


def test_full_tables_do_not_overflow(kernel: ModuleType) -> None:
    scan = make_scan([300], 256, keep=400)
    scan.lut[:] = 255
    _, estimates, _ = assert_same(replace(scan, scale=1.0, base=0.0, list_bias=np.zeros(1, np.float32)), kernel)
    assert (estimates == 256 * 255).all()


def test_random_shapes_agree(kernel: ModuleType) -> None:
    rng = np.random.default_rng(5)
    for seed in range(60):
        counts = rng.integers(0, 600, rng.integers(1, 6)).tolist()
        scan = make_scan(counts, int(rng.integers(1, 40)), top=int(rng.integers(2, 257)), seed=seed)
        bias = rng.standard_normal(len(scan.rows)).astype(np.float32) if seed % 2 else None
        allowed = rng.random(10_000) < rng.choice([0.01, 0.5, 0.99]) if seed % 3 else None
        scale = float(rng.choice([0.01, 0.0, -0.5]))
        keep = int(rng.choice([1, 7, 100, 300]))
        assert_same(replace(scan, posting_bias=bias, allowed=allowed, scale=scale, keep=keep), kernel)


@pytest.mark.parametrize("keep", [0, 1, 2, 31, 1000, 10**12])
def test_keep_bounds_the_answer(kernel: ModuleType, keep: int) -> None:
    rows, _, scanned = assert_same(make_scan([900, 400], keep=keep), kernel)
    assert len(rows) <= keep
    assert len(set(rows.tolist())) == len(rows)
    assert scanned == (1300 if keep else 0)


def test_no_lists_and_empty_lists_give_nothing(kernel: ModuleType) -> None:
    scan = make_scan([0, 0, 5])
    empty = replace(scan, lists=np.array([0, 1], np.int32), list_bias=np.zeros(2, np.float32))
    rows, estimates, scanned = assert_same(empty, kernel)
    assert len(rows) == len(estimates) == scanned == 0
    assert_same(replace(scan, lists=np.empty(0, np.int32), list_bias=np.empty(0, np.float32)), kernel)


def test_filtered_rows_never_come_back_and_do_not_use_up_keep(kernel: ModuleType) -> None:
    scan = make_scan([500, 800], keep=40)
    n = int(scan.rows[scan.rows != PADDING].max()) + 1
    for allowed in (np.zeros(n, np.uint8), np.arange(n) % 7 == 0, np.full(n, 255, np.uint8)):
        rows, _, _ = assert_same(replace(scan, allowed=allowed), kernel)
        assert allowed[rows].all()
        assert len(rows) == (40 if allowed.any() else 0)


def test_ties_at_the_cut_go_to_the_lower_row(kernel: ModuleType) -> None:
    scan = make_scan([2000], keep=17)
    scan.lut[:] = 3
    rows, _, _ = assert_same(scan, kernel)
    assert rows.tolist() == sorted(scan.rows[scan.rows != PADDING].tolist())[:17]
    scan = make_scan([2000, 1500], 4, top=2, keep=300)  # few different sums, twins, ties everywhere
    assert_same(replace(scan, list_bias=np.zeros(2, np.float32)), kernel)


def test_twins_are_removed_before_the_cut(kernel: ModuleType) -> None:
    scan = make_scan([640, 640], keep=200)
    scan.rows[640:] = scan.rows[:640]
    scan.codes[20:] = scan.codes[:20]
    for bias in ([1.0, 1.0], [0.5, 1.0]):
        rows, _, _ = assert_same(replace(scan, list_bias=np.array(bias, np.float32)), kernel)
        assert len(set(rows.tolist())) == 200
    again = replace(scan, lists=np.zeros(5, np.int32), list_bias=np.ones(5, np.float32))  # one list five times
    assert len(assert_same(again, kernel)[0]) == 200


def test_negative_zero_infinite_and_nan_estimates(kernel: ModuleType) -> None:
    scan = make_scan([100], keep=80, base=0.0, scale=0.0, list_bias=np.full(1, -0.0, np.float32))
    bias = np.zeros(128, np.float32)
    bias[0:100:3], bias[1:100:3], bias[5], bias[8] = -0.0, np.nan, np.inf, -np.inf
    rows, _, _ = assert_same(replace(scan, posting_bias=bias), kernel)
    assert len(rows) == 67  # 100 less 33 that are NaN


def test_postings_behind_the_count_are_not_read(kernel: ModuleType) -> None:
    scan = make_scan([64])
    scan.counts[0] = 37
    rows, _, scanned = assert_same(replace(scan, keep=64), kernel)
    assert scanned == 37
    assert set(rows.tolist()) == set(scan.rows[:37].tolist())


def test_a_scan_refuses_what_would_be_read_out_of_bounds(kernel: ModuleType) -> None:
    scan = make_scan([40, 70])
    for number in (-1, 2, 2**31 - 1):
        with pytest.raises(IndexError, match="lists"):
            replace(scan, lists=np.array([0, number], np.int32)).on(kernel)
    with pytest.raises(IndexError, match="beyond allowed"):
        replace(scan, allowed=np.ones(3, np.uint8)).on(kernel)
    damaged = [
        replace(scan, counts=np.array([40, 97], np.int32)),
        replace(scan, counts=np.array([40, -1], np.int32)),
        replace(scan, offsets=np.array([0, 64, 192], np.int64)),
        replace(scan, offsets=np.array([0, -32, 160], np.int64)),
        replace(scan, offsets=np.array([0, 63, 160], np.int64)),
        replace(scan, offsets=np.array([0, 2**62, 160], np.int64)),
    ]
    for bad in damaged:
        with pytest.raises(ValueError, match="damaged"):
            bad.on(kernel)


def test_a_scan_says_what_is_wrong_with_its_arguments(kernel: ModuleType) -> None:
    scan = make_scan([40, 70])
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"codes": scan.codes[:, :, :16]}, ValueError, "codes must have shape"),
        ({"codes": scan.codes[::2]}, ValueError, "rows must have shape|codes must be C-contiguous"),
        ({"codes": np.zeros((5, 129, 32), np.uint8)}, ValueError, "at most 256"),
        ({"lut": scan.lut[:-1]}, ValueError, "lut must have shape"),
        ({"lut": scan.lut.astype(np.uint16)}, TypeError, "lut must be uint8"),
        ({"lists": scan.lists.astype(np.int64)}, TypeError, "lists must be int32"),
        ({"list_bias": scan.list_bias[:1]}, ValueError, "list_bias must have shape"),
        ({"list_bias": np.array([0, np.nan], np.float32)}, ValueError, "finite"),
        ({"offsets": scan.offsets[:-1]}, ValueError, "offsets must have shape"),
        ({"rows": scan.rows.astype(">u4")}, TypeError, "rows must be uint32"),
        ({"posting_bias": np.zeros(3, np.float32)}, ValueError, "posting_bias must have shape"),
        ({"allowed": np.ones(200, np.int64)}, TypeError, "allowed must be"),
        ({"allowed": np.ones(400, np.uint8)[::2]}, ValueError, "allowed must be C-contiguous"),
        ({"keep": -1}, ValueError, "keep must be >= 0"),
        ({"scale": np.inf}, ValueError, "scale must be finite"),
        ({"base": np.nan}, ValueError, "base must be finite"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=message):
            replace(scan, **changes).on(kernel)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dims", [1, 7, 8, 15, 16, 17, 33, 100, 384, 769])
def test_bands_give_the_reference_bits(kernel: ModuleType, dims: int, metric: str, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(dims)
    vectors = rng.standard_normal((60, dims)).astype(dtype)
    query = rng.standard_normal(dims).astype(np.float32)
    rows = rng.integers(0, 60, 37)
    for lo, hi in ((0, dims), (dims // 3, dims), (dims // 2, dims // 2), (0, dims // 2)):
        for with_norms in (False, True):
            got, want = rng.standard_normal((2, 2, 37))
            want[:] = got
            kernel.band_scores(query, vectors, rows, lo, hi, metric, got[0], got[1] if with_norms else None)
            reference.band_scores(query, vectors, rows, lo, hi, metric, want[0], want[1] if with_norms else None)
            np.testing.assert_array_equal(got, want)


def test_bands_add_up_to_the_whole(kernel: ModuleType) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 100)).astype(np.float32)
    query, rows = rng.standard_normal(100).astype(np.float32), np.arange(50)
    scores, norms = np.zeros(50), np.zeros(50)
    for lo, hi in ((0, 30), (30, 64), (64, 100)):
        kernel.band_scores(query, vectors, rows, lo, hi, "l2", scores, norms)
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(scores, -((wide - query) ** 2).sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(norms, (wide**2).sum(axis=1), rtol=1e-13)


def test_every_float16_is_widened_exactly(kernel: ModuleType) -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = patterns[np.isfinite(patterns)].repeat(16).reshape(-1, 16)
    query, rows = np.zeros(16, np.float32), np.arange(len(finite))
    for dim, width in ((3, 16), (0, 1)):  # by vectors of 16, and one at a time
        query[:] = 0
        query[dim] = 1
        scores = np.zeros(len(finite))
        kernel.band_scores(query, finite, rows, 0, width, "dot", scores)
        np.testing.assert_array_equal(scores, finite[:, 0].astype(np.float64))
    scores = np.zeros(2)
    kernel.band_scores(query, np.full((2, 16), np.inf, np.float16), rows[:2], 0, 1, "dot", scores)
    assert np.isposinf(scores).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_map_is_read_in_place(kernel: ModuleType, tmp_path: Path, dtype: type[np.generic]) -> None:
    vectors = np.random.default_rng(2).standard_normal((20, 24)).astype(dtype)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False)
    got, want = np.zeros(20), np.zeros(20)
    query, rows = np.ones(24, np.float32), np.arange(20)[::-1].copy()
    kernel.band_scores(query, mapped, rows, 3, 20, "dot", got)
    reference.band_scores(query, vectors, rows, 3, 20, "dot", want)
    np.testing.assert_array_equal(got, want)


def test_bands_refuse_bad_rows_and_change_nothing(kernel: ModuleType) -> None:
    vectors, query, scores = np.ones((4, 8), np.float32), np.ones(8, np.float32), np.zeros(2)
    for bad in (-1, 4, 2**62, -(2**63)):
        with pytest.raises(IndexError, match="not one of the 4 rows"):
            kernel.band_scores(query, vectors, np.array([0, bad]), 0, 8, "dot", scores)
    assert not scores.any()


def test_bands_say_what_is_wrong_with_their_arguments(kernel: ModuleType) -> None:
    good: dict[str, Any] = {
        "query": np.ones(8, np.float32), "vectors": np.ones((4, 8), np.float32), "rows": np.arange(4), "lo": 0, "hi": 8,
        "metric": "dot", "scores": np.zeros(4), "norms": np.zeros(4),
    }  # fmt: skip
    frozen = np.zeros(4)
    frozen.flags.writeable = False
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"metric": "cosine"}, ValueError, "metric must be"),
        ({"hi": 9}, ValueError, "the band must satisfy"),
        ({"lo": -1}, ValueError, "the band must satisfy"),
        ({"lo": 5, "hi": 4}, ValueError, "the band must satisfy"),
        ({"query": np.ones(7, np.float32)}, ValueError, "query must have shape"),
        ({"query": np.ones(8)}, TypeError, "query must be float32"),
        ({"vectors": np.ones((8, 4), np.float32).T}, ValueError, "vectors must be C-contiguous"),
        ({"vectors": np.ones((4, 8))}, TypeError, "vectors must be float32 or float16"),
        ({"rows": np.arange(4, dtype=np.int32)}, TypeError, "rows must be int64"),
        ({"scores": np.zeros(3)}, ValueError, "scores must have shape"),
        ({"scores": frozen}, ValueError, "scores must be writeable"),
        ({"norms": np.zeros(4, np.float32)}, TypeError, "norms must be float64"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=message):
            kernel.band_scores(**{**good, **changes})


@pytest.mark.parametrize(("blocks", "width"), [(1, 1), (3, 2), (7, 3), (16, 4), (5, 9)])
def test_encode_finds_the_nearest_centre(kernel: ModuleType, blocks: int, width: int) -> None:
    rng = np.random.default_rng(blocks)
    residuals = rng.standard_normal((501, blocks * width)).astype(np.float32)
    codebook = rng.standard_normal((blocks, 16, width)).astype(np.float32)
    codes = kernel.encode(residuals, codebook)
    np.testing.assert_array_equal(codes, reference.encode(residuals, codebook))
    distance = ((residuals.reshape(501, blocks, 1, width) - codebook.astype(np.float64)) ** 2).sum(axis=3)
    chosen = np.take_along_axis(distance, codes[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen, distance.min(axis=2), rtol=1e-5)
    assert kernel.encode(residuals[:0], codebook).shape == (0, blocks)


def test_encode_gives_ties_to_the_lowest_code(kernel: ModuleType) -> None:
    codebook = np.repeat(np.arange(8, dtype=np.float32), 2).reshape(1, 16, 1)
    codes = kernel.encode(np.array([[0.0], [2.5], [7.0], [-0.0], [np.inf]], np.float32), codebook)
    assert codes[:, 0].tolist() == [0, 4, 14, 0, 0]


@pytest.mark.parametrize("subquantisers", [1, 2, 5, 64, 255])
def test_pack_lays_codes_out_in_blocks(kernel: ModuleType, subquantisers: int) -> None:
    codes = np.random.default_rng(3).integers(0, 16, (96, subquantisers)).astype(np.uint8)
    blocks = kernel.pack(codes)
    assert blocks.shape == (3, (subquantisers + 1) // 2, 32)
    assert blocks.flags.c_contiguous
    halves = np.stack([blocks & 15, blocks >> 4], axis=2).reshape(3, -1, 32).transpose(0, 2, 1).reshape(96, -1)
    np.testing.assert_array_equal(halves[:, :subquantisers], codes)
    assert not halves[:, subquantisers:].any()


def test_encode_and_pack_say_what_is_wrong(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        kernel.pack(np.zeros((33, 4), np.uint8))
    with pytest.raises(ValueError, match="0 to 15"):
        kernel.pack(np.full((32, 3), 16, np.uint8))
    with pytest.raises(TypeError, match="codes must be uint8"):
        kernel.pack(np.zeros((32, 4), np.int64))
    with pytest.raises(ValueError, match="residuals must have shape"):
        kernel.encode(np.zeros((3, 5), np.float32), np.zeros((2, 16, 2), np.float32))
    with pytest.raises(ValueError, match="codebook must have shape"):
        kernel.encode(np.zeros((3, 4), np.float32), np.zeros((2, 8, 2), np.float32))


def test_threads_get_the_same_answers(kernel: ModuleType) -> None:
    scans = [make_scan([900, 500, 300], 32, seed=seed, keep=60) for seed in range(4)]
    want = [scan.on(reference) for scan in scans]
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(lambda i: scans[i % 4].on(kernel), range(80))):
            np.testing.assert_array_equal(got[0], want[i % 4][0])
            np.testing.assert_array_equal(got[1], want[i % 4][1])
