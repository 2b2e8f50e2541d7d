"""Nested prefixes, and product quantisation of them to 4 bits a block.

The codes are ScaNN's and FAISS's "fast scan": 16 centres per block of dims. They are trained and chosen with the
score-aware loss of Guo et al., "Accelerating Large-Scale Inference with Anisotropic Vector Quantization" (arXiv
1908.10396): the part of an error that lies along the row counts most, because queries that want the row point that way.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt

from nestvec.index import kernels

CENTRES = 16
"""Centres per block: what four bits can name."""

_AWARE_ROUNDS = 4  # of coding and solving; the loss moves by less than a hundredth after them
_MOST_STRETCH = 4.0  # a prefix of next to nothing says nothing about the rest
_NORM_FLOATS = 1 << 22  # 16 MiB of rows widened to float32 at a time

Float32 = npt.NDArray[np.float32]


def squared_lengths(vectors: npt.NDArray[Any]) -> Float32:
    """|x|^2 of float32|float16 [n, d], in float32 and block by block: float32 [n]."""
    squares = np.empty(vectors.shape[0], np.float32)
    step = max(1, _NORM_FLOATS // max(1, vectors.shape[1]))
    for start in range(0, vectors.shape[0], step):
        block = vectors[start : start + step].astype(np.float32, copy=False)
        squares[start : start + step] = np.einsum("ij,ij->i", block, block)
    return squares


def nested_prefix(vectors: npt.NDArray[Any], dims: int, squares: Float32 | None = None) -> Float32:
    """z = x[:dims] * clip(|x| / |x[:dims]|, 1, 4) of float32|float16 [n, d]: contiguous float32 [n, min(dims, d)].

    The prefix, as long as the whole vector: its product with a query stands for the full one, as if what lies beyond
    agreed with the query as much as the prefix does. On text vectors that halves the rows a shortlist needs at
    recall .99. A prefix of zeros stays so. `squares`: the rows' `squared_lengths`, where they are at hand.
    """
    prefix = np.array(vectors[:, :dims], dtype=np.float32, order="C")
    squares = squared_lengths(vectors) if squares is None else squares
    held = np.einsum("ij,ij->i", prefix, prefix)
    with np.errstate(over="ignore"):  # a prefix of next to nothing: the most it is stretched, below
        stretch = np.sqrt(np.divide(squares, held, out=np.ones_like(held), where=held > 0.0))
    prefix *= np.clip(stretch, 1.0, np.float32(_MOST_STRETCH))[:, None]
    return prefix


def directions(prefix: Float32, size: int) -> Float32:
    """The first `size` numbers of each row's unit vector: float32 [n, size]; zeros for a row of zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", prefix, prefix))[:, None]
    pointing = np.zeros((prefix.shape[0], size), np.float32)
    np.divide(prefix[:, :size], lengths, out=pointing, where=lengths > 0.0)
    return pointing


def kmeans(points: Float32, centres: int, iterations: int, seed: int) -> Float32:
    """Plain (Euclidean) k-means by faiss over all of float32 [n, d], n >= centres -> float32 [centres, d].

    The same points and seed give the same centres. No sampling inside: pass the sample.
    """
    import faiss  # a quarter of a second, which who only searches need not wait for

    points = np.ascontiguousarray(points, dtype=np.float32)
    learner = faiss.Kmeans(
        points.shape[1],
        centres,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, points.shape[0]),
    )
    learner.train(points)
    return np.array(learner.centroids, dtype=np.float32).reshape(centres, points.shape[1])


def pad_dims(residuals: Float32, dims_per_block: int) -> Float32:
    """Append zero dims so that whole blocks cover the residuals: [n, d] -> contiguous [n, M * dims_per_block]."""
    spare = -residuals.shape[1] % dims_per_block
    return np.ascontiguousarray(np.pad(residuals, ((0, 0), (0, spare))) if spare else residuals)


def encode(residuals: Float32, pointing: Float32, codebook: Float32, anisotropy: float) -> npt.NDArray[np.uint8]:
    """Codes uint8 [n, M] of residuals [n, d] whose rows have the `directions` pointing [n, d]."""
    width = codebook.shape[2]
    if anisotropy == 1.0:
        return kernels.encode(pad_dims(residuals, width), codebook)
    return kernels.encode_aware(pad_dims(residuals, width), pad_dims(pointing, width), codebook, anisotropy)


