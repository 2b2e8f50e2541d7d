"""Publish a learned tree: the generation that it makes takes the place of the current one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.compaction import Renewal, rewrite
from nestvec.engine.coordinates import PLAIN, Turn
from nestvec.engine.maintenance import Part, maintenance
from nestvec.engine.progress import Progress, silent
from nestvec.engine.storage import catalog
from nestvec.engine.training import train_tree
from nestvec.errors import InvalidInput
from nestvec.index.ehi.tree import Tree
from nestvec.index.lists.search import ListIndex

if TYPE_CHECKING:
    from nestvec.engine.routes import Model
    from nestvec.engine.schema import CollectionConfig


@dataclass(frozen=True)
class InstallReport:
    """What installing a tree did. `postings`: leaves times rows in them; `max_over_mean` and `imbalance` (leaves times
    the sum of squared sizes over the square of their sum, 1 where all are equal) say how even the leaves are."""

    rows: int
    generation: int
    leaves: int
    postings: int
    max_over_mean: float
    imbalance: float
    seconds: float


def install_tree(part: Part, tree: Tree, progress: Progress = silent) -> InstallReport:
    """Adapt, file and code all sealed live rows by a tree, and publish that by one transaction, as a compaction does.

    Growing rows stay, and are adapted as they are read. Raises InvalidInput for a tree that does not fit: other dims,
    another rotation, a second adapter; and where nothing is sealed.
    """
    started = time.monotonic()
    tree.check(part.config.dims)
    with maintenance(part, "install a tree"):
        with part.keeper.current() as (connection, snapshot):
            crcs = dict(catalog.rows_of(connection, "SELECT segment, manifest_crc FROM segment"))
        if not any(view.live_rows for view in snapshot.segments):
            raise InvalidInput("there are no sealed rows to file in a tree: build the collection, or seal it, first")
        turn, change = turns(snapshot.turn, tree, part.config)

        def train(vectors: NDArray[Any]) -> Model:
            return train_tree(vectors, part.config, tree, rescore=snapshot.keeps_int8)

        rewrite(part, snapshot, crcs, Renewal(train, turn, change), progress)
    return _report(part, started)


def turns(held: Turn, tree: Tree, config: CollectionConfig) -> tuple[Turn, Turn]:
    """(what vectors of a collection go through under the tree, what stored ones still lack)."""
    unit = config.metric == "cosine"
    if held.adapter is not None and tree.adapter is not None:
        raise InvalidInput(
            "the stored vectors went through an adapter already, and those before it are not kept: train a tree "
            "without an adapter over them, or build a new collection"
        )
    if held.rotation is not None or held.adapter is not None:
        if not _same(held.rotation, tree.rotation):
            raise InvalidInput("the tree was trained in other coordinates: train it over this collection's vectors")
        return Turn(held.rotation, held.adapter or tree.adapter, unit), Turn(None, tree.adapter, unit)
    turn = Turn(tree.rotation, tree.adapter, unit)
    return (PLAIN, PLAIN) if turn.plain else (turn, turn)


def _same(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _report(part: Part, started: float) -> InstallReport:
    with part.keeper.current() as (_, snapshot):
        held = [view.first.postings.counts for view in snapshot.segments if isinstance(view.first, ListIndex)]
        sizes = np.array(held, np.float64).sum(axis=0)
        total = float(sizes.sum())
        return InstallReport(
            sum(view.live_rows for view in snapshot.segments),
            snapshot.generation.number if snapshot.generation else 0,
            len(sizes),
            int(total),
            float(sizes.max() * len(sizes) / total),
            float(len(sizes) * np.square(sizes).sum() / total**2),
            round(time.monotonic() - started, 3),
        )
