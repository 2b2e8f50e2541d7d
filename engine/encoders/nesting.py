"""Is a model nested (Matryoshka)? Measured, not believed: its prefixes against as many scattered numbers.

In an ordinary embedding the first g numbers are as good as any g others; in a nested one they are better. Measured for
600 words: the share of each one's true 10 nearest that are the 10 nearest by a prefix too, and by scattered numbers.
all-MiniLM-L6-v2, which is not nested, finds .54 by its first 128 numbers of 384 and .54 by scattered ones; the nested
`static` .50 by 128 of 512, against .29.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

WORDS = 600
_NEAREST = 10
_DRAWS = 3
_NESTED = (
    0.9  # of the misses of scattered numbers; all-MiniLM-L6-v2 lies at .95 to 1.03, the nested `static` at .70 to .75
)
_VOCABULARY = Path(__file__).parent / "data" / "static_tokenizer.json"


@dataclass(frozen=True)
class Nesting:
    """Share of the true 10 nearest found by the first `dims` numbers, and by as many scattered ones."""

    dims: int
    prefix: float
    scattered: float

    @property
    def nested(self) -> bool:
        """Whether the prefix is an embedding of its own."""
        return 1 - self.prefix <= _NESTED * (1 - self.scattered) or self.prefix == 1


def sample_words() -> list[str]:
    """The same WORDS words at every call, from the default encoder's vocabulary."""
    vocabulary = json.loads(_VOCABULARY.read_bytes())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 3)
    return words[:: len(words) // WORDS][:WORDS]


def measure(vectors: Floats, dims: int) -> Nesting:
    """How well the first `dims` numbers of f32 [n, more dims] unit vectors of different texts stand for all of them."""
    truth = nearest(vectors, vectors)
    rng = np.random.default_rng(0)
    draws = [rng.choice(vectors.shape[1], dims, replace=False) for _ in range(_DRAWS)]
    scattered = [overlap(truth, nearest(part, part)) for part in (vectors[:, draw] for draw in draws)]
    prefix = vectors[:, :dims]
    return Nesting(dims, overlap(truth, nearest(prefix, prefix)), float(np.mean(scattered)))


def nearest(queries: Floats, vectors: Floats) -> npt.NDArray[np.int64]:
    """The rows i64 [n, 10] of `vectors` f32 [n, dims] nearest by cosine to each row of `queries` f32 [n, dims], the
    row of the same text aside."""
    scores = _unit(queries) @ _unit(vectors).T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, _NEAREST, axis=1)[:, :_NEAREST]


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def overlap(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    """Share of `truth` i64 [n, k] that `found` i64 [n, k] holds in the same row."""
    return float(np.mean([np.isin(wanted, got).mean() for wanted, got in zip(truth, found, strict=True)]))
