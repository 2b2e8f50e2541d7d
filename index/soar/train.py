"""Train a SOAR model: partition centroids on a prefix, a 4-bit codebook for what they leave over, and scales.

SOAR: Sun et al., "Improved Indexing for Approximate Nearest Neighbor Search", arXiv 2404.00774.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index.granularity import check_granularities
from nestvec.index.metric import Metric, check_metric
from nestvec.index.quantize import Float32, directions, kmeans, nested_prefix, squared_lengths, train_codebook
from nestvec.index.rescore import MAX_DIMS as MAX_RESCORE_DIMS
from nestvec.index.rescore import STEP as RESCORE_STEP
from nestvec.index.rescore import rescore_scale
from nestvec.index.soar.loss import nearest_and_spill
from nestvec.index.vectors import Vectors, check_vectors

_MAX_PARTITIONS = 65536
_PREFIX_DIMS = 192  # for centroids and codes alike; 2048 int8 centroids of it stay in the second-level cache
_SURE_DIMS = 256  # a granularity up to this says that so short a prefix stands for the whole
_RESCORE_SHARE = 0.42  # of the dims: beyond it, more int8 dims save fewer full rows than they cost
_MAX_BLOCKS = 128  # 64 bytes a posting
_CODEBOOK_SAMPLE = 50_000  # postings; 16 centres of a few dims need no more


@dataclass(frozen=True, slots=True)
class SoarConfig:
    """How a SOAR index is built.

    partitions: posting lists. partition_dims: prefix that centroids cover. code_dims: prefix of the residual that
    is coded, <= partition_dims. dims_per_block: dims that one 4-bit code covers. rescore_dims: prefix kept as int8
    rows, a multiple of 64; 0: none. anisotropy: weight of a code's error along the row against that across it, >= 1.
    soar_lambda: weight of the parallel part of the second residual in the spill loss. spill_share: of the rows that
    the loss gives a second partition, the share that is filed there, those that gain most; 0: none.
    iterations: of k-means.
    """

    partitions: int
    partition_dims: int
    code_dims: int
    dims_per_block: int
    rescore_dims: int = 0
    anisotropy: float = 6.0
    soar_lambda: float = 1.0
    spill_share: float = 0.5
    iterations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[int, int]] = {
            "partitions": (1, _MAX_PARTITIONS),
            "partition_dims": (1, 4096),
            "code_dims": (1, self.partition_dims),
            "dims_per_block": (1, 32),
            "rescore_dims": (0, MAX_RESCORE_DIMS),
            "spill_share": (0, 1),
            "iterations": (1, 1000),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInput(f"{name} must be in {least}..{most}, got {value}")
        for name, bound in (("soar_lambda", 0.0), ("anisotropy", 1.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= bound):
                raise InvalidInput(f"{name} must be >= {bound:g}, got {value}")
        if self.rescore_dims % RESCORE_STEP:
            raise InvalidInput(f"rescore_dims must be a multiple of {RESCORE_STEP}, got {self.rescore_dims}")


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class SoarModel:
    """What all segments of a generation share.

    centroids: float32 [partitions, partition_dims]. codebook: float32 [M, 16, dims_per_block]. rescore_scale: float32
    [rescore_dims], the step of each dimension of the int8 rows. spread: what a margin of 1 means for a query at unit
    distance from `centre`, float32 [dims]. spill_floor: the least gain with which a row is filed twice.
    """

    config: SoarConfig
    metric: Metric
    dims: int
    centroids: npt.NDArray[np.float32]
    codebook: npt.NDArray[np.float32]
    rescore_scale: npt.NDArray[np.float32]
    spread: float
    centre: npt.NDArray[np.float32]
    spill_floor: float


def default_config(n: int, dims: int, granularities: Sequence[int]) -> SoarConfig:
    """A sane configuration for n rows: n^0.6 / 2 partitions rounded to a power of two (1M -> 2048, 10k -> 128).

    Centroids and codes cover the first 192 dims, in 3 or 2 dims a block: 32 bytes a posting. Where the smallest
    granularity is beyond 256, nothing says that so short a prefix stands for the whole: they cover that granularity,
    in blocks wide enough for 64 bytes. The int8 rows cover .42 of the dims, in steps of 64 (768 -> 320), at least 192.
    """
    sizes = check_granularities(granularities, dims)
    wanted = 2 ** round(math.log2(max(1.0, 0.5 * max(1, n) ** 0.6)))
    covered = min(_PREFIX_DIMS, dims) if sizes[0] <= _SURE_DIMS else sizes[0]
    width = 3 if covered % 3 == 0 else 2
    rescored = max(_PREFIX_DIMS, RESCORE_STEP * round(_RESCORE_SHARE * dims / RESCORE_STEP), _whole_steps(covered))
    return SoarConfig(
        partitions=min(wanted, max(1, n), _MAX_PARTITIONS),
        partition_dims=covered,
        code_dims=covered,
        dims_per_block=max(width, math.ceil(covered / _MAX_BLOCKS)),
        rescore_dims=min(rescored, _whole_steps(dims), MAX_RESCORE_DIMS),
    )


def _whole_steps(dims: int) -> int:
    return -(-dims // RESCORE_STEP) * RESCORE_STEP


def train(sample: Vectors, config: SoarConfig, metric: Metric) -> SoarModel:
    """Train on float32|float16 [n, d], n >= partitions. Deterministic: the same sample and config, the same model.

    k-means is plain even for "dot": the coded residual z - c must be small, so centroids keep their length. The
    codebook is trained on the residuals of both postings.
    """
    count, dims = check_vectors(sample)
    check_metric(metric)
    if config.partition_dims > dims:
        raise InvalidInput(f"partition_dims must be <= dims={dims}, got {config.partition_dims}")
    if config.rescore_dims > _whole_steps(dims):
        raise InvalidInput(f"rescore_dims must be <= {_whole_steps(dims)} for dims={dims}, got {config.rescore_dims}")
    if count < config.partitions:
        raise InvalidInput(f"training needs at least partitions={config.partitions} rows, got {count}")
    squares = squared_lengths(sample)
    prefix = nested_prefix(sample, config.partition_dims, squares)
    centroids = kmeans(prefix, config.partitions, config.iterations, config.seed)
    residuals, pointing, floor = _sample_residuals(prefix, centroids, config)
    codebook = train_codebook(
        residuals, pointing, config.dims_per_block, config.anisotropy, config.iterations, config.seed
    )
    scale = rescore_scale(nested_prefix(sample, config.rescore_dims, squares), config.rescore_dims)
    spread, centre = _spread(sample, squares, metric)
    return SoarModel(config, metric, dims, centroids, codebook, scale, spread, centre, floor)


def _sample_residuals(prefix: Float32, centroids: Float32, config: SoarConfig) -> tuple[Float32, Float32, float]:
    """(coded part of the residuals of a sample's postings, directions of their rows, the spill floor)."""
    rng = np.random.default_rng(config.seed)
    if prefix.shape[0] > _CODEBOOK_SAMPLE:
        prefix = prefix[np.sort(rng.choice(prefix.shape[0], _CODEBOOK_SAMPLE, replace=False))]
    first, second, gain = nearest_and_spill(prefix, centroids, config.soar_lambda if config.spill_share else None)
    gains = gain[second >= 0]
    floor = float(np.quantile(gains, 1.0 - config.spill_share)) if gains.size and config.spill_share < 1.0 else 0.0
    spilled = np.flatnonzero((second >= 0) & (gain >= floor))
    rows = np.concatenate((np.arange(prefix.shape[0]), spilled))
    lists = np.concatenate((first, second[spilled]))
    if rows.shape[0] > _CODEBOOK_SAMPLE:
        chosen = np.sort(rng.choice(rows.shape[0], _CODEBOOK_SAMPLE, replace=False))
        rows, lists = rows[chosen], lists[chosen]
    coded, size = prefix[rows], config.code_dims
    return coded[:, :size] - centroids[lists, :size], directions(coded, size), floor


def _spread(sample: Vectors, squares: Float32, metric: Metric) -> tuple[float, Float32]:
    """(spread, centre): RMS |x| about zero for "dot", twice the RMS |x - mean| about the mean for "l2"."""
    energy = float(squares.mean(dtype=np.float64))
    if metric == "dot":
        return math.sqrt(energy), np.zeros(sample.shape[1], np.float32)
    mean = sample.mean(axis=0, dtype=np.float64)
    return 2.0 * math.sqrt(max(0.0, energy - float(mean @ mean))), mean.astype(np.float32)
