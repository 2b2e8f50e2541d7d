"""Score-aware codes: every instruction set gives numpy's bits, and no single change would make a code cheaper."""

from __future__ import annotations

from itertools import product
from types import ModuleType

import numpy as np
import pytest

from nestvec.index.kernels import reference_encode

Task = tuple[np.ndarray, np.ndarray, np.ndarray]


def task(n: int, blocks: int, width: int, seed: int) -> Task:
    """(residuals, directions, codebook): rows that lie partly along their directions, as real residuals do."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n, blocks * width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    residuals = rng.standard_normal((n, blocks * width)) + rng.standard_normal((n, 1)) * directions
    codebook = rng.standard_normal((blocks, 16, width))
    return residuals.astype(np.float32), directions.astype(np.float32), codebook.astype(np.float32)


def costs(
    codes: np.ndarray, residuals: np.ndarray, directions: np.ndarray, codebook: np.ndarray, eta: float
) -> np.ndarray:
    """|r|^2 + (eta - 1) <r, d>^2 of each row, in float64."""
    decoded = codebook[np.arange(len(codebook)), codes].reshape(residuals.shape).astype(np.float64)
    left = residuals - decoded
    return np.square(left).sum(axis=1) + (eta - 1) * np.square((left * directions).sum(axis=1))


@pytest.mark.parametrize("eta", [1.0, 1.5, 9.0, 1e6])
@pytest.mark.parametrize(
    ("n", "blocks", "width"),
    [(0, 2, 2), (4, 0, 2), (4, 2, 0), (1, 1, 1), (3, 5, 3), (15, 7, 2), (17, 64, 3), (33, 3, 9), (2050, 9, 1)],
)
def test_every_instruction_set_gives_the_bits_of_numpy(
    compiled: ModuleType, n: int, blocks: int, width: int, eta: float
) -> None:
    arrays = task(n, blocks, width, n + blocks)
    got, want = compiled.encode_aware(*arrays, eta), reference_encode.encode_aware(*arrays, eta)
    assert got.shape == (n, blocks)
    np.testing.assert_array_equal(got, want)


def test_ties_go_to_the_lowest_centre(kernel: ModuleType) -> None:
    residuals, directions, codebook = task(300, 6, 2, 1)
    codebook[:, 8:] = codebook[:, :8]
    rounded = [np.round(each * 2) / 2 for each in (residuals, directions, codebook)]  # many equal costs
    codes = kernel.encode_aware(*rounded, 5.0)
    assert codes.max() < 8
    np.testing.assert_array_equal(codes, reference_encode.encode_aware(*rounded, 5.0))


def test_eta_one_is_the_nearest_centre(kernel: ModuleType) -> None:
    residuals, directions, codebook = task(200, 8, 3, 2)
    np.testing.assert_array_equal(
        kernel.encode_aware(residuals, directions, codebook, 1.0), kernel.encode(residuals, codebook)
    )


@pytest.mark.parametrize("eta", [2.0, 9.0, 50.0])
def test_aware_codes_cost_no_more_than_the_nearest_centres(kernel: ModuleType, eta: float) -> None:
    residuals, directions, codebook = task(400, 12, 3, 3)
    plain = costs(kernel.encode(residuals, codebook), residuals, directions, codebook, eta)
    aware = costs(kernel.encode_aware(residuals, directions, codebook, eta), residuals, directions, codebook, eta)
    assert (aware <= plain * (1 + 1e-5)).all()
    assert aware.mean() < 0.99 * plain.mean()


def test_no_change_of_one_code_makes_a_row_cheaper(kernel: ModuleType) -> None:
    residuals, directions, codebook = task(200, 4, 2, 4)
    codes = kernel.encode_aware(residuals, directions, codebook, 9.0)
    found = costs(codes, residuals, directions, codebook, 9.0)
    for block, centre in product(range(4), range(16)):
        changed = codes.copy()
        changed[:, block] = centre
        assert (costs(changed, residuals, directions, codebook, 9.0) >= found * (1 - 1e-5)).all()


def test_most_rows_get_the_best_code_there_is_where_all_can_be_tried(kernel: ModuleType) -> None:
    residuals, directions, codebook = task(100, 2, 2, 5)
    found = costs(kernel.encode_aware(residuals, directions, codebook, 9.0), residuals, directions, codebook, 9.0)
    every = [
        costs(np.tile(pair, (100, 1)), residuals, directions, codebook, 9.0) for pair in product(range(16), repeat=2)
    ]
    assert (found <= np.min(every, axis=0) * (1 + 1e-5)).mean() > 0.7


def test_rows_do_not_depend_on_their_neighbours(kernel: ModuleType) -> None:
    residuals, directions, codebook = task(70, 16, 3, 6)
    whole = kernel.encode_aware(residuals, directions, codebook, 9.0)
    order = np.random.default_rng(7).permutation(70)
    np.testing.assert_array_equal(kernel.encode_aware(residuals[order], directions[order], codebook, 9.0), whole[order])
    for start, stop in ((0, 1), (3, 20), (33, 70)):
        part = slice(start, stop)
        np.testing.assert_array_equal(
            kernel.encode_aware(residuals[part], directions[part], codebook, 9.0), whole[part]
        )


def test_arguments_that_do_not_fit_are_named(kernel: ModuleType) -> None:
    residuals, directions, codebook = task(5, 3, 2, 8)
    for eta in (0.5, -1.0):
        with pytest.raises(ValueError, match=f"eta must be >= 1, got {eta:f}"):
            kernel.encode_aware(residuals, directions, codebook, eta)
    for eta in (np.nan, np.inf):
        with pytest.raises(ValueError, match="eta must be finite"):
            kernel.encode_aware(residuals, directions, codebook, eta)
    with pytest.raises(ValueError, match="residuals must have shape"):
        kernel.encode_aware(residuals[:, 1:].copy(), directions, codebook, 2.0)
    with pytest.raises(ValueError, match="directions must have shape"):
        kernel.encode_aware(residuals, directions[1:], codebook, 2.0)
    with pytest.raises(ValueError, match="codebook must have shape"):
        kernel.encode_aware(residuals, directions, codebook[:, :8].copy(), 2.0)
    with pytest.raises(TypeError, match="directions must be float32"):
        kernel.encode_aware(residuals, directions.astype(np.float64), codebook, 2.0)
