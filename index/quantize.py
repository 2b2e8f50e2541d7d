"""Product quantisation to 4 bits a block: training the codebook, and the lookup table of a query.

The form is ScaNN's and FAISS's "fast scan": 16 centres per block of dims, tables of unsigned bytes, one scale.
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

CENTRES = 16
"""Centres per block: what four bits can name."""

Float32 = npt.NDArray[np.float32]


def kmeans(points: Float32, centres: int, iterations: int, seed: int) -> Float32:
    """Plain (Euclidean) k-means by faiss over all of float32 [n, d], n >= centres -> float32 [centres, d].

    The same points and seed give the same centres. No sampling inside: pass the sample.
    """
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


def train_codebook(residuals: Float32, dims_per_block: int, iterations: int, seed: int) -> Float32:
    """Centres float32 [M, 16, dims_per_block] of residuals float32 [n, d], n >= 1, d padded to whole blocks."""
    padded = pad_dims(residuals, dims_per_block)
    if padded.shape[0] < CENTRES:
        padded = np.tile(padded, (CENTRES, 1))
    blocks = np.split(padded, padded.shape[1] // dims_per_block, axis=1)
    return np.stack([kmeans(block, CENTRES, iterations, seed) for block in blocks])


def lookup_table(query: Float32, codebook: Float32) -> tuple[npt.NDArray[np.uint8], float, float]:
    """(table uint8 [M padded to even, 16], scale, base): <query, decoded> ~= base + scale * sum of the entries.

    `query` is float32 [d], d <= M*s. Each block's least product goes into `base`; the widest block sets the scale,
    so the sum errs by at most scale/2 per block.
    """
    blocks, _, width = codebook.shape
    padded = np.zeros(blocks * width, np.float32)
    padded[: query.shape[0]] = query
    products = np.einsum("mcs,ms->mc", codebook, padded.reshape(blocks, width))
    least = products.min(axis=1, keepdims=True)
    scale = float((products - least).max()) / 255.0
    if not scale > 0.0:
        scale = 1.0
    table = np.zeros((blocks + blocks % 2, CENTRES), np.uint8)
    table[:blocks] = np.clip(np.rint((products - least) / np.float32(scale)), 0, 255)
    return table, scale, float(least.sum(dtype=np.float64))
