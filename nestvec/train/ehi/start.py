"""Where a router starts: spherical k-means, level by level."""

from __future__ import annotations

from collections.abc import Sequence

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


def starting_heads(rows: F32, branches: Sequence[int], seed: int, warm: bool) -> list[F32]:
    """One f32 [nodes of the level, d] for each level: centres of length 1, of each node's own rows below the first.

    `warm` False: random directions, for comparison.
    """
    random = np.random.default_rng(seed)
    heads: list[F32] = []
    groups = [np.arange(len(rows))]
    for level, width in enumerate(branches):
        if not warm:
            heads.append(unit(random.standard_normal((len(groups) * width, rows.shape[1])).astype(np.float32)))
            groups = [np.empty(0, np.int64)] * (len(groups) * width)
            continue
        parts = []
        below: list[NDArray[np.int64]] = []
        for node, members in enumerate(groups):
            # A node with hardly any rows of its own divides a random sample instead: it still needs directions.
            own = members if len(members) >= width else random.choice(len(rows), min(len(rows), 4 * width))
            centres = spherical_kmeans(rows[own], width, seed + level * 100_003 + node)
            parts.append(centres)
            nearest = nearest_centre(rows[members], centres)
            below += [members[nearest == child] for child in range(width)]
        heads.append(np.concatenate(parts))
        groups = below
    return heads
