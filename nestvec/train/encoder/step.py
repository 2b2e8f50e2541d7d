"""Step 4: train a tower on triples. Resumable, seeded, stopped early on triples it does not learn from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestvec.engine.encoders import load_encoder
from nestvec.engine.progress import Progress, silent
from nestvec.engine.storage.files import new_directory, new_file
from nestvec.errors import InvalidInput, MissingDependency
from nestvec.train.encoder.anchor import Anchor
from nestvec.train.encoder.batches import Triple, batch_loss, formed, templates
from nestvec.train.encoder.held_out import HeldOut, clear_gain
from nestvec.train.encoder.tables import Passage, rows, summaries
from nestvec.train.files import digest_of, find_table

if TYPE_CHECKING:
    import torch

    from nestvec.train.encoder.towers import Arrays, Tower

NOTHING_GAINED = "nothing gained: the encoder is left as it is, and none is written"
CHECKPOINT, SUMMARY, ENCODER = "train-checkpoint.safetensors", "train.json", "encoder"
_HELD_OUT_MOST = 1000
_CHECKS = 4
"""How often an epoch looks at the held-out triples."""
_SAVE_SECONDS = 60.0
"""A checkpoint is written at a look that is so long after the last: at most that much is done again after a stop."""


@dataclass(frozen=True)
class Training:
    """How to train. `rate` and `batch` None: as the tower proposes. `negatives`: hard ones of each query at most;
    `distil`: weight of the teacher's scores of all texts of a triple (None: 1 where a static tower has 8 or more of
    each, else 0); `guide`: an encoder's name, whose nearer-than-positive texts are no negatives; `hold`: weight of
    leaving the vectors of general text where they were; `keep`: share of the weights one starts from in the average
    that is written; `common`: a word that this share of the texts holds keeps half of what it would have moved, one of
    more texts less (0: no word does); `tasks`: the input format "task: ... | query: ..." and "title: ... | text: ...";
    `patience`: looks at what is held out without a gain before it stops; `refuse`: write nothing where the gain of the
    held-out queries is not clear of chance."""

    tower: str = "static"
    epochs: int = 3
    batch: int | None = None
    rate: float | None = None
    temperature: float = 0.05
    same_tower: bool = True
    negatives: int = 1
    hold: float = 0.0
    keep: float = 0.0
    distil: float | None = None
    guide: str | None = None
    common: float = 0.0
    tasks: bool = False
    held_out: float = 0.05
    patience: int = 4
    refuse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.batch is not None and self.batch < 2) or not 0 < self.temperature <= 1:
            raise InvalidInput(f"expected at least 1 epoch, a batch of 2, a temperature in (0, 1]; got {self}")
        if min(self.negatives, self.distil or 0, self.hold) < 0 or self.patience < 1:
            raise InvalidInput(f"expected negatives, distil and hold of at least 0, patience of 1; got {self}")
        if not 0 < self.held_out < 1 > self.keep >= 0 or not 0 <= self.common < 1:
            raise InvalidInput(f"expected held_out in (0, 1), keep and common in [0, 1); got {self}")


class _NothingGained(Exception):
    """The weights as they would be written find the held-out texts no better."""


@dataclass
class Run:
    """Where a training is: what a checkpoint keeps besides the tower."""

    best: float
    """The likelihood of what is held out; first that of the weights one starts from."""
    step: int = 0
    since_best: int = 0


def read_triples(folder: Path) -> list[Triple]:
    """The table `triples` of a run folder. Raises InvalidInput where it is missing or holds none."""
    found = []
    for row in rows(folder, "triples"):
        negatives = zip(row["negative_ids"], row["negative_titles"], row["negative_texts"], strict=True)
        texts = tuple(Passage(*each).document for each in negatives)
        positive = Passage(row["positive_id"], row["positive_title"], row["positive_text"]).document
        teacher = tuple(row["teacher_scores"]) if len(row["teacher_scores"]) == 1 + len(texts) else ()
        found.append(Triple(row["task"], row["query"], positive, texts, teacher))
    if not found:
        raise InvalidInput(f"{folder}: its triples are empty; run relabel first")
    return found


def train(
    folder: Path, wanted: Training = Training(), *, out: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Train on the triples of the run `folder` and write the encoder into `out` (default: its sub-folder `encoder`).

    A finished training with the same settings and triples is not run again; a stopped one goes on from its last
    checkpoint. Returns the summary. Raises MissingDependency without torch, InvalidInput.
    """
    table = find_table(folder, "triples")
    if table is None:
        raise InvalidInput(f"{folder} has no table 'triples': run `nestvec train encoder relabel` first")
    asked = {"settings": asdict(wanted), "triples": digest_of(table)}
    target, data = out or folder / ENCODER, {"triples": digest_of(table), "steps": summaries(folder)}
    return fit(target, read_triples(folder), wanted, asked, data=data, scratch=folder, progress=progress)


