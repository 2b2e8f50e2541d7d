"""Structure of a SOAR index: where rows are filed, what their codes say, how postings lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestvec.errors import Damaged, InvalidInput
from nestvec.index.lists.loss import nearest_and_spill
from nestvec.index.lists.store import postings_arrays, postings_from
from nestvec.index.metric import Metric
from nestvec.index.postings import BLOCK, PADDING, Postings, build_postings, check_postings
from nestvec.index.quantize import directions, nested_prefix, pad_dims
from nestvec.index.soar.assign import assign
from nestvec.index.soar.store import model_arrays, model_from
from nestvec.index.soar.train import SoarConfig, SoarModel, default_config, train

N, DIMS = 2000, 48
CONFIG = SoarConfig(
    partitions=20,
    partition_dims=24,
    code_dims=13,
    dims_per_block=3,
    rescore_dims=64,
    soar_lambda=1.5,
    spill_share=1.0,
    iterations=5,
)


def nested_vectors(n: int, dims: int, seed: int) -> np.ndarray:
    """Unit vectors in overlapping clusters of a fixed mixture, energy decaying with the dim."""
    decay = 1.0 / np.sqrt(1.0 + np.arange(dims))
    centres = np.random.default_rng(99).standard_normal((60, dims)) * decay
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(60, size=n)] + 0.6 * rng.standard_normal((n, dims)) * decay
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return nested_vectors(N, DIMS, 0)


@pytest.fixture(scope="module")
def model(vectors: np.ndarray) -> SoarModel:
    return train(vectors, CONFIG, "dot")


@pytest.fixture(scope="module")
def prefix(vectors: np.ndarray) -> np.ndarray:
    return nested_prefix(vectors, 24)


@pytest.fixture(scope="module")
def postings(model: SoarModel, vectors: np.ndarray) -> Postings:
    return assign(model, vectors)


def filed(postings: Postings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(list, row, codes [N, M even]) of every posting, read back slot by slot."""
    lists, slots = [], []
    for number, count in enumerate(postings.counts):
        start = int(postings.offsets[number])
        slots.extend(range(start, start + count))
        lists.extend([number] * int(count))
    packed = postings.codes.transpose(0, 2, 1).reshape(len(postings.rows), -1)[slots]
    codes = np.stack((packed & 15, packed >> 4), axis=2).reshape(len(slots), -1)
    return np.array(lists), postings.rows[slots].astype(np.int64), codes


def soar_losses(prefix: np.ndarray, centroids: np.ndarray, first: np.ndarray, soar_lambda: float) -> np.ndarray:
    """||x - c||^2 + lambda <r_hat, x - c>^2 for every row and centroid, in float64, term by term."""
    wide, centres = prefix.astype(np.float64), centroids.astype(np.float64)
    residuals = wide - centres[first]
    unit = residuals / np.linalg.norm(residuals, axis=1, keepdims=True)
    gaps = wide[:, None] - centres[None]
    return np.square(gaps).sum(axis=2) + soar_lambda * np.square(np.einsum("nd,ncd->nc", unit, gaps))


def test_every_row_is_in_its_nearest_partition_and_at_most_one_spill(
    model: SoarModel, postings: Postings, prefix: np.ndarray
) -> None:
    lists, rows, _ = filed(postings)
    gaps = np.square(prefix[:, None].astype(np.float64) - model.centroids[None]).sum(axis=2)
    nearest = gaps.argmin(axis=1)
    assert set(zip(nearest.tolist(), range(N), strict=True)) <= set(zip(lists.tolist(), rows.tolist(), strict=True))
    times = np.bincount(rows, minlength=N)
    assert times.min() == 1
    assert times.max() == 2
    assert len(set(zip(lists.tolist(), rows.tolist(), strict=True))) == len(rows)


