"""Where a router starts: clusters by spherical k-means, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

_BLOCK = 8192
_SAMPLE = 100  # rows to a centre; more move the centres by nothing that training would not


def unit(rows: F32) -> F32:
    """Rows of length 1; zero rows stay zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    result: F32 = np.divide(rows, np.maximum(lengths, np.float32(1e-12)), dtype=np.float32)
    return result


def spherical_kmeans(rows: F32, centres: int, seed: int, iterations: int = 10) -> F32:
    """Centres f32 [centres, d] of length 1 of the rows f32 [n, d] by cosine; an empty one takes a random row."""
    random = np.random.default_rng(seed)
    if len(rows) > _SAMPLE * centres:
        rows = rows[np.sort(random.choice(len(rows), _SAMPLE * centres, replace=False))]
    rows = unit(rows)
    found: F32 = rows[random.choice(len(rows), centres, replace=len(rows) < centres)]
    for _ in range(iterations):
        nearest = nearest_centre(rows, found)
        sums = np.zeros(found.shape, np.float32)
        np.add.at(sums, nearest, rows)
        empty = np.flatnonzero(np.bincount(nearest, minlength=centres) == 0)
        sums[empty] = rows[random.choice(len(rows), len(empty))]
        found = unit(sums)
    return found


def nearest_centre(rows: F32, centres: F32) -> NDArray[np.int64]:
    """int64 [n]: the centre of the largest inner product, block by block."""
    found = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        found[start : start + _BLOCK] = (rows[start : start + _BLOCK] @ centres.T).argmax(axis=1)
    return found


def starting_heads(guided: F32, vectors: F32, branches: Sequence[int], seed: int, warm: bool) -> list[F32]:
    """One f32 [nodes of the level, d] for each level: means, of length 1, of the vectors f32 [n, d] of each cluster.

    Clusters are of the same rows as a guide sees them, `guided` f32 [n, e], and below the first level of each node's
    own rows. `warm` False: random directions, for comparison.
    """
    nodes = np.cumprod(branches).tolist()
    if not warm:
        random = np.random.default_rng(seed)
        return [unit(random.standard_normal((count, vectors.shape[1])).astype(np.float32)) for count in nodes]
    heads: list[F32] = []
    node = np.zeros(len(vectors), np.int64)
    for level, width in enumerate(branches):
        found, node = divided(guided, vectors, node, nodes[level] // width, width, seed + level * 100_003)
        heads.append(found)
    return heads


def divided(
    guided: F32, vectors: F32, node: NDArray[np.integer[Any]], nodes: int, width: int, seed: int
) -> tuple[F32, NDArray[np.int64]]:
    """(heads f32 [nodes * width, d], the child of each row int64 [n]): each node's rows in `width` clusters.

    node int [n]: the node that each row lies in. A node with hardly any rows divides a random sample instead: it still
    needs directions.
    """
    random = np.random.default_rng(seed)
    parts, child = [], np.zeros(len(vectors), np.int64)
    for parent in range(nodes):
        members = np.flatnonzero(node == parent)
        own = members if len(members) >= width else random.choice(len(vectors), min(len(vectors), 4 * width))
        centres = spherical_kmeans(guided[own], width, seed + parent)
        parts.append(_means(unit(vectors[own]), nearest_centre(guided[own], centres), width))
        child[members] = parent * width + nearest_centre(guided[members], centres)
    return np.concatenate(parts), child


def _means(rows: F32, cluster: NDArray[np.int64], clusters: int) -> F32:
    """The mean direction of each cluster's rows; of all rows where it has none."""
    sums = np.zeros((clusters, rows.shape[1]), np.float32)
    np.add.at(sums, cluster, rows)
    sums[np.bincount(cluster, minlength=clusters) == 0] = rows.sum(axis=0)
    return unit(sums)
