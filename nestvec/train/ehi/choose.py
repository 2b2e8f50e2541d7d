"""SOAR or a learned tree: both measured on the same held-out pairs, at the same cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.collection import Collection
from nestvec.engine.progress import Progress, silent
from nestvec.errors import InvalidInput
from nestvec.index.lists.loss import nearest_and_spill
from nestvec.index.quantize import nested_prefix
from nestvec.index.soar.train import SoarModel
from nestvec.train.ehi.command import TreeReport, examples_of, learn
from nestvec.train.ehi.config import TreeSettings
from nestvec.train.ehi.examples import Examples
from nestvec.train.ehi.measure import Curve, curve
from nestvec.train.ehi.pairs import Pairs
from nestvec.train.ehi.stored import read_stored

Measure = Literal["ndcg", "recall"]
MEASURES: tuple[Measure, ...] = ("ndcg", "recall")
DEFAULT_SHARE = 0.05


@dataclass(frozen=True)
class Choice:
    """Which route was kept. `soar` and `ehi`: the measure on queries held out, where the documents scored and what
    choosing the lists costs, in documents, are together `share` of all documents. `why`: in words, where no tree could
    be kept; `report`: of the tree's training."""

    route: Literal["soar", "ehi"]
    measure: Measure
    share: float
    soar: float
    ehi: float
    why: str | None
    report: TreeReport


def choose(
    collection: Collection,
    pairs: Pairs,
    settings: TreeSettings,
    *,
    measure: Measure = "ndcg",
    share: float = DEFAULT_SHARE,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Choice:
    """Train a tree beside the collection's SOAR index, and put it in its place if it measures better.

    `measure` "ndcg": nDCG@10 of the pairs, which counts what an adapter gains; "recall": the share of the exact 10 best
    that is found. Both are searched in float32: codes lose the same on both sides. Raises as `learn` does, and
    InvalidInput for a collection without a SOAR index.
    """
    if measure not in MEASURES:
        raise InvalidInput(f"measure must be ndcg or recall, got {measure!r}")
    if not 0 < share <= 1:
        raise InvalidInput(f"share must be over 0 and at most 1, got {share}")
    stored = read_stored(collection, pairs, settings.rows, settings.seed)
    examples = examples_of(collection, stored, settings)
    with collection.part.keeper.current() as (_, snapshot):
        model = snapshot.model
    if not isinstance(model, SoarModel):
        raise InvalidInput(f"collection {collection.name!r} has no SOAR index to compare a tree with: build it first")
    tree, report = learn(collection, pairs, settings, folder=folder, progress=progress)
    rows = len(examples.documents)
    spilled = _soar_curve(model, examples)
    router = model.config.partitions * model.config.partition_dims / collection.config.dims / rows
    soar = _at(spilled, share, router, measure)
    ehi = _at(report.curve, share, report.router_documents / rows, measure)
    why = report.balance.problem(max(2.05, settings.cap * 1.03))
    kept: Literal["soar", "ehi"] = "ehi" if ehi > soar and why is None else "soar"
    if kept == "ehi":
        collection.install_tree(tree, progress=progress)
    return Choice(kept, measure, share, round(soar, 4), round(ehi, 4), why, report)


def _at(found: Curve, share: float, router: float, measure: Measure) -> float:
    """The measure where documents and the router, in documents, are together this share."""
    return found.at(max(0.0, share - router))[MEASURES.index(measure)]


def _soar_curve(model: SoarModel, examples: Examples) -> Curve:
    """Of the collection's own SOAR lists."""
    config = model.config
    prefix = nested_prefix(examples.documents, config.partition_dims)
    first, second, gain = nearest_and_spill(prefix, model.centroids, config.soar_lambda if config.spill_share else None)
    filed: NDArray[np.int32] = np.stack((first, np.where(gain >= np.float32(model.spill_floor), second, -1)), axis=1)
    asked = examples.queries[examples.held]
    scores = asked[:, : config.partition_dims] @ model.centroids.T
    return max(
        (curve(examples.documents, asked, examples.relevant, filed, scores, by_margin=cut) for cut in (False, True)),
        key=lambda found: found.at(DEFAULT_SHARE)[0],
    )
