"""How far scores may lie from float32 products: what a scan may rule out before it scores the rest in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nestvec.index.metric import Metric

Float32 = npt.NDArray[np.float32]

_UNIT = 2.0**-24  # rounding unit of float32
_UNDERFLOW = 1e-19  # a smaller coordinate's square is no longer a normal float32


def score_bounds(block: Float32, queries: Float32, metric: Metric) -> tuple[Float32, Float32]:
    """Lower and upper bounds, float32 [b, m] each, of the rounded scores.

    A float32 sum of d products errs by at most d*u/(1-d*u) of ||q||*||x|| in any order of addition (Higham,
    Accuracy and Stability, 3.1); twice that also covers the rounding of the norms, of the bounds and of the result.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is unknown
        dims = block.shape[1]
        slack = 2.0 * (dims + 8) * _UNIT / (1.0 - dims * _UNIT)
        products = queries @ block.T
        squares = np.einsum("ij,ij->i", block, block)
        norms = np.sqrt(squares) + np.float32(np.sqrt(dims) * _UNDERFLOW)
        query_norms = np.linalg.norm(queries.astype(np.float64), axis=1)[:, None].astype(np.float32)
        if metric == "dot":
            margin = np.float32(slack) * query_norms * norms
        else:
            margin = np.float32(slack) * np.square(query_norms + norms)
            products = 2.0 * products - squares - np.square(query_norms)
        margin += np.float32(dims * 1e-37)  # products that underflow
        lower, upper = products - margin, products + margin
        unknown = ~np.isfinite(upper)
        if unknown.any():
            lower[unknown], upper[unknown] = -np.inf, np.inf
    return lower, upper
