"""Where the vectors of a run come from: the caller's files, or text that every Python carries."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from nestvec.benchmarks.metrics import Rows, Vectors
from nestvec.errors import InvalidInput

SMOKE_PASSAGES = 12_000
SMOKE_EVERY = 40
"""Every 40th passage is held out as a query."""


@dataclass(frozen=True)
class DataSet:
    """Files of vectors: base [n, d], queries [q, d], and truth [q, ≥k] row numbers if known."""

    base: Path
    queries: Path
    truth: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """The arrays of a run, limits applied."""

    base: Vectors
    queries: Vectors
    truth: Rows | None


def load(data: DataSet, k: int, limit_rows: int | None, limit_queries: int | None) -> Loaded:
    """Open the files of `data`, the base memory-mapped.

    Raises InvalidInput where shapes disagree, k is larger than the base, or truth does not fit. Truth of the whole
    base says nothing about its first rows, so `limit_rows` puts it aside.
    """
    base, queries = load_matrix(data.base)[:limit_rows], load_matrix(data.queries)[:limit_queries]
    if base.shape[1] != queries.shape[1]:
        raise InvalidInput(f"base has {base.shape[1]} dims, queries have {queries.shape[1]}: they must agree")
    if not len(queries) or k > len(base):
        raise InvalidInput(f"need at least 1 query and k={k} rows; got {len(queries)} queries and {len(base)} rows")
    if data.truth is None or len(base) < len(load_matrix(data.base)):
        return Loaded(base, queries, None)
    return Loaded(base, queries, _load_truth(data.truth, len(queries), k, len(base)))


def _load_truth(path: Path, queries: int, k: int, rows: int) -> Rows:
    truth = np.load(path, allow_pickle=False)
    if truth.ndim != 2 or truth.shape[1] < k or len(truth) < queries or truth.dtype.kind not in "iu":
        raise InvalidInput(f"{path}: expected whole numbers [≥{queries}, ≥{k}], got {truth.dtype} {truth.shape}")
    neighbours: Rows = truth[:queries, :k].astype(np.int64)
    if neighbours.min() < 0 or neighbours.max() >= rows:
        raise InvalidInput(f"{path}: row numbers must be 0..{rows - 1}, got {neighbours.min()}..{neighbours.max()}")
    return neighbours


def load_matrix(path: Path) -> Vectors:
    """A memory-mapped .npy of float32 or float16 [n, d].

    Raises InvalidInput for anything else.
    """
    try:
        matrix: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InvalidInput(f"{path}: expected a .npy file of numbers: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype not in (np.float32, np.float16):
        raise InvalidInput(f"{path}: expected float32 or float16 [n, d], got {getattr(matrix, 'dtype', type(matrix))}")
    return matrix


def smoke_data(folder: Path) -> DataSet:
    """Vectors of the Python documentation by the static encoder; every 40th passage is a query, not in the base."""
    from nestvec.engine.encoders.registry import load_encoder
    from nestvec.engine.stdlib_docs import passages

    texts = [passage["text"] for passage in islice(passages(), SMOKE_PASSAGES)]
    encoder = load_encoder("static")
    held_out = np.arange(len(texts)) % SMOKE_EVERY == 0
    folder.mkdir(parents=True, exist_ok=True)
    data = DataSet(folder / "base.npy", folder / "queries.npy")
    documents = encoder.encode_documents([text for text, out in zip(texts, held_out, strict=True) if not out])
    questions = encoder.encode_queries([text for text, out in zip(texts, held_out, strict=True) if out])
    np.save(data.base, documents, allow_pickle=False)
    np.save(data.queries, questions, allow_pickle=False)
    return data
