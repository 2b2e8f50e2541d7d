"""Train a tree for a collection and publish it: what `nestvec train ehi` does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nestvec.engine.collection import Collection
from nestvec.engine.progress import Progress, silent
from nestvec.errors import Conflict, InvalidInput, MissingDependency
from nestvec.index.ehi.assign import Filing
from nestvec.index.ehi.tree import Tree
from nestvec.train.ehi.balance import Balance
from nestvec.train.ehi.config import TreeSettings
from nestvec.train.ehi.examples import Examples, split
from nestvec.train.ehi.fit import Fitted, exact_ndcg, fit
from nestvec.train.ehi.measure import SHARES, Curve
from nestvec.train.ehi.model import to_residual, to_router
from nestvec.train.ehi.pairs import Pairs
from nestvec.train.ehi.stored import Stored, read_stored


@dataclass(frozen=True)
class TreeReport:
    """What a training did. pairs: those used to learn; held: queries measured and never learned from; missing: pairs
    whose document the collection does not hold. exact_before, exact: nDCG@10 of scoring everything, as vectors were
    and adapted. ndcg, recall: nDCG@10 and the share of the exact 10 best, by share of documents scored (the router not
    counted: that is `router_documents` more, in multiply-adds of scoring one document). generation: None where nothing
    was published."""

    pairs: int
    held: int
    missing: int
    mode: str
    branches: tuple[int, ...]
    exact_before: float
    exact: float
    ndcg: dict[str, float]
    recall: dict[str, float]
    router_documents: float
    balance: Balance
    seconds: float
    generation: int | None
    history: list[dict[str, Any]]
    curve: Curve = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the curve."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "curve"}


def train_tree(
    collection: Collection,
    pairs: Pairs,
    settings: TreeSettings,
    *,
    folder: Path | None = None,
    publish: bool = True,
    max_imbalance: float | None = None,
    progress: Progress = silent,
) -> TreeReport:
    """Train a tree from pairs and, unless told not to, make it the collection's index.

    Growing records are sealed first. A tree that collapsed, or whose leaves are too uneven, is not published: Conflict
    says what was found. Raises MissingDependency without torch, InvalidInput where pairs do not fit the collection.
    """
    tree, report = learn(collection, pairs, settings, folder=folder, progress=progress)
    if not publish:
        return report
    bounds = {} if max_imbalance is None else {"max_imbalance": max_imbalance}
    problem = report.balance.problem(max(2.05, settings.cap * 1.03), **bounds)
    if problem is not None:
        raise Conflict(
            f"the tree was not published: {problem}. Give the loss balance more weight, or train longer or with fewer "
            "leaves"
        )
    collection.seal(progress=progress)
    installed = collection.install_tree(tree, progress=progress)
    return replace(report, generation=installed.generation)


def learn(
    collection: Collection,
    pairs: Pairs,
    settings: TreeSettings,
    *,
    folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[Tree, TreeReport]:
    """The tree of the collection as it is now, not published. Raises as `train_tree` does."""
    if find_spec("torch") is None:
        raise MissingDependency("training a tree", "train")
    stored = read_stored(collection, pairs, settings.rows, settings.seed)
    if stored.adapted and settings.mode != "frozen":
        raise InvalidInput(
            "the stored vectors went through an adapter already: train with the mode frozen, or build the collection "
            "afresh"
        )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    examples = examples_of(collection, stored, settings)
    fitted = fit(examples, settings, folder, progress)
    filing = Filing(leaves_per_row=settings.leaves_per_row, cap=settings.cap)
    tree = Tree(to_router(fitted.arrays, settings), to_residual(fitted.arrays, "adapter"), filing, stored.rotation)
    return tree, _report(stored, examples, settings, fitted, tree)


def examples_of(collection: Collection, stored: Stored, settings: TreeSettings) -> Examples:
    """The examples of stored records; prefixes are the collection's granularities."""
    config = collection.config
    return split(
        stored.vectors,
        stored.queries,
        stored.pairs,
        stored.grades,
        unit=config.metric == "cosine",
        prefixes=tuple(sorted({*config.granularities, config.dims})),
        held_out=settings.held_out,
        seed=settings.seed,
    )


def _report(stored: Stored, examples: Examples, settings: TreeSettings, fitted: Fitted, tree: Tree) -> TreeReport:
    at = {f"{share:g}": fitted.curve.at(share) for share in SHARES}
    cost = tree.router.cost(max(1, round(0.01 * settings.leaves)))
    return TreeReport(
        len(examples.pairs),
        len(examples.held),
        stored.missing,
        settings.mode,
        settings.branches,
        round(exact_ndcg(examples.documents, examples.queries[examples.held], examples.relevant), 4),
        round(fitted.curve.exact, 4),
        {share: round(ndcg, 4) for share, (ndcg, _) in at.items()},
        {share: round(recall, 4) for share, (_, recall) in at.items()},
        round(cost / examples.documents.shape[1], 1),
        fitted.balance,
        round(fitted.seconds, 1),
        None,
        fitted.history,
        fitted.curve,
    )


def _plain(value: object) -> object:
    return asdict(value) if isinstance(value, Balance) else value
