"""What every model of coded lists holds, whichever way rows and queries find their lists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.metric import Metric
from nestvec.index.rescore import MAX_DIMS as MAX_RESCORE_DIMS
from nestvec.index.rescore import STEP as RESCORE_STEP

MAX_PARTITIONS = 65536


@dataclass(frozen=True, slots=True)
class ListConfig:
    """How rows in lists are coded.

    partitions: posting lists. partition_dims: prefix that centroids cover. code_dims: prefix of the residual that
    is coded, <= partition_dims. dims_per_block: dims that one 4-bit code covers. rescore_dims: prefix kept as int8
    rows, a multiple of 64; 0: none. anisotropy: weight of a code's error along the row against that across it, >= 1.
    iterations: of k-means.
    """

    partitions: int
    partition_dims: int
    code_dims: int
    dims_per_block: int
    rescore_dims: int = 0
    anisotropy: float = 6.0
    iterations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "partitions", 1, MAX_PARTITIONS)
        check_bounds(self, "partition_dims", 1, 4096)
        check_bounds(self, "code_dims", 1, self.partition_dims)
        check_bounds(self, "dims_per_block", 1, 32)
        check_bounds(self, "rescore_dims", 0, MAX_RESCORE_DIMS)
        check_bounds(self, "iterations", 1, 1000)
        check_at_least(self, "anisotropy", 1.0)
        if self.rescore_dims % RESCORE_STEP:
            raise InvalidInput(f"rescore_dims must be a multiple of {RESCORE_STEP}, got {self.rescore_dims}")


def check_bounds(settings: object, name: str, least: float, most: float) -> None:
    """Raise InvalidInput where the setting lies outside least..most."""
    value = getattr(settings, name)
    if not least <= value <= most:
        raise InvalidInput(f"{name} must be in {least}..{most}, got {value}")


def check_at_least(settings: object, name: str, bound: float) -> None:
    """Raise InvalidInput where the setting is below the bound or not finite."""
    value = getattr(settings, name)
    if not (math.isfinite(value) and value >= bound):
        raise InvalidInput(f"{name} must be >= {bound:g}, got {value}")


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class ListModel:
    """What all segments of a generation share.

    centroids: float32 [partitions, partition_dims], what a row's code is a residual of. codebook: float32
    [M, 16, dims_per_block]. rescore_scale: float32 [rescore_dims], the step of each dimension of the int8 rows.
    spread: what a margin of 1 means for a query at unit distance from `centre`, float32 [dims].
    """

    name: ClassVar[str]
    """The route."""

    config: ListConfig
    metric: Metric
    dims: int
    centroids: npt.NDArray[np.float32]
    codebook: npt.NDArray[np.float32]
    rescore_scale: npt.NDArray[np.float32]
    spread: float
    centre: npt.NDArray[np.float32]

    def native_router(self) -> kernels.Router | None:
        """What chooses the lists of a query; None: the scores of their centroids do."""
        return None

    def routing_cost(self, probes: int) -> tuple[int, int]:
        """(multiply-adds, bytes) of choosing up to so many lists for a query."""
        lists = -(-self.config.partitions // 16) * 16
        dims = -(-self.config.partition_dims // 4) * 4
        return lists * dims, lists * dims
