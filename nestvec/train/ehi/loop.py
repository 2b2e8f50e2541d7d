"""One phase of training: epochs over pairs, measured now and then, that a killed run can go on with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.progress import Progress
from nestvec.errors import InvalidInput
from nestvec.train.ehi.checkpoint import State, save
from nestvec.train.ehi.config import TreeSettings
from nestvec.train.ehi.model import Arrays, to_arrays

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[dict[str, "Tensor"], NDArray[np.int64], np.random.Generator], "Tensor"]
"""loss(tensors, pairs int64 [b, 2], random)."""
Measure = Callable[[dict[str, "Tensor"]], tuple[float, dict[str, Any]]]
"""measure(tensors): (the higher the better, facts for people)."""

_WARM_UP = 0.05  # of the steps


@dataclass(frozen=True, eq=False)
class Phase:
    """What a phase trains (`names`), on what and how long; `decay` of the weights.

    `every`: epochs between two measurements.
    """

    name: str
    names: tuple[str, ...]
    loss: Loss
    measure: Measure
    epochs: int
    every: int
    decay: float = 0.0


def run_phase(
    phase: Phase,
    arrays: Arrays,
    pairs: NDArray[np.int64],
    settings: TreeSettings,
    state: State,
    folder: Path | None,
    progress: Progress,
) -> Arrays:
    """The best arrays by `phase.measure`, starting with those given; what was done before is in `state`, which goes on.

    The untouched start is measured too: a phase never gives anything worse on the held-out pairs than it was given.
    Each epoch's random numbers are its own, so an interrupted run ends where an uninterrupted one does.
    """
    import torch

    best = f"best/{phase.name}/"
    if state.done.get(phase.name, 0) >= phase.epochs:
        return arrays | state.take(best)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held = arrays | state.take(f"now/{phase.name}/")
    tensors = {name: torch.tensor(array, device=device) for name, array in held.items()}
    learned = [tensors[name].requires_grad_() for name in phase.names]
    optimizer = torch.optim.AdamW(learned, lr=settings.rate, weight_decay=phase.decay)
    run = _Run(phase, tensors, optimizer, pairs, settings, state, folder)
    run.restore()
    if phase.name not in state.done:
        run.judge(0)
    for epoch in range(state.done.get(phase.name, 0), phase.epochs):
        run.epoch(epoch, progress)
        measured = (epoch + 1) % phase.every == 0 or epoch + 1 == phase.epochs
        if measured and not run.judge(epoch + 1):
            run.keep(phase.epochs)
            break
        run.keep(epoch + 1)
    return arrays | state.take(best)


class _Run:
    def __init__(
        self,
        phase: Phase,
        tensors: dict[str, Tensor],
        optimizer: Any,  # noqa: ANN401 - torch.optim.AdamW
        pairs: NDArray[np.int64],
        settings: TreeSettings,
        state: State,
        folder: Path | None,
    ) -> None:
        self.phase, self.tensors, self.optimizer, self.pairs = phase, tensors, optimizer, pairs
        self.settings, self.state, self.folder = settings, state, folder
        self.batches = max(1, len(pairs) // settings.batch)

    def epoch(self, number: int, progress: Progress) -> None:
        """One pass over the pairs, in an order that the seed and the epoch decide."""
        random = np.random.default_rng([self.settings.seed, number])
        shuffled = self.pairs[random.permutation(len(self.pairs))]
        total = self.phase.epochs * self.batches
        for place, batch in enumerate(np.array_split(shuffled, self.batches)):
            step = number * self.batches + place
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * rate_share(step, total)
            loss = self.phase.loss(self.tensors, batch, random)
            if not math.isfinite(loss.item()):
                raise InvalidInput(f"the loss is no longer a number in epoch {number + 1}: train with a lower rate")
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            self.optimizer.step()
            progress(self.phase.name, step + 1, total)

    def judge(self, epoch: int) -> bool:
        """Measure; whether to go on."""
        state, phase = self.state, self.phase
        score, facts = phase.measure(self.tensors)
        state.history.append({"phase": phase.name, "epoch": epoch, "score": round(score, 4)} | facts)
        if score > state.best.get(phase.name, -1.0):
            state.best[phase.name], state.waited = score, 0
            state.put(f"best/{phase.name}/", to_arrays({name: self.tensors[name] for name in phase.names}))
        else:
            state.waited += 1
        return state.waited < self.settings.patience

    def restore(self) -> None:
        """The optimizer as the last epoch left it."""
        import torch

        means, squares = self.state.take(f"mean/{self.phase.name}/"), self.state.take(f"square/{self.phase.name}/")
        done = self.state.done.get(self.phase.name, 0)
        for name in means:
            self.optimizer.state[self.tensors[name]] = {
                "step": torch.tensor(float(done * self.batches)),
                "exp_avg": torch.tensor(means[name], device=self.tensors[name].device),
                "exp_avg_sq": torch.tensor(squares[name], device=self.tensors[name].device),
            }

    def keep(self, epoch: int) -> None:
        """Note that so many epochs are over; on disk where a folder was given."""
        state, name = self.state, self.phase.name
        state.done[name] = epoch
        parts = {each: self.tensors[each] for each in self.phase.names}
        if epoch >= self.phase.epochs:
            state.waited = 0
            for prefix in (f"now/{name}/", f"mean/{name}/", f"square/{name}/"):
                state.drop(prefix)
        elif self.folder is not None:
            moments = {each: self.optimizer.state[tensor] for each, tensor in parts.items()}
            state.put(f"now/{name}/", to_arrays(parts))
            state.put(f"mean/{name}/", to_arrays({each: held["exp_avg"] for each, held in moments.items()}))
            state.put(f"square/{name}/", to_arrays({each: held["exp_avg_sq"] for each, held in moments.items()}))
        if self.folder is not None:
            save(self.folder, state)


def rate_share(step: int, total: int) -> float:
    """The share of the learning rate at a step: up within the first twentieth, then down by a cosine."""
    warm = min(1.0, (step + 1) / max(1.0, _WARM_UP * total))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
