"""What encoders do with texts before and after a model: check them, batch them, bring vectors to length 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput

Floats = npt.NDArray[np.float32]


def check_texts(texts: Sequence[str]) -> None:
    """Raise InvalidInput naming the position of the first text that is empty or no Unicode text."""
    if isinstance(texts, str):
        raise InvalidInput("expected a list of texts, got one text; put it in a list")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"text {position}: expected a string, got {type(text).__name__}")
        if not text:
            raise InvalidInput(f"text {position}: is empty; an empty text has no meaning to search by")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text {position}: lone surrogate at character {error.start}") from None


def batches_by_length(texts: Sequence[str], most_texts: int, most_chars: int) -> Iterator[list[int]]:
    """`batches` of the texts by length, shortest first: a model that pads a batch to its longest text pads little."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return ([order[i] for i in batch] for batch in batches([texts[i] for i in order], most_texts, most_chars))


def batches(texts: Sequence[str], most_texts: int, most_chars: int) -> Iterator[list[int]]:
    """Positions of consecutive texts: at most `most_texts`, of at most `most_chars` characters unless one has more."""
    batch: list[int] = []
    chars = 0
    for position in range(len(texts)):
        size = len(texts[position])
        if batch and (len(batch) == most_texts or chars + size > most_chars):
            yield batch
            batch, chars = [], 0
        batch.append(position)
        chars += size
    if batch:
        yield batch


def unit_rows(vectors: Floats) -> tuple[Floats, list[int]]:
    """(rows f32 [n, dims] at length 1, the positions of rows that have no direction: NaN, infinite or zero)."""
    wide = vectors.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist()
    norms[bad] = 1.0
    return (wide / norms[:, None]).astype(np.float32), bad
