"""Train a tree from examples: the adapter, the router, or both at once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestvec.engine.progress import Progress, silent
from nestvec.index.ehi.assign import Filing, best_leaves, file_rows
from nestvec.train.ehi import losses
from nestvec.train.ehi.balance import Balance
from nestvec.train.ehi.checkpoint import State, load
from nestvec.train.ehi.config import TreeSettings
from nestvec.train.ehi.examples import F32, Examples, Rows
from nestvec.train.ehi.loop import Phase, run_phase
from nestvec.train.ehi.measure import Curve, Leaves, curve
from nestvec.train.ehi.model import (
    Arrays,
    adapt_all,
    adapted,
    leaf_log_probs,
    level_logits,
    new_head,
    new_residual,
    new_router,
    to_arrays,
    to_router,
    torch_threads,
)
from nestvec.train.ehi.start import divided, starting_heads

if TYPE_CHECKING:
    from torch import Tensor

_JUDGED_SHARES = (0.005, 0.01, 0.02, 0.05)  # where few documents are scored, leaves matter most
_LEAST_VISITED = 2  # leaves, for a share to be judged
_LEAST_DOCUMENTS = 8  # in a leaf, for it to be learned from pairs: with four the clusters were better in every shape
_DECAY = 0.01  # of the adapter's weights
_GUIDE_TEMPERATURE = 0.2
_MINED = "negatives"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained tree: `arrays` by name (see model.py), how well it does on the held-out pairs, how even its leaves are,
    what was measured on the way, and how long it took in seconds."""

    arrays: Arrays
    curve: Curve
    balance: Balance
    history: list[dict[str, Any]]
    seconds: float


def fit(examples: Examples, settings: TreeSettings, folder: Path | None = None, progress: Progress = silent) -> Fitted:
    """Train. With a folder each epoch is kept there, and a later call with the same arguments goes on.

    `progress("adapter", "guide", "router" or "joint", step, steps)`. The same examples, settings and threads give the
    same tree. Raises InvalidInput where the folder holds another training.
    """
    started = time.monotonic()
    state = State("") if folder is None else load(folder, _key(examples, settings))
    with torch_threads(settings.threads):
        trainer = _Trainer(examples, settings, state, folder, progress)
        arrays = trainer.train()
        found, balance = trainer.judged(arrays)
    return Fitted(arrays, found, balance, state.history, time.monotonic() - started)


def _key(examples: Examples, settings: TreeSettings) -> str:
    return f"{examples.digest} {json.dumps(asdict(settings), sort_keys=True)}"


def exact_ndcg(documents: F32, queries: F32, relevant: list[dict[int, float]]) -> float:
    """nDCG@10 of scoring every document."""
    one_leaf, visits = np.zeros(len(documents), np.int32), np.zeros((len(queries), 1), np.float32)
    return curve(documents, queries, relevant, one_leaf, visits).exact


