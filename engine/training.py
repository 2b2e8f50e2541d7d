"""Train a generation on a sample and code a segment with it: shared by seal, compact and build."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.routes import LIBRARIES, Model, check_route
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage.files import release
from nestvec.errors import InvalidInput
from nestvec.index.ehi import model as ehi
from nestvec.index.ehi.tree import Tree
from nestvec.index.library.search import LibraryConfig, LibraryModel
from nestvec.index.soar.train import SoarModel, default_config, train

MIN_TRAINING_ROWS = 1000
SAMPLE_ROWS = 100_000
ROTATION_SAMPLE_ROWS = 20_000
_SAMPLE_BLOCK_ROWS = 1024  # the system maps 64 KiB around each row that is touched: 64 MiB a block
_QUERIES = 500
_SHORTLIST = 100
_ENOUGH = 0.98
_WORTH = 0.01


def sample_rows(vectors: NDArray[Any], rows: int, seed: int = 0) -> NDArray[np.float32]:
    """At most `rows` different rows, chosen at random and read in file order."""
    count = min(rows, len(vectors))
    chosen = np.arange(count)
    if count < len(vectors):
        chosen = np.sort(np.random.default_rng(seed).choice(len(vectors), rows, replace=False))
    sample = np.empty((count, vectors.shape[1]), np.float32)
    for start in range(0, count, _SAMPLE_BLOCK_ROWS):
        sample[start : start + _SAMPLE_BLOCK_ROWS] = vectors[chosen[start : start + _SAMPLE_BLOCK_ROWS]]
        release(vectors)
    return sample


def train_model(
    vectors: NDArray[Any],
    config: CollectionConfig,
    total: int,
    partitions: int | None = None,
    *,
    rescore: bool = True,
) -> SoarModel:
    """Train on a sample of stored vectors [n, dims], for a collection of `total` rows; `rescore`: with int8 rows."""
    settings = default_config(total, config.dims, config.granularities)
    if not rescore:
        settings = replace(settings, rescore_dims=0)
    if partitions is not None:
        if not 1 <= partitions <= total:
            raise InvalidInput(f"partitions must be from 1 to the number of rows, {total}; got {partitions}")
        settings = replace(settings, partitions=partitions)
    return train(sample_rows(vectors, SAMPLE_ROWS), settings, config.index_metric)


def train_library(vectors: NDArray[Any], config: CollectionConfig, total: int, settings: LibraryConfig) -> LibraryModel:
    """`train_model` for the index of a library."""
    return settings.train(sample_rows(vectors, SAMPLE_ROWS), config.index_metric, total)


def train_tree(vectors: NDArray[Any], config: CollectionConfig, tree: Tree, *, rescore: bool = True) -> ehi.EhiModel:
    """The coding of a learned tree's leaves, on a sample of stored vectors [n, dims]."""
    settings = ehi.ehi_config(tree.router, tree.filing, config.dims, config.granularities, rescore=rescore)
    return ehi.train(sample_rows(vectors, SAMPLE_ROWS), tree.router, settings, config.index_metric)


def retrain_model(snapshot: Snapshot, vectors: NDArray[Any], config: CollectionConfig) -> Model:
    """A new model of the snapshot's route, with the settings of its old one, for stored vectors [n, dims].

    A learned tree stays: only pairs could make another, and here are none. What is coded in its leaves is trained anew.
    One that cannot be read gives way to soar.
    """
    generation = snapshot.generation
    if isinstance(snapshot.model, ehi.EhiModel):
        held = Tree(snapshot.model.router, filing=snapshot.model.config.filing)
        return train_tree(vectors, config, held, rescore=snapshot.keeps_int8)
    library = generation is not None and generation.route in LIBRARIES
    settings = check_route(generation.route, generation.settings, config) if generation and library else None
    if settings is None:
        return train_model(vectors, config, len(vectors), rescore=snapshot.keeps_int8)
    return train_library(vectors, config, len(vectors), settings)


def pca_rotation(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthogonal f32 [dims, dims] that puts the directions of most energy first (about 0, so products are kept)."""
    moment = np.zeros((sample.shape[1], sample.shape[1]))
    for start in range(0, len(sample), 4096):
        block = sample[start : start + 4096].astype(np.float64)
        moment += block.T @ block
    return np.ascontiguousarray(np.linalg.eigh(moment)[1][:, ::-1], dtype=np.float32)


def prefix_dims(config: CollectionConfig) -> int | None:
    """The granularity by which the rotation is decided: the largest up to 128, else 256; None: no such prefix."""
    shorter = [g for g in config.granularities if g < config.dims]
    return max((g for g in shorter if g <= 128), default=next((g for g in shorter if g <= 256), None))


def decide_rotation(
    sample: NDArray[np.float32], config: CollectionConfig, rotate: str
) -> tuple[NDArray[np.float32] | None, float | None]:
    """(the rotation to use or None, share of the true 10 nearest found in the prefix's 100 nearest as stored).

    `rotate`: "none", "pca", or "auto" = where the prefix alone finds under .98 and a PCA over .01 more.
    """
    dims = prefix_dims(config)
    if len(sample) < 2 * _SHORTLIST or dims is None:
        return (pca_rotation(sample) if rotate == "pca" else None), None
    held_out = min(_QUERIES, len(sample) // 10)
    order = np.random.default_rng(1).permutation(len(sample))
    queries, base = sample[order[:held_out]], sample[order[held_out:]]
    truth = _nearest(base, queries, 10, config.index_metric)
    plain = _prefix_recall(base, queries, truth, dims, config.index_metric)
    if rotate == "none" or (rotate == "auto" and plain >= _ENOUGH):
        return None, plain
    rotation = pca_rotation(base)
    rotated = _prefix_recall(base @ rotation, queries @ rotation, truth, dims, config.index_metric)
    if rotate == "pca" or rotated > plain + _WORTH:
        return rotation, rotated
    return None, plain


def _nearest(base: NDArray[np.float32], queries: NDArray[np.float32], k: int, metric: str) -> NDArray[np.int64]:
    squares = np.einsum("ij,ij->i", base, base) if metric == "l2" else None
    best = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ base.T
        if squares is not None:
            scores = 2 * scores - squares
        best[start : start + 100] = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return best


def _prefix_recall(
    base: NDArray[np.float32], queries: NDArray[np.float32], truth: NDArray[np.int64], dims: int, metric: str
) -> float:
    base, queries = np.ascontiguousarray(base[:, :dims]), np.ascontiguousarray(queries[:, :dims])
    found = _nearest(base, queries, _SHORTLIST, metric)
    hits = [np.isin(wanted, got).mean() for wanted, got in zip(truth, found, strict=True)]
    return float(np.mean(hits))
