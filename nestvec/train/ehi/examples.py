"""What a tree learns from: stored vectors, queries in the same coordinates, and which belong together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestvec.errors import InvalidInput

F32 = NDArray[np.float32]
Rows = NDArray[np.int64]

LEAST_PAIRS = 200
_MOST_HELD = 500  # queries that are measured again and again


@dataclass(frozen=True, eq=False)
class Examples:
    """documents f32 [n, dims] and queries f32 [q, dims] in stored form (`unit`: of length 1). pairs int64 [p, 2]: query
    and row, to learn from. held: queries never learned from, with their relevant rows and grades. prefixes: lengths at
    which an adapted vector must still be an embedding, the whole among them.
    """

    documents: F32
    queries: F32
    unit: bool
    pairs: Rows
    held: Rows
    relevant: list[dict[int, float]]
    prefixes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with what is learned from."""
        found = hashlib.sha256()
        for array in (self.documents, self.queries, self.pairs, self.held):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()[:16]


def split(
    documents: F32,
    queries: F32,
    pairs: Rows,
    grades: F32,
    *,
    unit: bool,
    prefixes: tuple[int, ...],
    held_out: float,
    seed: int,
) -> Examples:
    """Hold a seeded share of the queries out, at most 500 of them.

    pairs int64 [p, 2] (query, row), grades f32 [p]. Queries with the same vector are held out together, so none that
    training saw is measured. Raises InvalidInput for fewer than 200 pairs.
    """
    if len(pairs) < LEAST_PAIRS:
        raise InvalidInput(
            f"a tree is trained from {LEAST_PAIRS} pairs or more, got {len(pairs)} that the collection holds"
        )
    _, alike = np.unique(queries, axis=0, return_inverse=True)
    groups = alike.reshape(-1)[pairs[:, 0]]
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    held_groups = names[: max(1, min(round(held_out * len(names)), _MOST_HELD))]
    out = np.isin(groups, held_groups)
    if out.all():
        raise InvalidInput("every pair has the same query: a tree is trained from pairs of many queries")
    relevant: dict[int, dict[int, float]] = {}
    for (query, row), grade in zip(pairs[out].tolist(), grades[out].tolist(), strict=True):
        judged = relevant.setdefault(query, {})
        judged[row] = max(grade, judged.get(row, 0.0))
    held = np.array(sorted(relevant), np.int64)
    return Examples(documents, queries, unit, pairs[~out], held, [relevant[query] for query in held.tolist()], prefixes)
