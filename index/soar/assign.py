"""File rows under a trained model; new rows need no retraining."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index.postings import Postings, build_postings
from nestvec.index.quantize import Float32, directions, encode, nested_prefix, squared_lengths
from nestvec.index.soar.loss import Lists, SpillTable, nearest_and_spill
from nestvec.index.soar.train import SoarModel
from nestvec.index.vectors import Vectors, check_vectors

_BLOCK_FLOATS = 1 << 20  # 4 MiB of a block's prefix in float32


@dataclass(frozen=True, eq=False, slots=True)
class _Filed:
    """Postings: their list and row [m], codes uint8 [m, M] and, for "l2", ||c||^2 - ||x||^2 [m]."""

    lists: Lists
    rows: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]
    bias: Float32 | None

    @classmethod
    def empty(cls, model: SoarModel, size: int) -> _Filed:
        """Room for `size` postings; the system provides memory for those that are filled."""
        bias = np.empty(size, np.float32) if model.metric == "l2" else None
        codes = np.empty((size, model.codebook.shape[0]), np.uint8)
        return cls(np.empty(size, np.int32), np.empty(size, np.uint32), codes, bias)

    def put(self, start: int, other: _Filed) -> int:
        """Copy the other postings to `start` on; return where they end."""
        stop: int = start + other.rows.shape[0]
        span = slice(start, stop)
        self.lists[span], self.rows[span], self.codes[span] = other.lists, other.rows, other.codes
        if self.bias is not None and other.bias is not None:
            self.bias[span] = other.bias
        return stop


def assign(model: SoarModel, vectors: Vectors, progress: Callable[[int], None] | None = None) -> Postings:
    """Postings of float32|float16 [n, dims], in memory or memory-mapped, read once and block by block.

    Every row is filed in its nearest partition and, if that gains enough for the model, in the one that minimises the
    SOAR loss, each with the code of its own residual. `progress` is called with the number of rows done after each
    block. Blocks are coded on all processors; the result does not depend on how many there are.
    Memory: about 2 * (M + 16) bytes a row beside the result.
    """
    count, dims = check_vectors(vectors)
    if dims != model.dims:
        raise InvalidInput(f"the model was trained on {model.dims} dims, got vectors of {dims}")
    filed = _Filed.empty(model, 2 * count)  # first postings by row, then the spilled ones
    done, end = 0, count
    for first, spilled in _coded_blocks(model, vectors):
        done, end = filed.put(done, first), filed.put(end, spilled)
        if progress is not None:
            progress(done)
    bias = None if filed.bias is None else filed.bias[:end]
    return build_postings(count, model.config.partitions, filed.lists[:end], filed.rows[:end], filed.codes[:end], bias)


def _coded_blocks(model: SoarModel, vectors: Vectors) -> Iterator[tuple[_Filed, _Filed]]:
    """(first postings, spilled postings) of each block, in order."""
    coder = _Coder(model, vectors)
    step = max(1, _BLOCK_FLOATS // model.config.partition_dims)
    threads = os.cpu_count() or 1
    waiting: deque[Future[tuple[_Filed, _Filed]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, vectors.shape[0], step):
            waiting.append(pool.submit(coder.code, start, min(start + step, vectors.shape[0])))
            if len(waiting) > threads:  # never far ahead, so that memory stays small and an error stops soon
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Coder:
    """Codes blocks of rows, several at once."""

    def __init__(self, model: SoarModel, vectors: Vectors) -> None:
        self.model, self.vectors = model, vectors
        self.table = SpillTable.of(model.centroids)
        self.squares = np.einsum("ij,ij->i", model.centroids, model.centroids)

    def code(self, start: int, stop: int) -> tuple[_Filed, _Filed]:
        """(first postings, spilled postings) of rows start to stop - 1."""
        config = self.model.config
        squares = squared_lengths(self.vectors[start:stop])
        prefix = nested_prefix(self.vectors[start:stop], config.partition_dims, squares)
        soar_lambda = config.soar_lambda if config.spill_share else None
        first, second, gain = nearest_and_spill(prefix, self.model.centroids, soar_lambda, self.table)
        rows = np.arange(start, stop, dtype=np.uint32)
        spilled = np.flatnonzero((second >= 0) & (gain >= np.float32(self.model.spill_floor)))
        return (
            self._file(first, rows, prefix, squares),
            self._file(second[spilled], rows[spilled], prefix[spilled], squares[spilled]),
        )

    def _file(self, lists: Lists, rows: npt.NDArray[np.uint32], prefix: Float32, squares: Float32) -> _Filed:
        model, size = self.model, self.model.config.code_dims
        residuals = prefix[:, :size] - model.centroids[lists, :size]
        codes = encode(residuals, directions(prefix, size), model.codebook, model.config.anisotropy)
        return _Filed(lists, rows, codes, self.squares[lists] - squares if model.metric == "l2" else None)
