"""Train what all coded lists need, once it is known which lists a sample of rows is filed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.index.granularity import check_granularities
from nestvec.index.lists.model import ListConfig
from nestvec.index.metric import Metric
from nestvec.index.quantize import Float32, directions, nested_prefix, train_codebook
from nestvec.index.rescore import MAX_DIMS as MAX_RESCORE_DIMS
from nestvec.index.rescore import STEP as RESCORE_STEP
from nestvec.index.rescore import rescore_scale
from nestvec.index.vectors import Vectors

CODEBOOK_SAMPLE = 50_000
"""Postings that a codebook is trained on: 16 centres of a few dims need no more."""

_PREFIX_DIMS = 192  # for centroids and codes alike; 2048 int8 centroids of it stay in the second-level cache
_SURE_DIMS = 256  # a granularity up to this says that so short a prefix stands for the whole
_RESCORE_SHARE = 0.42  # of the dims: beyond it, more int8 dims save fewer full rows than they cost
_MAX_BLOCKS = 128  # 64 bytes a posting


@dataclass(frozen=True, slots=True)
class Widths:
    """How many dims centroids and codes cover, dims a code, and dims of the int8 rows."""

    covered: int
    block: int
    rescored: int


def default_widths(dims: int, granularities: tuple[int, ...]) -> Widths:
    """Centroids and codes cover the first 192 dims, in 3 or 2 dims a block: 32 bytes a posting. Where the smallest
    granularity is beyond 256, nothing says that so short a prefix stands for the whole: they cover that granularity,
    in blocks wide enough for 64 bytes. The int8 rows cover .42 of the dims, in steps of 64 (768 -> 320), at least 192.
    """
    sizes = check_granularities(granularities, dims)
    covered = min(_PREFIX_DIMS, dims) if sizes[0] <= _SURE_DIMS else sizes[0]
    width = 3 if covered % 3 == 0 else 2
    rescored = max(_PREFIX_DIMS, RESCORE_STEP * round(_RESCORE_SHARE * dims / RESCORE_STEP), whole_steps(covered))
    return Widths(
        covered, max(width, math.ceil(covered / _MAX_BLOCKS)), min(rescored, whole_steps(dims), MAX_RESCORE_DIMS)
    )


def whole_steps(dims: int) -> int:
    """The dims rounded up to what int8 rows come in."""
    return -(-dims // RESCORE_STEP) * RESCORE_STEP


@dataclass(frozen=True, eq=False, slots=True)
class Coding:
    """The parts of a `ListModel` that are trained on a sample: see there."""

    codebook: Float32
    rescore_scale: Float32
    spread: float
    centre: Float32


def train_coding(
    sample: Vectors,
    squares: Float32,
    filed: tuple[Float32, npt.NDArray[np.integer], Float32],
    config: ListConfig,
    metric: Metric,
) -> Coding:
    """The coding of postings like `filed`: (prefixes f32 [m, partition_dims], lists [m], centroids f32).

    `sample`: float32|float16 [n, dims] and the `squared_lengths` of its rows.
    """
    prefix, lists, centroids = filed
    size = config.code_dims
    codebook = train_codebook(
        prefix[:, :size] - centroids[lists, :size],
        directions(prefix, size),
        config.dims_per_block,
        config.anisotropy,
        config.iterations,
        config.seed,
    )
    scale = rescore_scale(nested_prefix(sample, config.rescore_dims, squares), config.rescore_dims)
    return Coding(codebook, scale, *_spread(sample, squares, metric))


def _spread(sample: Vectors, squares: Float32, metric: Metric) -> tuple[float, Float32]:
    """(spread, centre): RMS |x| about zero for "dot", twice the RMS |x - mean| about the mean for "l2"."""
    energy = float(squares.mean(dtype=np.float64))
    if metric == "dot":
        return math.sqrt(energy), np.zeros(sample.shape[1], np.float32)
    mean = sample.mean(axis=0, dtype=np.float64)
    return 2.0 * math.sqrt(max(0.0, energy - float(mean @ mean))), mean.astype(np.float32)