def fit(
    out: Path,
    triples: Sequence[Triple],
    wanted: Training,
    asked: Mapping[str, Any],
    *,
    data: Mapping[str, Any],
    scratch: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train on `triples` and write the encoder into `out`; `asked` tells this training from others in `scratch`, `data`
    stands in the encoder's card.

    Returns the summary, which is also train.json in `scratch`. Raises as `train` does.
    """
    _need_torch()
    from nestvec.train.encoder.towers import encoder_name, mixed, open_tower

    done = _finished(scratch, asked, out)
    if done is not None:
        return done
    learned, held_back = split(triples, wanted)
    held_out = HeldOut([formed(triple, wanted, len(triple.negatives)) for triple in held_back])
    started = time.process_time()
    tower = open_tower(wanted.tower)
    start = tower.state()
    before, found_before = held_out.by_prefix(tower), held_out.gains(tower)
    steps = Steps(learned, wanted, tower.batch if wanted.batch is None else wanted.batch)
    anchor = Anchor(tower, wanted.seed, steps.total * steps.batch) if wanted.hold else None
    run, optimizer, best = _resumed(tower, scratch, asked, wanted, held_out)
    _loop(tower, optimizer, steps, run, best, held_out, anchor, wanted, scratch, asked, progress)
    texts = [triple.positive for triple in learned]
    tower.restore(mixed(start, tower.state(), tower.kept(wanted.keep, wanted.common, texts)))
    card: dict[str, Any] = {"made_by": "nestvec train", "recipe": asdict(wanted)}
    card["data"] = {**data, "learned": len(learned), "held_out": len(held_back)}

    def measured() -> dict[str, Any]:
        if wanted.refuse and not clear_gain(found_before, held_out.gains(tower)):
            raise _NothingGained
        card["evaluation"] = {**held_out.facts(), "before": before, "after": held_out.by_prefix(tower)}
        return card

    new_directory(out, parents=True)
    try:
        encoder, after = tower.write(out, templates(wanted), measured), card["evaluation"]["after"]
        outcome = {}
    except _NothingGained:
        encoder, after, outcome = encoder_name(wanted.tower), before, {"outcome": NOTHING_GAINED}
    full = tower.granularities[-1]
    summary = {
        "tower": wanted.tower,
        "triples": len(learned),
        "held_out": len(held_back),
        "steps": run.step,
        "steps_planned": steps.total,
        "nDCG@10 before": before[full]["nDCG@10"],
        "nDCG@10 after": after[full]["nDCG@10"],
        "cpu_seconds": round(time.process_time() - started, 1),
        "encoder": encoder,
        **outcome,
    }
    with new_file(scratch / SUMMARY) as file:
        file.write(json.dumps({"asked": asked, "out": str(out), "summary": summary}, indent=1).encode() + b"\n")
    (scratch / CHECKPOINT).unlink(missing_ok=True)
    return summary


def split(triples: Sequence[Triple], wanted: Training) -> tuple[list[Triple], list[Triple]]:
    """(to learn from, held out): all triples of a query fall on one side. A text may stand on both, as in a corpus that
    is asked something new."""
    order = np.random.default_rng([wanted.seed, 1]).permutation(len(triples))
    count = min(_HELD_OUT_MOST, max(1, int(len(triples) * wanted.held_out)))
    if len(triples) - count < 2:
        raise InvalidInput(f"{len(triples)} triples are too few to train on and to hold some out; make more queries")
    held = [triples[i] for i in order[:count]]
    taken = {triple.query for triple in held}
    return [triples[i] for i in order[count:] if triples[i].query not in taken], held


class Steps:
    """The batches of a training: the same for the same seed, whichever step one starts at."""

    def __init__(self, triples: Sequence[Triple], wanted: Training, batch: int) -> None:
        self._triples, self._seed = triples, wanted.seed
        self.batch = min(batch, len(triples))
        self.each = max(1, len(triples) // self.batch)
        self.total = self.each * wanted.epochs
        self.check_every = max(1, self.each // _CHECKS)

    def from_step(self, start: int) -> Iterator[list[Triple]]:
        """Batches of step `start` on. No text comes twice in one: it would be its own negative."""
        for step in range(start, self.total):
            order = np.random.default_rng([self._seed, 2, step // self.each]).permutation(len(self._triples))
            first = step % self.each * self.batch
            chosen = [self._triples[i] for i in order[first : first + self.batch]]
            unique = {triple.positive: triple for triple in {each.query: each for each in chosen}.values()}
            yield list(unique.values())


def _loop(
    tower: Tower,
    optimizer: torch.optim.Optimizer,
    steps: Steps,
    run: Run,
    best: Arrays,
    held_out: HeldOut,
    anchor: Anchor | None,
    wanted: Training,
    scratch: Path,
    asked: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Train until the end or until the held-out triples gain nothing more; the tower is left at its best."""
    from nestvec.train.encoder.towers import save_state

    saved = time.monotonic()
    rate = tower.rate if wanted.rate is None else wanted.rate
    guide = load_encoder(wanted.guide) if wanted.guide else None
    for batch in steps.from_step(run.step):
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(run.step, steps.total)
        loss = batch_loss(tower, batch, wanted, guide)
        if anchor is not None:
            loss = loss + wanted.hold * anchor.away(tower, run.step, steps.batch // 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step += 1
        progress("train", run.step, steps.total)
        if run.step % steps.check_every and run.step < steps.total:
            continue
        score = held_out.likelihood(tower, wanted.temperature)
        if score > run.best:
            run.best, run.since_best, best = score, 0, tower.state()
        else:
            run.since_best += 1
        if run.since_best >= wanted.patience:
            break
        if time.monotonic() - saved >= _SAVE_SECONDS:
            facts = {"asked": dict(asked), "run": asdict(run)}
            save_state(scratch / CHECKPOINT, _all_state(tower, optimizer, best), facts)
            saved = time.monotonic()
    tower.restore(best)


def _schedule(step: int, total: int) -> float:
    """Up over the first tenth, then down to nothing."""
    return min(1.0, (step + 1) / max(1.0, 0.1 * total)) * (1 - step / total)


def _resumed(
    tower: Tower, scratch: Path, asked: Mapping[str, Any], wanted: Training, held_out: HeldOut
) -> tuple[Run, torch.optim.Optimizer, Arrays]:
    """(state, optimizer, the tower at its best) of an earlier run that asked the same, or of a new one."""
    import torch

    from nestvec.train.encoder.towers import load_state

    torch.manual_seed(wanted.seed)
    parameters = tower.parameters()
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.99), eps=1e-10)
    path = scratch / CHECKPOINT
    arrays, facts = load_state(path) if path.is_file() else ({}, {})
    if facts.get("asked") != json.loads(json.dumps(dict(asked))):
        return Run(held_out.likelihood(tower, wanted.temperature)), optimizer, tower.state()
    tower.restore(_part(arrays, "tower."))
    for number, parameter in enumerate(parameters):
        moments = {name: arrays[f"adam.{number}.{name}"].to(parameter.device) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": arrays[f"adam.{number}.step"], **moments}
    return Run(**facts["run"]), optimizer, _part(arrays, "best.")


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _all_state(tower: Tower, optimizer: torch.optim.Optimizer, best: Arrays) -> Arrays:
    arrays = {f"tower.{name}": value for name, value in tower.state().items()}
    arrays |= {f"best.{name}": value for name, value in best.items()}
    for number, parameter in enumerate(tower.parameters()):
        for name, value in optimizer.state[parameter].items():
            arrays[f"adam.{number}.{name}"] = value
    return arrays


def _finished(scratch: Path, asked: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    path = scratch / SUMMARY
    if not path.is_file() or not out.is_dir():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    same = kept.get("asked") == json.loads(json.dumps(dict(asked))) and kept.get("out") == str(out)
    found: dict[str, Any] | None = kept["summary"] if same else None
    return found


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingDependency("training an encoder", "train")
