"""The C++ kernels with types: same signatures, meaning, results and errors as `reference`, which documents them."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels import _native  # type: ignore[attr-defined]  # the C++ extension has no stub


def available() -> list[str]:
    """The instruction sets of this processor, best first."""
    return cast("list[str]", _native.available())


def isa() -> str:
    """The instruction set in use."""
    return cast(str, _native.isa())


def use_isa(name: str) -> None:
    """Make every later call of this process use the named instruction set; ValueError if it is not available."""
    _native.use_isa(name)


def scan_lists(
    codes: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int32],
    rows: npt.NDArray[np.uint32],
    lists: npt.NDArray[np.int32],
    list_bias: npt.NDArray[np.float32],
    lut: npt.NDArray[np.uint8],
    scale: float,
    base: float,
    posting_bias: npt.NDArray[np.float32] | None,
    allowed: npt.NDArray[np.uint8] | npt.NDArray[np.bool_] | None,
    keep: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], int]:
    """See `reference.scan_lists`. Runs without the GIL."""
    result = _native.scan_lists(
        codes, offsets, counts, rows, lists, list_bias, lut, scale, base, posting_bias, allowed, keep
    )
    return cast("tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], int]", result)


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
    """See `reference.band_scores`. Runs without the GIL; reads the next rows ahead."""
    _native.band_scores(query, vectors, rows, lo, hi, metric, scores, norms)


def encode(residuals: npt.NDArray[np.float32], codebook: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """See `reference.encode`. Runs without the GIL."""
    return cast("npt.NDArray[np.uint8]", _native.encode(residuals, codebook))


def pack(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """See `reference.pack`. Runs without the GIL."""
    return cast("npt.NDArray[np.uint8]", _native.pack(codes))
