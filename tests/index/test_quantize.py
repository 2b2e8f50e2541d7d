"""Nested prefixes and the codebook: lengths kept, centres that fit their rows, score-aware training that pays."""

from __future__ import annotations

import numpy as np
import pytest

from nestvec.index.quantize import directions, encode, nested_prefix, pad_dims, squared_lengths, train_codebook


def residuals_of(n: int, dims: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(residuals, directions of their rows) in clusters, float32 [n, dims]."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8, dims))[rng.integers(8, size=n)] + 0.7 * rng.standard_normal((n, dims))
    return (0.3 * rows + 0.3 * rng.standard_normal((n, dims))).astype(np.float32), directions(
        rows.astype(np.float32), dims
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_nested_prefix_points_as_the_prefix_and_is_as_long_as_the_row(dtype: type[np.generic]) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 40)).astype(dtype)
    stretched = nested_prefix(rows, 25)
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) / np.linalg.norm(wide[:, :25], axis=1)
    np.testing.assert_allclose(stretched, wide[:, :25] * lengths[:, None], rtol=1e-5)
    assert stretched.dtype == np.float32
    assert stretched.flags.c_contiguous
    np.testing.assert_array_equal(nested_prefix(rows, 25, squared_lengths(rows)), stretched)
    np.testing.assert_allclose(nested_prefix(rows, 99), wide, rtol=1e-6)


def test_a_prefix_of_next_to_nothing_is_stretched_fourfold_at_most_and_zeros_stay() -> None:
    rows = np.zeros((3, 6), np.float32)
    rows[0, 0], rows[0, 5], rows[1, 5] = 0.01, 1.0, 1.0
    np.testing.assert_allclose(nested_prefix(rows, 3)[:, 0], [0.04, 0.0, 0.0], rtol=1e-6)


def test_the_source_of_a_prefix_is_left_alone() -> None:
    rows = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    before = rows.copy()
    nested_prefix(rows, 4)
    nested_prefix(rows, 2)
    np.testing.assert_array_equal(rows, before)


def test_squared_lengths_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).standard_normal((301, 33)).astype(np.float16)
    whole = squared_lengths(rows)
    monkeypatch.setattr("nestvec.index.quantize._NORM_FLOATS", 33 * 7)
    np.testing.assert_array_equal(squared_lengths(rows), whole)


def test_directions_are_parts_of_unit_vectors() -> None:
    rows = np.random.default_rng(3).standard_normal((50, 12)).astype(np.float32)
    rows[4] = 0.0
    unit = rows[:4] / np.linalg.norm(rows[:4], axis=1, keepdims=True)
    np.testing.assert_allclose(directions(rows, 7)[:4], unit[:, :7], rtol=1e-5)
    np.testing.assert_array_equal(directions(rows, 7)[4], 0.0)


def test_k_means_centres_are_the_means_of_their_rows() -> None:
    residuals, along = residuals_of(3000, 6, 4)
    codebook = train_codebook(residuals, along, 3, 1.0, 60, 0)
    codes = encode(residuals, along, codebook, 1.0)
    for block in range(2):
        for centre in range(16):
            mine = residuals[codes[:, block] == centre, 3 * block : 3 * block + 3]
            np.testing.assert_allclose(codebook[block, centre], mine.mean(axis=0), atol=0.02)


def score_aware_error(residuals: np.ndarray, along: np.ndarray, codebook: np.ndarray, eta: float) -> float:
    codes = encode(residuals, along, codebook, eta)
    decoded = codebook[np.arange(len(codebook)), codes].reshape(len(residuals), -1)
    left = pad_dims(residuals, codebook.shape[2]) - decoded
    parallel = (left * pad_dims(along, codebook.shape[2])).sum(axis=1)
    return float((np.square(left).sum(axis=1) + (eta - 1) * np.square(parallel)).mean())


@pytest.mark.parametrize("dims", [30, 31])
def test_score_aware_training_lowers_the_score_aware_error(dims: int) -> None:
    residuals, along = residuals_of(4000, dims, 5)
    held = residuals_of(2000, dims, 5)
    plain = train_codebook(residuals, along, 3, 1.0, 10, 0)
    aware = train_codebook(residuals, along, 3, 9.0, 10, 0)
    assert aware.shape == plain.shape == (-(-dims // 3), 16, 3)
    assert score_aware_error(*held, aware, 9.0) < 0.95 * score_aware_error(*held, plain, 9.0)


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_rows_than_centres_are_coded_without_error(n: int) -> None:
    residuals, along = residuals_of(n, 7, 6)
    codebook = train_codebook(residuals, along, 2, 9.0, 5, 0)
    assert np.isfinite(codebook).all()
    assert score_aware_error(residuals, along, codebook, 9.0) < 0.05
