"""How well a tower ranks what was held out of its training: the evaluation that stands in an encoder's card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from nestvec.train.encoder.towers import Tower

Formed = Sequence[tuple[str, Sequence[str]]]
"""(query, [its positive, its hard negatives...]) of each held-out triple, as the tower reads them."""
Gains = npt.NDArray[np.float64]
_AT_ONCE = 256
_BEST = 10
_ROUNDING = 1e-6
"""Of a cosine: a text of the same words as the right one is not before it."""


class HeldOut:
    """Held-out queries, each with one right text, to be found among all their positives and negatives."""

    def __init__(self, formed: Formed) -> None:
        self._queries = [query for query, _ in formed]
        self._texts = list(dict.fromkeys(text for _, texts in formed for text in texts))
        places = {text: place for place, text in enumerate(self._texts)}
        self._right = [places[texts[0]] for _, texts in formed]

    def likelihood(self, tower: Tower, temperature: float) -> float:
        """Mean logarithm of the right text's share in the softmax over all texts, over the queries and the tower's
        prefix lengths. It tells good from better where nearly every query finds its text first, as nDCG cannot."""
        import torch
        from torch.nn.functional import cross_entropy, normalize

        right = torch.tensor(self._right)
        with torch.no_grad():
            queries, texts = _vectors(tower, self._queries), _vectors(tower, self._texts)
            shares = [
                -cross_entropy(
                    normalize(queries[:, :dims], dim=1) @ normalize(texts[:, :dims], dim=1).T / temperature,
                    right.to(queries.device),
                )
                for dims in tower.granularities
            ]
        return float(torch.stack(shares).mean())

    def by_prefix(self, tower: Tower) -> dict[int, dict[str, float]]:
        """nDCG@10 and R@10 of each of the tower's prefix lengths, to four places."""
        return {
            dims: {"nDCG@10": round(float(_gains(each).mean()), 4), "R@10": round(float((each < _BEST).mean()), 4)}
            for dims, each in self._ranks(tower).items()
        }

    def gains(self, tower: Tower) -> Gains:
        """Each query's nDCG@10 at full width: f64 [queries]."""
        return _gains(self._ranks(tower)[tower.granularities[-1]])

    def facts(self) -> dict[str, int]:
        """How much is asked, and of how many texts."""
        return {"queries": len(self._queries), "texts": len(self._texts)}

    def _ranks(self, tower: Tower) -> dict[int, npt.NDArray[np.int64]]:
        """Of each prefix length, i64 [queries]: how many texts are nearer than the right one."""
        import torch
        from torch.nn.functional import normalize

        with torch.no_grad():
            queries, texts = _vectors(tower, self._queries), _vectors(tower, self._texts)
            found = {}
            for dims in tower.granularities:
                scores = normalize(queries[:, :dims], dim=1) @ normalize(texts[:, :dims], dim=1).T
                right = scores[torch.arange(len(scores)), torch.tensor(self._right)]
                found[dims] = (scores > right[:, None] + _ROUNDING).sum(1).cpu().numpy()
        return found


def clear_gain(before: Gains, after: Gains) -> bool:
    """Whether the mean rose by more than its standard error, query by query."""
    rise = after - before
    return bool(rise.mean() > rise.std() / np.sqrt(len(rise)))


def _gains(ranks: npt.NDArray[np.int64]) -> Gains:
    return np.where(ranks < _BEST, 1 / np.log2(ranks + 2.0), 0.0)


def _vectors(tower: Tower, texts: Sequence[str]) -> torch.Tensor:
    import torch

    return torch.cat([tower.vectors(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE)])