def train_codebook(
    residuals: Float32, pointing: Float32, dims_per_block: int, anisotropy: float, iterations: int, seed: int
) -> Float32:
    """Centres float32 [M, 16, dims_per_block] of residuals and their rows' directions float32 [n, d], n >= 1.

    `iterations` rounds of k-means in every block, from random rows; for anisotropy > 1, rounds of coding score-aware
    and solving for the centres follow.
    """
    padded, along = pad_dims(residuals, dims_per_block), pad_dims(pointing, dims_per_block)
    count = padded.shape[0]
    start = np.random.default_rng(seed).choice(count, CENTRES, replace=count < CENTRES)
    codebook = np.ascontiguousarray(padded[start].reshape(CENTRES, -1, dims_per_block).transpose(1, 0, 2))
    for _ in range(iterations):
        codebook = _means(padded, codebook, kernels.encode(padded, codebook))
    for _ in range(_AWARE_ROUNDS if anisotropy > 1.0 else 0):
        codes = kernels.encode_aware(padded, along, codebook, anisotropy)
        codebook = _solve_centres(padded, along, codebook, codes, anisotropy - 1.0)
    return codebook


def _means(residuals: Float32, codebook: Float32, codes: npt.NDArray[np.uint8]) -> Float32:
    """The codebook whose centres are the means of the rows that chose them; centres without a row stay."""
    means = codebook.copy()
    for dim, values in enumerate(residuals.T):
        block, place = divmod(dim, codebook.shape[2])
        chosen = codes[:, block].astype(np.intp)
        counts = _sums(chosen, None)
        np.divide(_sums(chosen, values), counts, out=means[block, :, place], where=counts > 0, casting="same_kind")
    return means


def _solve_centres(
    residuals: Float32, pointing: Float32, codebook: Float32, codes: npt.NDArray[np.uint8], weight: float
) -> Float32:
    """The codebook that lowers the sum over rows of |r|^2 + weight <r, d>^2, r = residual - decoded, codes given.

    Block after block, with the other blocks as they are by then: the 16 centres of a block are independent least
    squares. With y and d a row's residual and direction in the block and t the part of <r, d> from other blocks,
    sum (I + weight d d^T) centre = sum (y + weight (t + <y, d>) d). Centres without a row stay.
    """
    solved = codebook.astype(np.float64)
    width = codebook.shape[2]
    decoded = codebook[np.arange(codebook.shape[0]), codes].reshape(residuals.shape)
    total = np.einsum("ij,ij->i", residuals - decoded, pointing).astype(np.float64)
    for block, chosen in enumerate(codes.T.astype(np.intp)):
        band = slice(block * width, (block + 1) * width)
        y, d = (each[:, band].T.astype(np.float64, order="C") for each in (residuals, pointing))
        counts = _sums(chosen, None)
        rest = total - _product(y, d, solved[block], chosen)
        wanted = y + weight * (rest + np.einsum("ji,ji->i", y, d)) * d
        normal = counts[:, None, None] * np.eye(width)
        for i, j in combinations_with_replacement(range(width), 2):
            normal[:, [i, j], [j, i]] += weight * _sums(chosen, d[i] * d[j])[:, None]
        right = np.stack([_sums(chosen, each) for each in wanted], axis=1)
        used = counts > 0
        solved[block, used] = np.linalg.solve(normal[used], right[used, :, None])[:, :, 0]
        total = rest + _product(y, d, solved[block], chosen)
    return solved.astype(np.float32)


def _product(
    y: npt.NDArray[np.float64],
    d: npt.NDArray[np.float64],
    centres: npt.NDArray[np.float64],
    chosen: npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """<y - centre, d> of each row [n]: y and d [width, n]."""
    products: npt.NDArray[np.float64] = np.einsum("ji,ji->i", y - np.take(centres.T, chosen, axis=1), d)
    return products


def _sums(chosen: npt.NDArray[np.intp], values: npt.NDArray[np.floating[Any]] | None) -> npt.NDArray[np.float64]:
    """Sums [16] of the values [n] (None: ones) of the rows that chose each centre."""
    return np.bincount(chosen, values, minlength=CENTRES).astype(np.float64)
