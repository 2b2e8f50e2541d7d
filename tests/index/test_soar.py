"""Structure of a SOAR index: where rows are filed, what their codes say, how postings lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestvec.errors import Damaged, InvalidInput
from nestvec.index.funnel import Stage, search
from nestvec.index.postings import PADDING, Postings
from nestvec.index.quantize import lookup_table, pad_dims
from nestvec.index.scan import exact_search
from nestvec.index.soar.assign import assign
from nestvec.index.soar.loss import nearest_and_spill
from nestvec.index.soar.search import SoarIndex
from nestvec.index.soar.store import model_arrays, model_from, postings_arrays, postings_from
from nestvec.index.soar.train import SoarConfig, SoarModel, default_config, train
from nestvec.index.work import Work

N, DIMS = 2000, 48
CONFIG = SoarConfig(partitions=20, partition_dims=24, code_dims=13, dims_per_block=3, soar_lambda=1.5, iterations=5)


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
    model: SoarModel, postings: Postings, vectors: np.ndarray
) -> None:
    lists, rows, _ = filed(postings)
    gaps = np.square(vectors[:, None, :24].astype(np.float64) - model.centroids[None]).sum(axis=2)
    nearest = gaps.argmin(axis=1)
    assert set(zip(nearest.tolist(), range(N), strict=True)) <= set(zip(lists.tolist(), rows.tolist(), strict=True))
    times = np.bincount(rows, minlength=N)
    assert times.min() == 1 or times.min() == 2
    assert times.max() == 2
    assert len(set(zip(lists.tolist(), rows.tolist(), strict=True))) == len(rows)


def test_every_spill_minimises_the_soar_loss_and_is_never_the_primary(model: SoarModel, vectors: np.ndarray) -> None:
    prefix = np.ascontiguousarray(vectors[:, :24])
    for soar_lambda in (0.5, 1.5):
        first, second = nearest_and_spill(prefix, model.centroids, soar_lambda)
        losses = soar_losses(prefix, model.centroids, first, soar_lambda)
        best = losses.argmin(axis=1)
        spilled = second >= 0
        assert spilled.mean() > 0.2
        np.testing.assert_array_equal(second[~spilled], -1)
        np.testing.assert_array_equal(best[~spilled], first[~spilled])
        np.testing.assert_array_equal(best[spilled], second[spilled])
        assert (second != first).all()


def test_the_spill_rule_survives_data_far_from_the_origin() -> None:
    prefix = (nested_vectors(300, 12, 3) + 30.0).astype(np.float32)
    centroids = np.ascontiguousarray(prefix[:15] * np.float32(1.001))
    first, second = nearest_and_spill(prefix, centroids, 1.0)
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
    first, second = nearest_and_spill(centroids.copy(), centroids, 1.0)
    np.testing.assert_array_equal(first, np.arange(8))
    np.testing.assert_array_equal(second, -1)


def test_codes_are_the_nearest_centres_of_each_postings_own_residual(
    model: SoarModel, postings: Postings, vectors: np.ndarray
) -> None:
    lists, rows, codes = filed(postings)
    residuals = pad_dims(vectors[rows, :13] - model.centroids[lists, :13], 3).reshape(len(rows), 5, 3)
    gaps = np.square(residuals[:, :, None].astype(np.float64) - model.codebook[None]).sum(axis=3)
    taken = np.take_along_axis(gaps, codes[:, :5, None].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_allclose(taken, gaps.min(axis=2), atol=1e-7)
    np.testing.assert_array_equal(codes[:, 5], 0)


def test_lists_are_whole_blocks_with_rows_ascending_and_padding_marked(postings: Postings) -> None:
    assert (postings.offsets % 32 == 0).all()
    for number, count in enumerate(postings.counts):
        rows = postings.rows[postings.offsets[number] : postings.offsets[number + 1]]
        assert 0 <= len(rows) - count < 32
        assert (np.diff(rows[:count].astype(np.int64)) > 0).all()
        assert (rows[count:] == PADDING).all()


def test_without_spill_every_row_has_one_posting(model: SoarModel, vectors: np.ndarray) -> None:
    plain = replace(model, config=replace(model.config, spill=False))
    assert assign(plain, vectors).counts.sum() == N


def test_assigning_in_blocks_or_from_disk_or_from_half_precision_changes_nothing(
    model: SoarModel, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = vectors.astype(np.float16)
    half.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float16, "r", shape=half.shape)
    whole = assign(model, half.astype(np.float32))
    monkeypatch.setattr("nestvec.index.soar.assign._BLOCK_FLOATS", 24 * 300)
    done: list[int] = []
    blocks = assign(model, mapped, progress=done.append)
    assert done == [300, 600, 900, 1200, 1500, 1800, 2000]
    for one, other in zip(postings_arrays(whole)[1].items(), postings_arrays(blocks)[1].items(), strict=True):
        np.testing.assert_array_equal(one[1], other[1])


def test_estimates_are_the_decoded_scores_to_half_a_table_step(model: SoarModel) -> None:
    query = nested_vectors(1, DIMS, 8)[0]
    table, scale, base = lookup_table(query[:13], model.codebook)
    assert table.shape == (6, 16)
    codes = np.random.default_rng(1).integers(16, size=(200, 5))
    decoded = model.codebook[np.arange(5), codes].reshape(200, 15)
    summed = base + scale * table[np.arange(5), codes].sum(axis=1, dtype=np.int64)
    assert np.abs(summed - decoded[:, :13] @ query[:13]).max() <= 5 * scale / 2 + 1e-5


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_recall_on_nested_data_is_above_nine_tenths(metric: str) -> None:
    stored, queries = nested_vectors(6000, 96, 10), nested_vectors(100, 96, 11)
    config = SoarConfig(partitions=64, partition_dims=64, code_dims=48, dims_per_block=2)
    model = train(stored, config, metric)
    index = SoarIndex(model, assign(model, stored))
    found = 0
    for query in queries:
        work = Work()
        rows, _ = search(
            stored,
            index,
            index.prepare(query, 8),
            query,
            10,
            stages=(Stage(48, 40),),
            metric=model.metric,
            work=work,
        )
        found += len(np.intersect1d(rows, exact_search(stored, query, 10, metric=model.metric)[0]))
        assert work.rows <= 160
    assert found / 1000 > 0.9


def test_training_is_deterministic_and_seeded(vectors: np.ndarray, model: SoarModel) -> None:
    again = train(vectors.copy(), CONFIG, "dot")
    np.testing.assert_array_equal(model.centroids, again.centroids)
    np.testing.assert_array_equal(model.codebook, again.codebook)
    other = train(vectors, replace(CONFIG, seed=1), "dot")
    assert not np.array_equal(model.centroids, other.centroids)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_a_handful_of_rows_or_only_duplicates_can_be_indexed(n: int) -> None:
    stored = np.tile(nested_vectors(1, 8, 0), (n, 1))
    model = train(stored, default_config(n, 8, (4, 8)), "dot")
    index = SoarIndex(model, assign(model, stored))
    rows = index.candidates(index.prepare(stored[0], 99), 99, None, Work())
    assert sorted(rows.tolist()) == list(range(n))


def test_a_segment_without_rows_has_no_candidates(model: SoarModel) -> None:
    index = SoarIndex(model, assign(model, np.empty((0, DIMS), np.float32)))
    query = np.zeros(DIMS, np.float32)
    assert index.candidates(index.prepare(query, 5), 5, None, Work()).shape == (0,)


def test_default_config_grows_with_the_collection() -> None:
    sizes = (64, 128, 256, 384, 768)
    assert [default_config(n, 768, sizes).partitions for n in (1, 10_000, 200_000, 1_000_000)] == [1, 128, 1024, 2048]
    config = default_config(1_000_000, 768, sizes)
    assert (config.partition_dims, config.code_dims, config.dims_per_block) == (256, 192, 3)
    assert default_config(1000, 384, (192, 384)).dims_per_block == 3
    whole = default_config(1000, 768, (768,))
    assert (whole.partition_dims, whole.code_dims, whole.dims_per_block) == (768, 768, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partitions": 0}, r"partitions must be in 1\.\.65536, got 0"),
        ({"code_dims": 25}, r"code_dims must be in 1\.\.24, got 25"),
        ({"dims_per_block": 0}, "dims_per_block must be in"),
        ({"soar_lambda": -1.0}, r"soar_lambda must be >= 0, got -1\.0"),
        ({"soar_lambda": float("nan")}, "soar_lambda must be >= 0, got nan"),
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
    with pytest.raises(InvalidInput, match="trained on 48 dims, got vectors of 16"):
        assign(model, np.ascontiguousarray(vectors[:, :16]))


def test_damaged_arrays_are_refused(model: SoarModel, postings: Postings) -> None:
    meta, arrays = model_arrays(model)
    with pytest.raises(Damaged, match="version 1, got 'soar' version 2"):
        model_from(meta | {"version": 2}, arrays)
    with pytest.raises(Damaged, match="codebook: it is missing"):
        model_from(meta, {"centroids": arrays["centroids"]})
    meta, arrays = postings_arrays(postings)
    with pytest.raises(Damaged, match="row number"):
        postings_from(meta | {"n_rows": N - 1}, arrays)
    with pytest.raises(Damaged, match="whole blocks"):
        postings_from(meta, arrays | {"counts": arrays["counts"] + np.int32(32)})
    with pytest.raises(Damaged, match="codes must have shape"):
        postings_from(meta, arrays | {"codes": arrays["codes"][:-1]})