class _Trainer:
    def __init__(
        self, examples: Examples, settings: TreeSettings, state: State, folder: Path | None, progress: Progress
    ) -> None:
        self.examples, self.settings, self.state = examples, settings, state
        self.folder, self.progress = folder, progress
        self.filing = Filing(leaves_per_row=settings.leaves_per_row, cap=settings.cap)
        self.documents, self.queries = examples.documents, examples.queries  # as the router sees them

    def train(self) -> Arrays:
        """Arrays of the best tree.

        Levels are learned one after the other: a tree of the first ones, then the last from clusters of what lies below
        each node. Those above it learn what lies below them now, and at last all learn from the pairs again, unless
        leaves hold too few documents to learn more than who asked for them.
        """
        examples, settings = self.examples, self.settings
        arrays: Arrays = {}
        if settings.mode != "frozen":
            arrays = new_residual("adapter", examples.documents.shape[1], settings.hidden, settings.seed)
        if settings.mode == "adapter":
            arrays = self._phase("adapter", arrays, tuple(arrays), settings.adapter_epochs)
            tensors = self._tensors(arrays)
            self.documents = adapt_all(tensors, examples.documents, examples.unit)
            self.queries = adapt_all(tensors, examples.queries, examples.unit)
        if settings.mode == "joint":
            return self._better("joint", arrays)
        self.settings = replace(settings, branches=settings.branches[:1])
        arrays = self._better("router", arrays)
        for level in range(1, len(settings.branches)):
            below = self._below(arrays, settings.branches[level])
            self.settings = replace(settings, branches=settings.branches[: level + 1])
            above = tuple(name for name in arrays if name.startswith("head"))
            arrays = self._phase(f"parents, level {level + 1}", arrays | new_head(level, below), above, settings.epochs)
            if len(self.documents) >= _LEAST_DOCUMENTS * self.settings.leaves:
                arrays = self._tree(f"router, level {level + 1}", arrays)
        return arrays

    def _better(self, name: str, arrays: Arrays) -> Arrays:
        """The better of the trees that the guide and k-means start: one that looks better at first may end worse."""
        guided = self._tree(name, arrays | self._start())
        if not (self.settings.warm and self.settings.guide):
            return guided
        plain = self._tree(f"{name}, unguided", arrays | new_router(self.documents, self.documents, self.settings))
        return max((name, guided), (f"{name}, unguided", plain), key=lambda each: self.state.best[each[0]])[1]

    def _below(self, arrays: Arrays, width: int) -> F32:
        """Heads of another level: clusters of the documents that are filed in each leaf of the tree so far."""
        settings = self.settings
        if not settings.warm:
            return starting_heads(
                self.documents, self.documents, (settings.leaves * width,), settings.seed, warm=False
            )[0]
        filed = file_rows(to_router(arrays, settings), self.documents, self.filing)[:, 0]
        return divided(self.documents, self.documents, filed, settings.leaves, width, settings.seed)[0]

    def _tree(self, name: str, arrays: Arrays) -> Arrays:
        learned = tuple(each for each in arrays if name.startswith("joint") or not each.startswith("adapter"))
        return self._phase(name, arrays, learned, self.settings.epochs)

    def _start(self) -> Arrays:
        """Weights of a router whose leaves are clusters of the documents as an adapter of its own sees them.

        The guide brings together what is asked for together, more than an adapter may that must still tell the nearest
        documents apart. A linear router follows most of it: its heads are the means of the documents themselves.
        """
        settings, dims = self.settings, self.documents.shape[1]
        if not (settings.warm and settings.guide):
            return new_router(self.documents, self.documents, settings)
        epochs = math.ceil(settings.guide * settings.batch / max(settings.batch, len(self.examples.pairs)))
        untaught = new_residual("adapter", dims, settings.hidden, settings.seed + 1)
        guide = self._phase("guide", untaught, tuple(untaught), epochs)
        return new_router(self._guided(self._tensors(guide)), self.documents, settings)

    def _guided(self, tensors: dict[str, Tensor]) -> F32:
        return adapt_all(tensors, self.documents, self.examples.unit)

    def judged(self, arrays: Arrays, mine: bool = False) -> tuple[Curve, Balance]:
        """The curve on the held-out pairs, and how even the leaves of all documents are; with new hard negatives."""
        documents, queries = self.documents, self.queries
        if self.settings.mode == "joint":
            tensors = self._tensors(arrays)
            documents = adapt_all(tensors, documents, self.examples.unit)
            queries = adapt_all(tensors, queries, self.examples.unit)
        filed = file_rows(to_router(arrays, self.settings), documents, self.filing)
        asked = queries[self.examples.held]
        found = curve(documents, asked, self.examples.relevant, filed, self._leaf_scores(arrays, asked), by_margin=True)
        if mine:
            self.state.arrays[_MINED] = self._mine(arrays, documents, queries, filed)
        return found, Balance.of(filed, self.settings.leaves)

    def _phase(self, name: str, arrays: Arrays, learned: Sequence[str], epochs: int) -> Arrays:
        loss, measure = {
            "adapter": (self._adapter_loss, self._measure_adapter),
            "guide": (self._guide_loss, self._measure_guide),
            "router": (self._router_loss, self._measure_router),
            "parents": (self._parents_loss, self._measure_router),
            "joint": (self._joint_loss, self._measure_router),
        }[name.split(",")[0]]
        decay = 0.0 if name.startswith(("router", "parents")) else _DECAY
        every = epochs if name.startswith(("guide", "parents")) else self.settings.refile
        phase = Phase(name, tuple(learned), loss, measure, epochs, every, decay)
        return run_phase(phase, arrays, self.examples.pairs, self.settings, self.state, self.folder, self.progress)

    # Losses

    def _adapter_loss(self, tensors: dict[str, Tensor], pairs: Rows, random: np.random.Generator) -> Tensor:
        rows, same = pairs[:, 1], self._same(pairs, pairs[:, 1])
        return self._semantic(*self._adapted(tensors, pairs, rows), same)

    def _guide_loss(self, tensors: dict[str, Tensor], pairs: Rows, random: np.random.Generator) -> Tensor:
        from torch.nn.functional import normalize

        queries, documents = (
            normalize(adapted(tensors, self._rows(held, rows), self.examples.unit), dim=-1)
            for held, rows in ((self.queries, pairs[:, 0]), (self.documents, pairs[:, 1]))
        )
        return losses.contrastive(queries @ documents.T / _GUIDE_TEMPERATURE, self._same(pairs, pairs[:, 1]))

    def _router_loss(self, tensors: dict[str, Tensor], pairs: Rows, random: np.random.Generator) -> Tensor:
        rows = self._columns(pairs, random)
        queries, documents = self._rows(self.queries, pairs[:, 0]), self._rows(self.documents, rows)
        return self._tree_loss(tensors, queries, documents, self._same(pairs, rows), random)

    def _parents_loss(self, tensors: dict[str, Tensor], pairs: Rows, random: np.random.Generator) -> Tensor:
        """Of the levels above the leaves: to give each node what the leaves below it get where all leaves compete."""
        import torch

        branches = self.settings.branches
        documents = random.integers(0, len(self.documents), len(pairs))
        rows = torch.cat((self._rows(self.queries, pairs[:, 0]), self._rows(self.documents, documents)))
        nodes = leaf_log_probs(tensors, rows, branches[:-1])
        return losses.below(nodes, level_logits(tensors, rows, len(branches) - 1).detach())

    def _joint_loss(self, tensors: dict[str, Tensor], pairs: Rows, random: np.random.Generator) -> Tensor:
        rows = self._columns(pairs, random)
        same = self._same(pairs, rows)
        queries, documents = self._adapted(tensors, pairs, rows)
        tree = self._tree_loss(tensors, queries, documents, same, random)
        return tree + self.settings.weights.semantic * self._semantic(queries, documents, same)

    def _tree_loss(
        self, tensors: dict[str, Tensor], queries: Tensor, documents: Tensor, same: Tensor, random: np.random.Generator
    ) -> Tensor:
        weights, branches = self.settings.weights, self.settings.branches
        of_queries = leaf_log_probs(tensors, queries, branches)
        of_documents = leaf_log_probs(tensors, documents, branches)
        total = of_queries.sum() * 0.0
        if weights.path:
            total = total + weights.path * losses.contrastive(losses.path_scores(of_queries, of_documents), same)
        if weights.balance:
            # Over documents as they are, not as they are asked for: those fill the leaves.
            sample = self._rows(self.documents, random.integers(0, len(self.documents), self.settings.batch))
            if self.settings.mode == "joint":
                sample = adapted(tensors, sample, self.examples.unit)
            total = total + weights.balance * losses.balance(leaf_log_probs(tensors, sample, branches))
        if weights.hinge:
            total = total + weights.hinge * losses.hinge(of_queries, of_documents, same)
        if weights.intra:
            total = total + weights.intra * losses.intra_leaf(documents, of_documents)
        return total

    def _semantic(self, queries: Tensor, documents: Tensor, same: Tensor) -> Tensor:
        """InfoNCE of each allowed prefix alike: Matryoshka Representation Learning (arXiv 2205.13147), equation 1."""
        from torch.nn.functional import normalize

        total = queries.sum() * 0.0
        for dims in self.examples.prefixes:
            asked, found = normalize(queries[:, :dims], dim=-1), normalize(documents[:, :dims], dim=-1)
            total = total + losses.contrastive(asked @ found.T / self.settings.temperature, same)
        return total / len(self.examples.prefixes)

    def _adapted(self, tensors: dict[str, Tensor], pairs: Rows, rows: Rows) -> tuple[Tensor, Tensor]:
        examples = self.examples
        asked, found = self._rows(examples.queries, pairs[:, 0]), self._rows(examples.documents, rows)
        return adapted(tensors, asked, examples.unit), adapted(tensors, found, examples.unit)

    def _same(self, pairs: Rows, rows: Rows) -> Tensor:
        """What is no negative, bool [b, columns]: the pair's document elsewhere, another document of its query."""
        import torch

        same = pairs[:, None, 1] == rows[None]
        same[:, : len(pairs)] |= pairs[:, None, 0] == pairs[None, :, 0]
        return torch.from_numpy(same).to(self._device)

    def _columns(self, pairs: Rows, random: np.random.Generator) -> Rows:
        """Rows of the pairs and, once they are mined, of one hard negative of each query."""
        mined = self.state.arrays.get(_MINED)
        if mined is None:
            return pairs[:, 1]
        column = random.integers(0, mined.shape[1], len(pairs))
        return np.concatenate((pairs[:, 1], mined[pairs[:, 0], column]))

    # Measures

    def _measure_adapter(self, tensors: dict[str, Tensor]) -> tuple[float, dict[str, Any]]:
        examples = self.examples
        documents = adapt_all(tensors, examples.documents, examples.unit)
        asked = adapt_all(tensors, examples.queries[examples.held], examples.unit)
        found = exact_ndcg(documents, asked, examples.relevant)
        return found, {"exact": round(found, 4)}

    def _measure_guide(self, tensors: dict[str, Tensor]) -> tuple[float, dict[str, Any]]:
        """How good a tree it starts."""
        heads = new_router(self._guided(tensors), self.documents, self.settings)
        return self._measure_router(self._tensors(heads))

    def _measure_router(self, tensors: dict[str, Tensor]) -> tuple[float, dict[str, Any]]:
        found, balance = self.judged(to_arrays(tensors), mine=self.settings.negatives > 0)
        shares = [share for share in _JUDGED_SHARES if share * self.settings.leaves >= _LEAST_VISITED]
        at = [found.at(share)[0] for share in shares or _JUDGED_SHARES[-1:]]
        facts = {"exact": found.exact, "max_over_mean": balance.max_over_mean, "imbalance": balance.imbalance}
        return sum(at) / len(at), {name: round(float(value), 4) for name, value in facts.items()}

    def _leaf_scores(self, arrays: Arrays, queries: F32) -> F32:
        """Log-probabilities f32 [q, leaves] of the leaves that the beam of each query reaches; -inf of the others."""
        router = to_router(arrays, self.settings)
        scores = np.full((len(queries), router.leaves), -np.inf, np.float32)
        reached = router.leaves if len(router.branches) == 1 else router.beam * router.branches[-1]
        np.put_along_axis(scores, *best_leaves(router, queries, reached), axis=1)
        return scores

    def _mine(self, arrays: Arrays, documents: F32, queries: F32, filed: Leaves) -> Rows:
        """int64 [queries, negatives]: the nearest documents in the leaves that a query's beam reaches, not its own."""
        settings, found = self.settings, np.zeros((len(queries), self.settings.negatives), np.int64)
        own: dict[int, list[int]] = {}
        for query, row in self.examples.pairs.tolist():
            own.setdefault(query, []).append(row)
        learned = np.array(sorted(own), np.int64)
        for start in range(0, len(learned), 256):
            block = learned[start : start + 256]
            reached = best_leaves(to_router(arrays, settings), queries[block], settings.kept)[0]
            visited = np.zeros((len(block), settings.leaves + 1), np.bool_)
            np.put_along_axis(visited, reached, True, axis=1)
            visited[:, -1] = False
            scores = np.where(visited[:, filed].any(axis=2), queries[block] @ documents.T, -np.inf)
            for place, query in enumerate(block.tolist()):
                scores[place, own[query]] = -np.inf
            found[block] = np.argpartition(-scores, settings.negatives, axis=1)[:, : settings.negatives]
        return found

    # Torch

    @property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _tensors(self, arrays: Arrays) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}

    def _rows(self, matrix: F32, rows: Rows) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(matrix[rows])).to(self._device)
