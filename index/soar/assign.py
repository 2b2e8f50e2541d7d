"""File rows under a trained model; new rows need no retraining."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.postings import Postings, build_postings
from nestvec.index.quantize import Float32, pad_dims
from nestvec.index.soar.loss import Lists, SpillTable, nearest_and_spill
from nestvec.index.soar.train import SoarModel
from nestvec.index.vectors import Vectors, check_vectors

Codes = npt.NDArray[np.uint8]

_BLOCK_FLOATS = 1 << 22  # 16 MiB of a block's prefix in float32


def assign(model: SoarModel, vectors: Vectors, progress: Callable[[int], None] | None = None) -> Postings:
    """Postings of float32|float16 [n, dims], in memory or memory-mapped, read once and block by block.

    Every row is filed in its nearest partition and, if the model spills, in the one that minimises the SOAR loss,
    each with the code of its own residual. `progress` is called with the number of rows done after each block.
    Memory: about 2 * (M + 16) bytes a row beside the result.
    """
    count, dims = check_vectors(vectors)
    if dims != model.dims:
        raise InvalidInput(f"the model was trained on {model.dims} dims, got vectors of {dims}")
    config = model.config
    table = SpillTable.of(model.centroids)
    first, second = np.empty(count, np.int32), np.full(count, -1, np.int32)
    codes = [np.empty((count if filed else 0, model.codebook.shape[0]), np.uint8) for filed in (True, config.spill)]
    bias = np.empty(count, np.float32) if model.metric == "l2" else None
    step = max(1, _BLOCK_FLOATS // config.partition_dims)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        prefix = np.ascontiguousarray(vectors[block, : config.partition_dims], dtype=np.float32)
        soar_lambda = config.soar_lambda if config.spill else None
        first[block], second[block] = nearest_and_spill(prefix, model.centroids, soar_lambda, table)
        codes[0][block] = _encode(model, prefix, first[block])
        if config.spill:
            spilled = np.flatnonzero(second[block] >= 0)
            codes[1][start + spilled] = _encode(model, prefix[spilled], second[block][spilled])
        if bias is not None:
            bias[block] = -_squared_norms(vectors[block])
        if progress is not None:
            progress(block.stop)
    return _file(model, first, second, codes, bias)


def _encode(model: SoarModel, prefix: Float32, lists: Lists) -> Codes:
    """Codes uint8 [n, M] of what the centroids of `lists` leave over."""
    size = model.config.code_dims
    residuals = prefix[:, :size] - model.centroids[lists, :size]
    codes: Codes = kernels.encode(pad_dims(residuals, model.config.dims_per_block), model.codebook)
    return codes


def _squared_norms(vectors: Vectors) -> Float32:
    full = vectors.astype(np.float32, copy=False)
    squares: Float32 = np.einsum("ij,ij->i", full, full)
    return squares


def _file(
    model: SoarModel,
    first: Lists,
    second: Lists,
    codes: list[Codes],
    bias: Float32 | None,
) -> Postings:
    count = first.shape[0]
    spilled = np.flatnonzero(second >= 0)
    lists = np.concatenate((first, second[spilled]))
    rows = np.concatenate((np.arange(count), spilled)).astype(np.uint32)
    both = np.concatenate((codes[0], codes[1][spilled])) if model.config.spill else codes[0]
    codes.clear()
    return build_postings(count, model.config.partitions, lists, rows, both, bias)
