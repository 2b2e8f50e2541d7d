"""File rows in the leaves of a learned tree: the most probable ones that have room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index.ehi.router import Layer, Router
from nestvec.index.quantize import Float32
from nestvec.index.vectors import Vectors

Leaves = npt.NDArray[np.int32]

_BLOCK_FLOATS = 1 << 22  # 16 MiB of scores at a time
_TOP = 8  # leaves that a row may choose from, at first
_MORE = 8  # times as many, for rows whose leaves were all full
LEAST_ROOM = 32
"""Rows that every leaf has room for: those of a small segment shall not be scattered, and a scan takes codes 128 at a
time, so that a leaf of so many costs no more than one of a few."""


@dataclass(frozen=True, slots=True)
class Filing:
    """How rows are filed.

    leaves_per_row: a row lies in its best so many leaves ("leaves"), or in its best one and, where that gains enough,
    in a second one by SOAR's loss over the leaves' centroids ("soar"; leaves_per_row is 1 then). cap: postings that a
    leaf holds at most, times the mean of all leaves.
    """

    leaves_per_row: int = 1
    cap: float = 2.0
    spill: Literal["leaves", "soar"] = "leaves"

    def __post_init__(self) -> None:
        if self.spill not in get_args(Literal["leaves", "soar"]):
            raise InvalidInput(f"spill must be leaves or soar, got {self.spill!r}")
        most = 1 if self.spill == "soar" else 8
        if isinstance(self.leaves_per_row, bool) or not isinstance(self.leaves_per_row, int):
            raise InvalidInput(f"leaves_per_row must be an integer, got {self.leaves_per_row!r}")
        if not 1 <= self.leaves_per_row <= most:
            raise InvalidInput(
                f"leaves_per_row must be in 1..{most} with spill {self.spill!r}, got {self.leaves_per_row}"
            )
        if not (math.isfinite(self.cap) and self.cap >= 1.0):
            raise InvalidInput(f"cap must be >= 1, got {self.cap}")

    def room(self, postings: int, leaves: int) -> int:
        """How many of so many postings each leaf has room for."""
        mean = postings / leaves
        return max(math.floor(self.cap * mean), math.ceil(mean), LEAST_ROOM)


def best_leaves(router: Router, vectors: Vectors, top: int, beam: int | None = None) -> tuple[Leaves, Float32]:
    """(leaves int32 [n, top], log-probabilities float32 [n, top]) of float32|float16 [n, >= dims], best first.

    `top` at most the number of leaves. `beam` None: the router's; a beam too narrow to reach `top` leaves is widened.
    """
    top = min(top, router.leaves)
    leaves = np.empty((len(vectors), top), np.int32)
    scores = np.empty((len(vectors), top), np.float32)
    for rows in _blocks(len(vectors), max(router.branches[0], (beam or router.beam) * max(router.branches), top)):
        x = np.array(vectors[rows, : router.dims], np.float32, order="C")
        leaves[rows], scores[rows] = _beam_search(router, x, top, beam or router.beam)
    return leaves, scores


def _blocks(count: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_FLOATS // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _beam_search(router: Router, x: Float32, top: int, beam: int) -> tuple[Leaves, Float32]:
    """The best `top` leaves of each row."""
    z = x if router.features is None else router.features.out(x)
    scores = _log_softmax(router.heads[0].out(z))
    nodes: Leaves = np.broadcast_to(np.arange(router.branches[0], dtype=np.int32), scores.shape)
    for level in range(1, len(router.branches)):
        width = max(beam, router.width(level - 1, top))
        nodes, scores = _best(nodes, scores, min(width, scores.shape[1]))
        nodes, scores = _children(router.heads[level], router.branches[level], z, nodes, scores)
    return _best(nodes, scores, top)


def _children(head: Layer, siblings: int, z: Float32, nodes: Leaves, scores: Float32) -> tuple[Leaves, Float32]:
    """Nodes and scores [n, width * siblings] below the nodes [n, width]: one product for each parent that is kept."""
    found: Float32 = np.empty((*nodes.shape, siblings), np.float32)
    for parent in np.unique(nodes):
        row, place = np.nonzero(nodes == parent)
        family = slice(parent * siblings, (parent + 1) * siblings)
        below = _log_softmax(Layer(head.weights[family], head.bias[family]).out(z[row]))
        found[row, place] = below + scores[row, place, None]
    numbers = (nodes[:, :, None] * siblings + np.arange(siblings)).astype(np.int32)
    return numbers.reshape(len(nodes), -1), found.reshape(len(nodes), -1)


def _best(nodes: Leaves, scores: Float32, top: int) -> tuple[Leaves, Float32]:
    """The best `top` of each row, best first, ties by number."""
    if top < scores.shape[1]:
        chosen = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        nodes, scores = np.take_along_axis(nodes, chosen, 1), np.take_along_axis(scores, chosen, 1)
    order: npt.NDArray[np.intp] = np.lexsort((nodes, -scores), axis=1)
    best: Leaves = np.take_along_axis(nodes, order, 1)
    return best, np.take_along_axis(scores, order, 1)


def _log_softmax(logits: Float32) -> Float32:
    logits = logits - logits.max(axis=1, keepdims=True)
    result: Float32 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return result


def file_rows(
    router: Router, vectors: Vectors, filing: Filing, progress: Callable[[int], None] | None = None
) -> Leaves:
    """The leaves of each row of float32|float16 [n, >= dims], best first: int32 [n, leaves_per_row], -1 where none.

    Greedy by margin: a leaf that more rows want than it has room for takes those that would lose most by going to
    their next one. Deterministic. `progress` is called once, with the number of rows that are filed.
    """
    count, width = len(vectors), min(filing.leaves_per_row, router.leaves)
    filed = np.full((count, filing.leaves_per_row), -1, np.int32)
    room = np.full(router.leaves, filing.room(count * width, router.leaves), np.int64)
    top = min(router.leaves, _TOP * width)
    choices = best_leaves(router, vectors, top)
    for place in range(width):
        left = _place(np.arange(count), *choices, filed, place, room)
        more = top
        while len(left) and more < router.leaves:
            more = min(router.leaves, more * _MORE)
            left = _place(left, *best_leaves(router, vectors[left], more), filed, place, room)
    if progress is not None:
        progress(count)
    return filed


def _place(
    rows: npt.NDArray[np.int64],
    leaves: Leaves,
    scores: Float32,
    filed: Leaves,
    place: int,
    room: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Give each of `rows` [m] one of its leaves [m, top] with room; the rows left over. Changes filed and room."""
    at, waiting = np.zeros(len(rows), np.int64), np.arange(len(rows))
    top = leaves.shape[1]
    while len(waiting):
        taken = (leaves[waiting, at[waiting]][:, None] == filed[rows[waiting], :place]).any(axis=1)
        stuck = taken | (room[leaves[waiting, at[waiting]]] == 0)
        at[waiting[stuck]] += 1
        asking = waiting[~stuck]
        if len(asking):
            admitted = _admit(leaves[asking, at[asking]], _margins(scores[asking], at[asking]), room)
            won = asking[admitted]
            filed[rows[won], place] = leaves[won, at[won]]
            at[asking[~admitted]] += 1
            at[won] = top
        waiting = waiting[at[waiting] < top]
    left: npt.NDArray[np.int64] = rows[filed[rows, place] < 0]
    return left


def _margins(scores: Float32, at: npt.NDArray[np.int64]) -> Float32:
    """How far the choice at `at` lies above the next one; infinite for the last."""
    held = np.arange(len(at))
    following = np.minimum(at + 1, scores.shape[1] - 1)
    margins: Float32 = scores[held, at] - scores[held, following]
    margins[following == at] = np.inf
    return margins


def _admit(wanted: Leaves, margins: Float32, room: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the rows get into the leaf that they want, the greatest margins first; takes them off the room."""
    order = np.lexsort((-margins, wanted))
    sorted_leaves = wanted[order]
    starts = np.searchsorted(sorted_leaves, sorted_leaves)
    inside = np.arange(len(order)) - starts < room[sorted_leaves]
    admitted = np.zeros(len(order), np.bool_)
    admitted[order[inside]] = True
    room -= np.bincount(sorted_leaves[inside], minlength=len(room))
    return admitted
