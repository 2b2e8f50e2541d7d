"""band_scores, encode and pack: every instruction set gives the bits and the errors of the numpy reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nestvec.index.kernels import reference, reference_encode


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("dims", [1, 7, 8, 15, 16, 17, 33, 100, 384, 769])
def test_bands_give_the_reference_bits(compiled: ModuleType, dims: int, metric: str, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(dims)
    vectors = rng.standard_normal((60, dims)).astype(dtype)
    query = rng.standard_normal(dims).astype(np.float32)
    rows = rng.integers(0, 60, 37)
    for lo, hi in ((0, dims), (dims // 3, dims), (dims // 2, dims // 2), (0, dims // 2)):
        for with_norms in (False, True):
            got, want = rng.standard_normal((2, 2, 37))
            want[:] = got
            compiled.band_scores(query, vectors, rows, lo, hi, metric, got[0], got[1] if with_norms else None)
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
    np.testing.assert_array_equal(codes, reference_encode.encode(residuals, codebook))
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
    codes = np.random.default_rng(3).integers(0, 16, (384, subquantisers)).astype(np.uint8)
    blocks = kernel.pack(codes)
    assert blocks.shape == (3, (subquantisers + 1) // 2, 128)
    assert blocks.flags.c_contiguous
    halves = np.stack([blocks & 15, blocks >> 4], axis=2).reshape(3, -1, 128).transpose(0, 2, 1).reshape(384, -1)
    np.testing.assert_array_equal(halves[:, :subquantisers], codes)
    assert not halves[:, subquantisers:].any()


def test_encode_and_pack_say_what_is_wrong(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="multiple of 128"):
        kernel.pack(np.zeros((129, 4), np.uint8))
    with pytest.raises(ValueError, match="0 to 15"):
        kernel.pack(np.full((128, 3), 16, np.uint8))
    with pytest.raises(TypeError, match="codes must be uint8"):
        kernel.pack(np.zeros((128, 4), np.int64))
    with pytest.raises(ValueError, match="residuals must have shape"):
        kernel.encode(np.zeros((3, 5), np.float32), np.zeros((2, 16, 2), np.float32))
    with pytest.raises(ValueError, match="codebook must have shape"):
        kernel.encode(np.zeros((3, 4), np.float32), np.zeros((2, 8, 2), np.float32))


def test_threads_get_the_same_answers(kernel: ModuleType) -> None:
    rng = np.random.default_rng(4)
    vectors, rows = rng.standard_normal((300, 100)).astype(np.float32), np.arange(300)
    queries = rng.standard_normal((4, 100)).astype(np.float32)

    def scores(module: ModuleType, i: int) -> Any:  # noqa: ANN401
        found = np.zeros(300)
        module.band_scores(queries[i], vectors, rows, 3, 100, "l2", found)
        return found

    want = [scores(reference, i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(lambda i: scores(kernel, i % 4), range(80))):
            np.testing.assert_array_equal(got, want[i % 4])
