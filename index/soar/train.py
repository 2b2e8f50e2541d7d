"""Train a SOAR model: partition centroids on a prefix, a 4-bit codebook for what they leave over, and scales.

SOAR: Sun et al., "Improved Indexing for Approximate Nearest Neighbor Search", arXiv 2404.00774.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index.lists.loss import nearest_and_spill
from nestvec.index.lists.model import MAX_PARTITIONS, ListConfig, ListModel, check_at_least, check_bounds
from nestvec.index.lists.training import CODEBOOK_SAMPLE, default_widths, train_coding, whole_steps
from nestvec.index.metric import Metric, check_metric
from nestvec.index.quantize import Float32, kmeans, nested_prefix, squared_lengths
from nestvec.index.vectors import Vectors, check_vectors


@dataclass(frozen=True, slots=True)
class SoarConfig(ListConfig):
    """How a SOAR index is built.

    soar_lambda: weight of the parallel part of the second residual in the spill loss. spill_share: of the rows that
    the loss gives a second partition, the share that is filed there, those that gain most; 0: none.
    """

    soar_lambda: float = 1.0
    spill_share: float = 0.5

    def __post_init__(self) -> None:
        ListConfig.__post_init__(self)
        check_bounds(self, "spill_share", 0, 1)
        check_at_least(self, "soar_lambda", 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class SoarModel(ListModel):
    """What all segments of a generation share. spill_floor: the least gain with which a row is filed twice."""

    name: ClassVar[str] = "soar"

    config: SoarConfig
    spill_floor: float


def default_config(n: int, dims: int, granularities: Sequence[int]) -> SoarConfig:
    """A sane configuration for n rows: n^0.6 / 2 partitions rounded to a power of two (1M -> 2048, 10k -> 128), and
    `default_widths`."""
    widths = default_widths(dims, tuple(granularities))
    wanted = 2 ** round(math.log2(max(1.0, 0.5 * max(1, n) ** 0.6)))
    return SoarConfig(
        partitions=min(wanted, max(1, n), MAX_PARTITIONS),
        partition_dims=widths.covered,
        code_dims=widths.covered,
        dims_per_block=widths.block,
        rescore_dims=widths.rescored,
    )


def train(sample: Vectors, config: SoarConfig, metric: Metric) -> SoarModel:
    """Train on float32|float16 [n, d], n >= partitions. Deterministic: the same sample and config, the same model.

    k-means is plain even for "dot": the coded residual z - c must be small, so centroids keep their length. The
    codebook is trained on the residuals of both postings.
    """
    count, dims = check_vectors(sample)
    check_metric(metric)
    if config.partition_dims > dims:
        raise InvalidInput(f"partition_dims must be <= dims={dims}, got {config.partition_dims}")
    if config.rescore_dims > whole_steps(dims):
        raise InvalidInput(f"rescore_dims must be <= {whole_steps(dims)} for dims={dims}, got {config.rescore_dims}")
    if count < config.partitions:
        raise InvalidInput(f"training needs at least partitions={config.partitions} rows, got {count}")
    squares = squared_lengths(sample)
    prefix = nested_prefix(sample, config.partition_dims, squares)
    centroids = kmeans(prefix, config.partitions, config.iterations, config.seed)
    coded, lists, floor = _sample_postings(prefix, centroids, config)
    coding = train_coding(sample, squares, (coded, lists, centroids), config, metric)
    return SoarModel(
        config, metric, dims, centroids, coding.codebook, coding.rescore_scale, coding.spread, coding.centre, floor
    )


def _sample_postings(
    prefix: Float32, centroids: Float32, config: SoarConfig
) -> tuple[Float32, npt.NDArray[np.int32], float]:
    """(prefixes of a sample's postings, their lists, the spill floor)."""
    rng = np.random.default_rng(config.seed)
    if prefix.shape[0] > CODEBOOK_SAMPLE:
        prefix = prefix[np.sort(rng.choice(prefix.shape[0], CODEBOOK_SAMPLE, replace=False))]
    first, second, gain = nearest_and_spill(prefix, centroids, config.soar_lambda if config.spill_share else None)
    gains = gain[second >= 0]
    floor = float(np.quantile(gains, 1.0 - config.spill_share)) if gains.size and config.spill_share < 1.0 else 0.0
    spilled = np.flatnonzero((second >= 0) & (gain >= floor))
    rows = np.concatenate((np.arange(prefix.shape[0]), spilled))
    lists = np.concatenate((first, second[spilled]))
    if rows.shape[0] > CODEBOOK_SAMPLE:
        chosen = np.sort(rng.choice(rows.shape[0], CODEBOOK_SAMPLE, replace=False))
        rows, lists = rows[chosen], lists[chosen]
    return prefix[rows], lists, floor
