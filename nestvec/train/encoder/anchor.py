"""General sentences whose vectors a training should leave where they were.

Learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282): text of one field teaches words of every field, and
what it does to those harms searches elsewhere. The sentences are of the standard library's documentation, which is on
every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nestvec.engine.stdlib_docs import passages
from nestvec.train.encoder.extract import sentences

if TYPE_CHECKING:
    from torch import Tensor

    from nestvec.train.encoder.towers import Tower

_AT_ONCE = 256


class Anchor:
    """Sentences with the vectors that a tower has for them now, drawn by a seed."""

    def __init__(self, tower: Tower, seed: int, most: int) -> None:
        """At most `most` sentences, encoded here."""
        import torch

        found = [sentence for passage in passages() for sentence in sentences(passage["text"])]
        self._seed = seed
        self._texts = [found[i] for i in np.random.default_rng([seed, 4]).permutation(len(found))[:most]]
        with torch.no_grad():
            self._vectors = torch.cat(
                [tower.vectors(self._texts[start : start + _AT_ONCE]) for start in range(0, len(self._texts), _AT_ONCE)]
            )

    def away(self, tower: Tower, step: int, count: int) -> Tensor:
        """1 - cosine of the tower's vectors of `count` sentences to those at the start, the mean over sentences and
        prefixes: f32 scalar. Which sentences depends on the step alone."""
        from nestvec.train.encoder import losses

        rng = np.random.default_rng([self._seed, 5, step])
        chosen = rng.permutation(len(self._texts))[:count].tolist()
        now, before = tower.vectors([self._texts[i] for i in chosen]), self._vectors[chosen]
        return losses.nested(lambda dims: losses.away(now[:, :dims], before[:, :dims]), tower.granularities)
