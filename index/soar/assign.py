"""File rows under a trained model; new rows need no retraining."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nestvec.index.lists.filing import Lists, file_and_code
from nestvec.index.lists.loss import SpillTable, nearest_and_spill
from nestvec.index.postings import Postings
from nestvec.index.quantize import Float32
from nestvec.index.soar.train import SoarModel
from nestvec.index.vectors import Vectors


def assign(model: SoarModel, vectors: Vectors, progress: Callable[[int], None] | None = None) -> Postings:
    """Postings of float32|float16 [n, dims], in memory or memory-mapped, read once and block by block.

    Every row is filed in its nearest partition and, if that gains enough for the model, in the one that minimises the
    SOAR loss. `progress` is called with the number of rows done after each block.
    """
    table = SpillTable.of(model.centroids)
    soar_lambda = model.config.soar_lambda if model.config.spill_share else None

    def choose(start: int, stop: int, prefix: Float32) -> Lists:
        first, second, gain = nearest_and_spill(prefix, model.centroids, soar_lambda, table)
        second[gain < np.float32(model.spill_floor)] = -1
        return np.column_stack((first, second))

    return file_and_code(model, vectors, choose, 2, progress)
