"""Rescoring rows: bytes that give a row's full score from a prefix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nestvec.errors import InvalidInput
from nestvec.index.metric import Metric
from nestvec.index.quantize import nested_prefix
from nestvec.index.rescore import rescore_rows, rescore_scale
from nestvec.index.soar.train import SoarConfig, SoarModel, train

CONFIG = SoarConfig(partitions=2, partition_dims=8, code_dims=8, dims_per_block=2, rescore_dims=64, iterations=2)


def rows_of(n: int, dims: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dims)) / np.sqrt(1.0 + np.arange(dims))).astype(np.float32)


@pytest.fixture(scope="module", params=["dot", "l2"])
def model(request: pytest.FixtureRequest) -> SoarModel:
    return train(rows_of(500, 100, 0), CONFIG, request.param)


def test_bytes_times_steps_are_the_nested_prefix(model: SoarModel) -> None:
    rows = rows_of(500, 100, 0)
    held = rescore_rows(model, rows)
    assert held.codes.dtype == np.uint8
    wanted = nested_prefix(rows, 64)
    decoded = (held.codes.astype(np.float64) - 128) * model.rescore_scale
    assert np.abs(decoded - wanted).max() <= model.rescore_scale.max() * 0.501
    assert (np.abs(decoded - wanted) <= model.rescore_scale * 0.501).all()
    if model.metric == "l2":
        np.testing.assert_allclose(held.bias, -np.square(rows.astype(np.float64)).sum(axis=1), rtol=1e-5)
    else:
        assert held.bias is None


def test_numbers_beyond_the_sample_are_clipped(model: SoarModel) -> None:
    rows = rows_of(20, 100, 1) * np.float32(50)
    codes = rescore_rows(model, rows).codes
    assert codes.min() == 1
    assert codes.max() == 255


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_do_not_depend_on_the_block(
    model: SoarModel, dtype: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(333, 100, 2).astype(dtype)
    whole = rescore_rows(model, rows)
    monkeypatch.setattr("nestvec.index.rescore._BLOCK_FLOATS", 700)
    parts = [whole, rescore_rows(model, rows)]
    np.testing.assert_array_equal(parts[0].codes, parts[1].codes)
    tail = rescore_rows(model, rows[300:])
    np.testing.assert_array_equal(tail.codes, whole.codes[300:])
    if whole.bias is not None and tail.bias is not None:
        np.testing.assert_array_equal(tail.bias, whole.bias[300:])
    assert rescore_rows(model, rows[:0]).codes.shape == (0, 64)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_dims_beyond_the_vector_hold_zero(metric: Metric) -> None:
    model = train(rows_of(100, 40, 3), CONFIG, metric)
    codes = rescore_rows(model, rows_of(100, 40, 3)).codes
    assert codes.shape == (100, 64)
    np.testing.assert_array_equal(codes[:, 40:], 128)
    np.testing.assert_array_equal(model.rescore_scale[40:], 1.0)


def test_the_scale_leaves_a_little_room_and_never_is_zero() -> None:
    sample = np.array([[1.27, 0.0, -2.54], [0.5, 0.0, 1.0]], np.float32)
    np.testing.assert_allclose(rescore_scale(sample, 4), [0.0105, 1.0, 0.021, 1.0], rtol=1e-6)


def test_a_model_without_rows_or_of_other_dims_refuses(model: SoarModel) -> None:
    without = train(rows_of(50, 100, 4), replace(CONFIG, rescore_dims=0), "dot")
    with pytest.raises(InvalidInput, match="rescore_dims=0"):
        rescore_rows(without, rows_of(5, 100, 4))
    with pytest.raises(InvalidInput, match="trained on 100 dims with rescore_dims=64, got vectors of 40"):
        rescore_rows(model, rows_of(5, 40, 4))
