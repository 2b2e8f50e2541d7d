"""Adapt an encoder to a user's own texts: inverse cloze (Lee et al. 2019, "Latent Retrieval for Weakly Supervised
Open Domain Question Answering", §4), so that no queries are needed.

A query is a sentence, or some consecutive words, of a passage; its positive is the passage, in a share of cases without
them, so that it is found by more than its own words. Two things see to it that little is lost elsewhere: the vectors
of general sentences are held where they were, and the weights are averaged in the end with those one started from
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"), words of many texts most of all. Where held-out
clozes gain nothing, no encoder is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nestvec.engine.progress import Progress, silent
from nestvec.errors import InvalidInput
from nestvec.train.encoder.batches import Triple
from nestvec.train.encoder.extract import sentences
from nestvec.train.encoder.step import Training, fit
from nestvec.train.encoder.tables import Passage, digest_of_passages, run_folder

_LONGEST = 200
"""Words of a passage that are read: a longer one is cut into parts of this length."""
_SHORTEST = 12
_SPAN_WORDS = (4, 15)
_SENTENCES = 0.6
_LEFT_IN = 0.3
_COMMON = 0.05
"""Half of what a word learned stays where this share of the texts holds it."""
_JUDGES = 200
"""Clozes held out of few, up to a fifth of them: so many can tell a gain from chance."""
_EACH, _EACH_MOST, _ENOUGH = 4, 16, 16_000
"""Clozes of a part, and of few parts up to so many of each until there are enough: 20 steps teach little."""


@dataclass(frozen=True)
class Adaptation:
    """How to adapt. `each`: clozes of a part of a passage (None: 4, and for a static tower up to 16 where parts are
    few), of all of them at most `most`; `hold`: weight of leaving the vectors of general text where they were; `keep`:
    weight of the encoder one starts from in the average."""

    tower: str = "static"
    each: int | None = None
    most: int = 60_000
    epochs: int = 2
    hold: float = 100.0
    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.each is not None and not 1 <= self.each <= 64:
            raise InvalidInput(f"expected 1 to 64 clozes of a passage; got {self.each}")
        if self.most < 1 or self.epochs < 1 or self.hold < 0 or not 0 <= self.keep < 1:
            raise InvalidInput(f"expected at least 1 cloze in all, an epoch, hold from 0, keep in [0, 1); got {self}")


def adapt(
    passages: Sequence[Passage], out: Path, wanted: Adaptation = Adaptation(), *, progress: Progress = silent
) -> dict[str, Any]:
    """Write into `out` the encoder adapted to `passages`, and into its sub-folder `training` what a stopped run needs.

    Returns the summary. Raises InvalidInput for too few texts, MissingDependency without torch.
    """
    triples = clozes(passages, wanted)
    if len(triples) < 50:
        raise InvalidInput(f"{len(passages)} texts give {len(triples)} clozes; at least 50 are needed to learn from")
    training = Training(
        wanted.tower,
        wanted.epochs,
        negatives=0,
        hold=wanted.hold,
        keep=wanted.keep,
        common=_COMMON,
        held_out=max(0.05, min(0.2, _JUDGES / len(triples))),
        refuse=True,
        seed=wanted.seed,
    )
    if not _static(wanted):
        training = replace(training, batch=32)
    data = {"passages": digest_of_passages(passages), "count": len(passages), "clozes": asdict(wanted)}
    scratch = run_folder(run_folder(out) / "training")
    return fit(out, triples, training, {"adapt": data}, data=data, scratch=scratch, progress=progress)


def clozes(passages: Sequence[Passage], wanted: Adaptation) -> list[Triple]:
    """`each` clozes of every part of every passage, none of a text under 12 words; of more than `most` a sample. All
    drawn by the seed."""
    rng = np.random.default_rng([wanted.seed, 3])
    parts = [(passage.title, part) for passage in passages for part in _parts(passage.text)]
    enough = _ENOUGH if _static(wanted) else 0  # a network's batches are small: it makes more steps of the same
    each = wanted.each or min(_EACH_MOST, max(_EACH, math.ceil(enough / max(1, len(parts)))))
    found = [_cloze(title, part, rng) for title, part in parts for _ in range(each)]
    if len(found) <= wanted.most:
        return found
    return [found[i] for i in rng.permutation(len(found))[: wanted.most]]


def _static(wanted: Adaptation) -> bool:
    return wanted.tower.partition(":")[0] == "static"


def _parts(text: str) -> Iterator[str]:
    words = text.split()
    for start in range(0, len(words) - _SHORTEST + 1, _LONGEST):
        yield " ".join(words[start : start + _LONGEST])


def _cloze(title: str, text: str, rng: np.random.Generator) -> Triple:
    parts = sentences(text)
    if len(parts) > 1 and rng.random() < _SENTENCES:
        query = parts[rng.integers(len(parts))]
    else:
        words = text.split()
        length = int(rng.integers(_SPAN_WORDS[0], min(_SPAN_WORDS[1], len(words) // 2) + 1))
        start = int(rng.integers(len(words) - length + 1))
        query = " ".join(words[start : start + length])
    rest = text if rng.random() < _LEFT_IN else text.replace(query, " ", 1)
    return Triple("", query, Passage("", title, rest).document)
