"""Train a SOAR model: partition centroids on a prefix, and a 4-bit codebook for what they leave over.

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
from nestvec.index.quantize import kmeans, train_codebook
from nestvec.index.soar.loss import nearest_and_spill
from nestvec.index.vectors import Vectors, check_vectors

_MAX_PARTITIONS = 65536
_PARTITION_DIMS = 256  # centroids of 256 dims stay in the second-level cache: the AdANNS split (arXiv 2305.19435)
_CODE_DIMS = 192
_MAX_BLOCKS = 128  # 64 bytes a posting
_CODEBOOK_SAMPLE = 50_000  # rows; 16 centres of a few dims need no more


@dataclass(frozen=True, slots=True)
class SoarConfig:
    """How a SOAR index is built.

    partitions: posting lists. partition_dims: prefix that centroids cover. code_dims: prefix of the residual that
    is coded, <= partition_dims. dims_per_block: dims that one 4-bit code covers. soar_lambda: weight of the parallel
    part of the second residual in the spill loss. spill: file rows a second time. iterations: of k-means.
    """

    partitions: int
    partition_dims: int
    code_dims: int
    dims_per_block: int
    soar_lambda: float = 1.0
    spill: bool = True
    iterations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "partitions": _MAX_PARTITIONS,
            "partition_dims": 4096,
            "code_dims": self.partition_dims,
            "dims_per_block": 16,
            "iterations": 1000,
        }
        for name, most in bounds.items():
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise InvalidInput(f"{name} must be in 1..{most}, got {value}")
        if not (math.isfinite(self.soar_lambda) and self.soar_lambda >= 0.0):
            raise InvalidInput(f"soar_lambda must be >= 0, got {self.soar_lambda}")


@dataclass(frozen=True, eq=False, slots=True)
class SoarModel:
    """What all segments of a generation share.

    centroids: float32 [partitions, partition_dims]. codebook: float32 [M, 16, dims_per_block].
    """

    config: SoarConfig
    metric: Metric
    dims: int
    centroids: npt.NDArray[np.float32]
    codebook: npt.NDArray[np.float32]


def default_config(n: int, dims: int, granularities: Sequence[int]) -> SoarConfig:
    """A sane configuration for n rows: n^0.6 / 2 partitions rounded to a power of two (1M -> 2048, 10k -> 128).

    Centroids cover the largest granularity <= 256 (the smallest, if none is), codes the first 192 dims of that, in
    3 or 2 dims a block: 32 bytes a posting. On a million 768-d text vectors, 192 dims by 3 found more than 128 by 2
    (recall@10 .987 against .978) in as many bytes. Where no prefix <= 256 is known to stand for the whole, codes
    cover all that the centroids do, in blocks wide enough for 64 bytes.
    """
    sizes = check_granularities(granularities, dims)
    wanted = 2 ** round(math.log2(max(1.0, 0.5 * max(1, n) ** 0.6)))
    partition_dims = max((size for size in sizes if size <= _PARTITION_DIMS), default=sizes[0])
    code_dims = min(_CODE_DIMS, partition_dims) if partition_dims <= _PARTITION_DIMS else partition_dims
    width = 3 if code_dims % 3 == 0 else 2
    return SoarConfig(
        partitions=min(wanted, max(1, n), _MAX_PARTITIONS),
        partition_dims=partition_dims,
        code_dims=code_dims,
        dims_per_block=max(width, math.ceil(code_dims / _MAX_BLOCKS)),
    )


def train(sample: Vectors, config: SoarConfig, metric: Metric) -> SoarModel:
    """Train on float32|float16 [n, d], n >= partitions. Deterministic: the same sample and config, the same model.

    k-means is plain even for "dot": prefixes of unit vectors are not unit, and the coded residual x - c must be
    small, so centroids keep their length. The codebook is trained on the residuals of both postings.
    """
    count, dims = check_vectors(sample)
    check_metric(metric)
    if config.partition_dims > dims:
        raise InvalidInput(f"partition_dims must be <= dims={dims}, got {config.partition_dims}")
    if count < config.partitions:
        raise InvalidInput(f"training needs at least partitions={config.partitions} rows, got {count}")
    prefix = np.ascontiguousarray(sample[:, : config.partition_dims], dtype=np.float32)
    centroids = kmeans(prefix, config.partitions, config.iterations, config.seed)
    residuals = _sample_residuals(prefix, centroids, config)
    codebook = train_codebook(residuals, config.dims_per_block, config.iterations, config.seed)
    return SoarModel(config, metric, dims, centroids, codebook)


def _sample_residuals(
    prefix: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32], config: SoarConfig
) -> npt.NDArray[np.float32]:
    """Coded part of the residuals of a sample's postings: float32 [postings, code_dims]."""
    if prefix.shape[0] > _CODEBOOK_SAMPLE:
        chosen = np.random.default_rng(config.seed).choice(prefix.shape[0], _CODEBOOK_SAMPLE, replace=False)
        prefix = prefix[np.sort(chosen)]
    first, second = nearest_and_spill(prefix, centroids, config.soar_lambda if config.spill else None)
    coded, centres = prefix[:, : config.code_dims], centroids[:, : config.code_dims]
    spilled = second >= 0
    return np.concatenate((coded - centres[first], coded[spilled] - centres[second[spilled]]))