def test_every_spill_minimises_the_soar_loss_and_is_never_the_primary(model: SoarModel, prefix: np.ndarray) -> None:
    every = np.arange(N)
    for soar_lambda in (0.5, 1.5):
        first, second, gain = nearest_and_spill(prefix, model.centroids, soar_lambda)
        losses = soar_losses(prefix, model.centroids, first, soar_lambda)
        best = losses.argmin(axis=1)
        spilled = second >= 0
        assert spilled.mean() > 0.2
        np.testing.assert_array_equal(second[~spilled], -1)
        np.testing.assert_array_equal(best[~spilled], first[~spilled])
        np.testing.assert_array_equal(best[spilled], second[spilled])
        assert (second != first).all()
        np.testing.assert_allclose(gain, losses[every, first] - losses[every, best], atol=1e-4)
        np.testing.assert_array_equal(gain[~spilled], 0.0)


def test_the_spill_rule_survives_data_far_from_the_origin() -> None:
    prefix = (nested_vectors(300, 12, 3) + 30.0).astype(np.float32)
    centroids = np.ascontiguousarray(prefix[:15] * np.float32(1.001))
    first, second, _ = nearest_and_spill(prefix, centroids, 1.0)
    losses = soar_losses(prefix, centroids, first, 1.0)
    chosen = np.where(second >= 0, second, first)
    picked = np.take_along_axis(losses, chosen[:, None].astype(np.int64), axis=1)[:, 0]
    np.testing.assert_allclose(picked, losses.min(axis=1), rtol=1e-3, atol=1e-4)


def test_the_soar_loss_is_the_expected_weighted_error() -> None:
    """Theorem 3.1: E|cos(q, r)|^l <q, r'>^2 over the sphere is proportional to ||r'||^2 + l <r_hat, r'>^2."""
    rng = np.random.default_rng(0)
    dims, weight = 12, 1.5
    queries = rng.standard_normal((400_000, dims))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    unit = np.eye(dims)[0]
    parallel, across = unit * 2.0 + np.eye(dims)[1], unit * 0.5 + np.eye(dims)[2] * 2.0
    measured = [np.mean(np.abs(queries @ unit) ** weight * np.square(queries @ gap)) for gap in (parallel, across)]
    formula = [gap @ gap + weight * (unit @ gap) ** 2 for gap in (parallel, across)]
    assert measured[0] / measured[1] == pytest.approx(formula[0] / formula[1], rel=0.02)


def test_a_row_on_its_centroid_is_not_spilled() -> None:
    centroids = nested_vectors(8, 6, 5)
    first, second, gain = nearest_and_spill(centroids.copy(), centroids, 1.0)
    np.testing.assert_array_equal(first, np.arange(8))
    np.testing.assert_array_equal(second, -1)
    np.testing.assert_array_equal(gain, 0.0)


