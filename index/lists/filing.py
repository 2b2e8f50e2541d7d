"""Code rows and file them in their lists, whichever way the lists were chosen."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index.lists.model import ListModel
from nestvec.index.postings import Postings, build_postings
from nestvec.index.quantize import Float32, directions, encode, nested_prefix, squared_lengths
from nestvec.index.vectors import Vectors, check_vectors

_BLOCK_FLOATS = 1 << 20  # 4 MiB of a block's prefix in float32

Lists = npt.NDArray[np.int32]
Choose = Callable[[int, int, Float32], Lists]
"""From rows start to stop - 1 and their prefix f32 [m, partition_dims]: the lists of each, int32 [m, width], -1 where
none."""


@dataclass(frozen=True, eq=False, slots=True)
class _Filed:
    """Postings: their list and row [m], codes uint8 [m, M] and, for "l2", ||c||^2 - ||x||^2 [m]."""

    lists: Lists
    rows: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]
    bias: Float32 | None

    @classmethod
    def empty(cls, model: ListModel, size: int) -> _Filed:
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


def file_and_code(
    model: ListModel, vectors: Vectors, choose: Choose, width: int, progress: Callable[[int], None] | None = None
) -> Postings:
    """Postings of float32|float16 [n, dims], in memory or memory-mapped, read once and block by block.

    Every row is filed in the lists that `choose` gives it, at most `width`, each time with the code of its residual
    there. `progress` is called with the number of rows done after each block. Blocks are coded on all processors; the
    result does not depend on how many there are. Memory: about width * (M + 16) bytes a row beside the result.
    """
    count, dims = check_vectors(vectors)
    if dims != model.dims:
        raise InvalidInput(f"the model was trained on {model.dims} dims, got vectors of {dims}")
    filed = _Filed.empty(model, width * count)
    done = end = 0
    for rows, block in _coded_blocks(_Coder(model, vectors, choose)):
        done, end = done + rows, filed.put(end, block)
        if progress is not None:
            progress(done)
    bias = None if filed.bias is None else filed.bias[:end]
    return build_postings(count, model.config.partitions, filed.lists[:end], filed.rows[:end], filed.codes[:end], bias)


def _coded_blocks(coder: _Coder) -> Iterator[tuple[int, _Filed]]:
    """(rows, postings) of each block, in order."""
    rows = coder.vectors.shape[0]
    step = max(1, _BLOCK_FLOATS // coder.model.config.partition_dims)
    threads = os.cpu_count() or 1
    waiting: deque[Future[tuple[int, _Filed]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, rows, step):
            waiting.append(pool.submit(coder.code, start, min(start + step, rows)))
            if len(waiting) > threads:  # never far ahead, so that memory stays small and an error stops soon
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Coder:
    """Codes blocks of rows, several at once."""

    def __init__(self, model: ListModel, vectors: Vectors, choose: Choose) -> None:
        self.model, self.vectors, self._choose = model, vectors, choose
        self._squares = np.einsum("ij,ij->i", model.centroids, model.centroids)

    def code(self, start: int, stop: int) -> tuple[int, _Filed]:
        """(how many rows, their postings) for rows start to stop - 1."""
        model, size = self.model, self.model.config.code_dims
        squares = squared_lengths(self.vectors[start:stop])
        prefix = nested_prefix(self.vectors[start:stop], model.config.partition_dims, squares)
        chosen = self._choose(start, stop, prefix)
        at, place = np.nonzero(chosen >= 0)
        lists, coded = chosen[at, place], prefix[at]
        residuals = coded[:, :size] - model.centroids[lists, :size]
        codes = encode(residuals, directions(coded, size), model.codebook, model.config.anisotropy)
        bias = self._squares[lists] - squares[at] if model.metric == "l2" else None
        return stop - start, _Filed(lists, (at + start).astype(np.uint32), codes, bias)
