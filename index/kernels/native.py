"""The C++ kernels with types: same signatures, meaning, results and errors as the reference, which documents them.

Every call runs without the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels import _native  # type: ignore[attr-defined]  # the C++ extension has no stub
from nestvec.index.kernels.reference_reaching import reaching as reaching_by_products
from nestvec.index.metric import Metric

if TYPE_CHECKING:  # the C++ objects have the very interface of their numpy twins
    from nestvec.index.kernels.reference_search import (
        GatheredRows,
        Layer,
        Model,
        Plan,
        Recording,
        Router,
        Searcher,
        Segment,
        resident,
    )
else:
    from nestvec.index.kernels._native import (
        GatheredRows,
        Layer,
        Model,
        Plan,
        Recording,
        Router,
        Searcher,
        Segment,
        resident,
    )

__all__ = [
    "GatheredRows",
    "Layer",
    "Model",
    "Plan",
    "Recording",
    "Router",
    "Searcher",
    "Segment",
    "available",
    "band_scores",
    "encode",
    "encode_aware",
    "isa",
    "pack",
    "reaching",
    "resident",
    "use_isa",
]


def available() -> list[str]:
    """The instruction sets of this processor, best first."""
    return cast("list[str]", _native.available())


def isa() -> str:
    """The instruction set in use."""
    return cast(str, _native.isa())


def use_isa(name: str) -> None:
    """Make later calls and later Searchers use the named instruction set; ValueError if it is not available."""
    _native.use_isa(name)


def band_scores(
    query: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    rows: npt.NDArray[np.int64],
    lo: int,
    hi: int,
    metric: str,
    scores: npt.NDArray[np.float64],
    norms: npt.NDArray[np.float64] | None = None,
) -> None:
    """See `reference.band_scores`. Reads the next rows ahead."""
    _native.band_scores(query, vectors, rows, lo, hi, metric, scores, norms)


def encode(residuals: npt.NDArray[np.float32], codebook: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """See `reference_encode.encode`."""
    return cast("npt.NDArray[np.uint8]", _native.encode(residuals, codebook))


def encode_aware(
    residuals: npt.NDArray[np.float32],
    directions: npt.NDArray[np.float32],
    codebook: npt.NDArray[np.float32],
    eta: float,
) -> npt.NDArray[np.uint8]:
    """See `reference_encode.encode_aware`."""
    return cast("npt.NDArray[np.uint8]", _native.encode_aware(residuals, directions, codebook, eta))


def pack(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """See `reference_encode.pack`."""
    return cast("npt.NDArray[np.uint8]", _native.pack(codes))


def reaching(
    vectors: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    levels: npt.NDArray[np.uint8],
    queries: npt.NDArray[np.float32],
    floors: npt.NDArray[np.float32],
    metric: Metric,
    threads: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """See `reference_reaching.reaching`. AVX-512 rules rows out by products of bytes; else BLAS is faster at it."""
    if isa() != "avx512":
        return reaching_by_products(vectors, levels, queries, floors, metric, threads, band_scores)
    return cast(
        "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]",
        _native.reaching(vectors, levels, queries, floors, metric, threads),
    )