def code_costs(
    model: SoarModel, prefix: np.ndarray, lists: np.ndarray, rows: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """|r|^2 + (anisotropy - 1) <r, d>^2 of each posting, in float64."""
    residuals = pad_dims(prefix[rows, :13] - model.centroids[lists, :13], 3).astype(np.float64)
    along = pad_dims(directions(prefix[rows], 13), 3)
    left = residuals - model.codebook[np.arange(5), codes[:, :5]].reshape(len(rows), -1)
    return np.square(left).sum(axis=1) + (model.config.anisotropy - 1) * np.square((left * along).sum(axis=1))


@pytest.mark.parametrize("anisotropy", [1.0, 9.0])
def test_no_change_of_one_code_brings_a_posting_nearer_its_row(
    vectors: np.ndarray, prefix: np.ndarray, anisotropy: float
) -> None:
    model = train(vectors, replace(CONFIG, anisotropy=anisotropy), "dot")
    lists, rows, codes = filed(assign(model, vectors))
    np.testing.assert_array_equal(codes[:, 5], 0)
    found = code_costs(model, prefix, lists, rows, codes)
    for block in range(5):
        for centre in range(16):
            changed = codes.copy()
            changed[:, block] = centre
            assert (code_costs(model, prefix, lists, rows, changed) >= found - 1e-6).all()


def test_lists_are_whole_blocks_with_rows_ascending_and_padding_marked(postings: Postings) -> None:
    assert (postings.offsets % BLOCK == 0).all()
    for number, count in enumerate(postings.counts):
        rows = postings.rows[postings.offsets[number] : postings.offsets[number + 1]]
        assert 0 <= len(rows) - count < BLOCK
        assert (np.diff(rows[:count].astype(np.int64)) > 0).all()
        assert (rows[count:] == PADDING).all()


def test_the_rows_that_gain_most_are_filed_twice(vectors: np.ndarray, prefix: np.ndarray) -> None:
    whole = train(vectors, CONFIG, "dot")
    _, second, gain = nearest_and_spill(prefix, whole.centroids, CONFIG.soar_lambda)
    could = second >= 0
    for share in (0.0, 0.3, 0.5, 1.0):
        model = train(vectors, replace(CONFIG, spill_share=share), "dot")
        _, rows, _ = filed(assign(model, vectors))
        twice = np.bincount(rows, minlength=N) == 2
        assert twice.sum() == pytest.approx(share * could.sum(), abs=2)
        assert not twice[~could].any()
        if 0.0 < share < 1.0:
            assert gain[twice].min() >= gain[could & ~twice].max()


def test_the_bias_of_l2_is_what_no_query_changes_to_half_a_step(vectors: np.ndarray) -> None:
    rows = vectors * np.linspace(0.5, 2.0, N, dtype=np.float32)[:, None]
    model = train(rows, CONFIG, "l2")
    postings = assign(model, rows)
    assert postings.codes.shape[1] == 4
    lists, filed_rows, codes = filed(postings)
    steps = codes[:, 6].astype(np.int64) + 16 * codes[:, 7]
    squares = np.square(rows.astype(np.float64)).sum(axis=1)
    wanted = np.square(model.centroids.astype(np.float64)).sum(axis=1)[lists] - squares[filed_rows]
    assert np.abs(postings.bias_top - postings.bias_step * steps - wanted).max() <= 0.51 * postings.bias_step
    assert steps.min() == 0
    assert steps.max() == 255


def test_equal_or_missing_biases_need_no_steps() -> None:
    lists, codes = np.zeros(3, np.int32), np.zeros((3, 2), np.uint8)
    equal = build_postings(3, 1, lists, np.arange(3, dtype=np.uint32), codes, np.full(3, -2.5, np.float32))
    assert (equal.bias_top, equal.bias_step, equal.codes.shape[1]) == (-2.5, 0.0, 2)
    none = build_postings(0, 1, lists[:0], np.empty(0, np.uint32), codes[:0], np.empty(0, np.float32))
    assert (none.bias_top, none.bias_step) == (0.0, 0.0)
    dot = build_postings(3, 1, lists, np.arange(3, dtype=np.uint32), codes, None)
    assert (dot.bias_top, dot.bias_step, dot.codes.shape[1]) == (0.0, 0.0, 1)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_processors_changes_nothing(
    model: SoarModel, vectors: np.ndarray, postings: Postings, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    monkeypatch.setattr("nestvec.index.lists.filing._BLOCK_FLOATS", 24 * 300)
    again = assign(model, vectors)
    for one, other in zip(postings_arrays(postings)[1].values(), postings_arrays(again)[1].values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_error_while_assigning_reaches_the_caller_at_once(
    model: SoarModel, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.index.lists.filing._BLOCK_FLOATS", 24 * 10)
    done: list[int] = []

    def stop(rows: int) -> None:
        done.append(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assign(model, vectors, stop)
    assert done == [10]


def test_assigning_in_blocks_or_from_disk_or_from_half_precision_changes_nothing(
    model: SoarModel, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = vectors.astype(np.float16)
    half.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float16, "r", shape=half.shape)
    whole = assign(model, half.astype(np.float32))
    monkeypatch.setattr("nestvec.index.lists.filing._BLOCK_FLOATS", 24 * 300)
    done: list[int] = []
    blocks = assign(model, mapped, progress=done.append)
    assert done == [300, 600, 900, 1200, 1500, 1800, 2000]
    for one, other in zip(postings_arrays(whole)[1].items(), postings_arrays(blocks)[1].items(), strict=True):
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_the_spread_is_the_scale_of_scores(vectors: np.ndarray, metric: Metric) -> None:
    rows = vectors * np.float32(3.0) + np.float32(0.2)
    model = train(rows, CONFIG, metric)
    wide = rows.astype(np.float64)
    if metric == "dot":
        np.testing.assert_array_equal(model.centre, 0.0)
        assert model.spread == pytest.approx(np.sqrt(np.square(wide).sum(axis=1).mean()), rel=1e-6)
    else:
        np.testing.assert_allclose(model.centre, wide.mean(axis=0), atol=1e-6)
        gaps = np.square(wide - wide.mean(axis=0)).sum(axis=1)
        assert model.spread == pytest.approx(2 * np.sqrt(gaps.mean()), rel=1e-5)


def test_training_is_deterministic_and_seeded(vectors: np.ndarray, model: SoarModel) -> None:
    again = train(vectors.copy(), CONFIG, "dot")
    np.testing.assert_array_equal(model.centroids, again.centroids)
    np.testing.assert_array_equal(model.codebook, again.codebook)
    other = train(vectors, replace(CONFIG, seed=1), "dot")
    assert not np.array_equal(model.centroids, other.centroids)


def test_default_config_grows_with_the_collection() -> None:
    sizes = (64, 128, 256, 384, 768)
    assert [default_config(n, 768, sizes).partitions for n in (1, 10_000, 200_000, 1_000_000)] == [1, 128, 1024, 2048]
    config = default_config(1_000_000, 768, sizes)
    assert (config.partition_dims, config.code_dims, config.dims_per_block, config.rescore_dims) == (192, 192, 3, 320)


@pytest.mark.parametrize(
    ("dims", "granularities", "coded", "width", "rescored"),
    [
        (384, (64, 384), 192, 3, 192),
        (1024, (256, 1024), 192, 3, 448),
        (100, (100,), 100, 2, 128),
        (8, (8,), 8, 2, 64),
        (3072, (64, 3072), 192, 3, 1280),
        (4096, (64, 4096), 192, 3, 1728),
        (768, (768,), 768, 6, 768),  # no prefix is known to stand for the whole
        (4096, (3000, 4096), 3000, 24, 2048),
    ],
)
def test_default_config_covers_a_prefix_that_stands_for_the_whole(
    dims: int, granularities: tuple[int, ...], coded: int, width: int, rescored: int
) -> None:
    config = default_config(1000, dims, granularities)
    assert (config.partition_dims, config.code_dims) == (coded, coded)
    assert (config.dims_per_block, config.rescore_dims) == (width, rescored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partitions": 0}, r"partitions must be in 1\.\.65536, got 0"),
        ({"code_dims": 25}, r"code_dims must be in 1\.\.24, got 25"),
        ({"dims_per_block": 0}, "dims_per_block must be in"),
        ({"soar_lambda": -1.0}, r"soar_lambda must be >= 0, got -1\.0"),
        ({"soar_lambda": float("nan")}, "soar_lambda must be >= 0, got nan"),
        ({"anisotropy": 0.5}, r"anisotropy must be >= 1, got 0\.5"),
        ({"spill_share": 1.5}, r"spill_share must be in 0\.\.1, got 1\.5"),
        ({"spill_share": float("nan")}, r"spill_share must be in 0\.\.1, got nan"),
        ({"rescore_dims": 100}, "rescore_dims must be a multiple of 64, got 100"),
        ({"rescore_dims": 4096}, r"rescore_dims must be in 0\.\.2048, got 4096"),
    ],
)
def test_bad_configs_name_the_bound(change: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(CONFIG, **change)


def test_unfit_training_data_is_refused(vectors: np.ndarray, model: SoarModel) -> None:
    with pytest.raises(InvalidInput, match="at least partitions=20 rows, got 19"):
        train(vectors[:19], CONFIG, "dot")
    with pytest.raises(InvalidInput, match="partition_dims must be <= dims=16, got 24"):
        train(np.ascontiguousarray(vectors[:, :16]), CONFIG, "dot")
    with pytest.raises(InvalidInput, match="rescore_dims must be <= 64 for dims=48, got 128"):
        train(vectors, replace(CONFIG, rescore_dims=128), "dot")
    with pytest.raises(InvalidInput, match="trained on 48 dims, got vectors of 16"):
        assign(model, np.ascontiguousarray(vectors[:, :16]))


def test_a_model_and_postings_come_back_from_their_arrays(model: SoarModel, postings: Postings) -> None:
    meta, arrays = model_arrays(model)
    again = model_from(json.loads(json.dumps(meta)), arrays)
    assert (again.config, again.metric, again.dims) == (model.config, model.metric, model.dims)
    assert (again.spread, again.spill_floor) == (model.spread, model.spill_floor)
    for name in ("centroids", "codebook", "rescore_scale", "centre"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    meta, arrays = postings_arrays(postings)
    back = postings_from(json.loads(json.dumps(meta)), arrays)
    assert (back.n_rows, back.bias_top, back.bias_step) == (N, 0.0, 0.0)
    for name in arrays:
        np.testing.assert_array_equal(getattr(back, name), getattr(postings, name))


def test_damaged_models_are_refused(model: SoarModel) -> None:
    meta, arrays = model_arrays(model)
    with pytest.raises(Damaged, match="version 2, got 'soar' version 1"):
        model_from(meta | {"version": 1}, arrays)
    with pytest.raises(Damaged, match="codebook: it is missing"):
        model_from(meta, {"centroids": arrays["centroids"]})
    for name, value in (
        ("spread", -1.0),
        ("spread", float("nan")),
        ("spill_floor", "0"),
        ("config", {}),
        ("dims", "x"),
    ):
        with pytest.raises(Damaged, match="settings cannot be read"):
            model_from(meta | {name: value}, arrays)
    with pytest.raises(Damaged, match="rescore_scale: expected float32"):
        model_from(meta, arrays | {"rescore_scale": arrays["rescore_scale"][:-1]})
    with pytest.raises(Damaged, match="centre: expected float32"):
        model_from(meta, arrays | {"centre": arrays["centre"].astype(np.float64)})


def test_damaged_postings_are_refused(postings: Postings) -> None:
    meta, arrays = postings_arrays(postings)
    with pytest.raises(Damaged, match="version 2, got 'soar' version 1"):
        postings_from(meta | {"version": 1}, arrays)
    with pytest.raises(Damaged, match="settings cannot be read"):
        postings_from({key: value for key, value in meta.items() if key != "bias_step"}, arrays)
    with pytest.raises(Damaged, match="row number"):
        postings_from(meta | {"n_rows": N - 1}, arrays)
    with pytest.raises(Damaged, match="whole blocks"):
        postings_from(meta, arrays | {"counts": arrays["counts"] + np.int32(BLOCK)})
    with pytest.raises(Damaged, match="codes must have shape"):
        postings_from(meta, arrays | {"codes": arrays["codes"][:-1]})
    for name, value in (("bias_top", float("inf")), ("bias_step", -0.5), ("bias_step", float("nan"))):
        with pytest.raises(Damaged, match="bias_top must be finite and bias_step >= 0"):
            check_postings(replace(postings, **{name: value}))
