"""The default encoder: one vector per word piece, summed. No network is run, so a query takes microseconds.

The token matrix is distilled from all-MiniLM-L6-v2 by scripts/make_static_encoder.py; data/PROVENANCE.md says how.
Word weights (Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings") are part of its rows.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from nestvec.engine.encoders.texts import Floats, check_texts
from nestvec.errors import Damaged

FORMAT = 1
GRANULARITIES = (64, 128, 256)
DIMS = GRANULARITIES[-1]
DATA = Path(__file__).parent / "data"
TOKENIZER, MATRIX, SCALES = "static_tokenizer.json", "static_matrix.npy", "static_scales.npy"
UNKNOWN = "[UNK]"

_PIECE_CHARS = 16_384  # longer texts are summed piece by piece
_BATCH_CHARS = 65_536  # at one token a character, the rows gathered for a batch take 64 MiB

Number = TypeVar("Number", np.int8, np.float32)


class StaticEncoder:
    """Sum of the rows of a text's word pieces, scaled to length 1. Immutable after loading, so threads may share it."""

    name = "static"
    dims = DIMS
    granularities = GRANULARITIES

    def __init__(self, tokenizer: Tokenizer, rows: Floats, fingerprint: str) -> None:
        """`rows` f32 [tokens, 256], the word weights included; row of the unknown token must not be zero."""
        self._tokenizer, self._rows, self.fingerprint = tokenizer, rows, fingerprint
        self._unknown = rows[tokenizer.token_to_id(UNKNOWN)]

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """f32 [len(texts), 256] of length 1. Raises InvalidInput naming the position of an empty or non-text item.

        A text without any known word piece gets the vector of the unknown token.
        """
        check_texts(texts)
        sums = np.zeros((len(texts), DIMS), np.float32)
        for batch in _batches(texts):
            self._add(batch, sums)
        sums[~sums.any(axis=1)] = self._unknown
        # einsum adds every row up in the same order, whatever the batch: a text's vector is the same alone
        sums /= np.sqrt(np.einsum("ij,ij->i", sums, sums))[:, None]
        return sums

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """The same as encode_queries: this encoder treats questions and stored texts alike."""
        return self.encode_queries(texts)

    def _add(self, batch: list[tuple[int, str]], sums: Floats) -> None:
        """Add the token rows of every (position, piece) to `sums`."""
        encoded = self._tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        tokens = [(position, item.ids) for (position, _), item in zip(batch, encoded, strict=True) if item.ids]
        if not tokens:
            return
        starts = np.cumsum([0, *(len(ids) for _, ids in tokens[:-1])])
        gathered = self._rows[np.concatenate([ids for _, ids in tokens])]
        np.add.at(sums, [position for position, _ in tokens], np.add.reduceat(gathered, starts, axis=0))


def load(folder: Path = DATA) -> StaticEncoder:
    """The encoder from the data files in `folder`. Raises Damaged naming the file that does not fit."""
    contents = {name: (folder / name).read_bytes() for name in (TOKENIZER, MATRIX, SCALES)}
    digest = hashlib.sha256(f"static {FORMAT}".encode())
    for content in contents.values():
        digest.update(content)
    tokenizer = Tokenizer.from_str(contents[TOKENIZER].decode())
    tokens = tokenizer.get_vocab_size()
    matrix = _array(contents[MATRIX], folder / MATRIX, np.int8, (tokens, DIMS))
    scales = _array(contents[SCALES], folder / SCALES, np.float32, (tokens,))
    return StaticEncoder(tokenizer, matrix * scales[:, None], digest.hexdigest()[:16])


def _array(content: bytes, path: Path, dtype: type[Number], shape: tuple[int, ...]) -> npt.NDArray[Number]:
    array: npt.NDArray[Number] = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype != dtype or array.shape != shape:
        expected = f"{dtype.__name__} {list(shape)}"
        raise Damaged(str(path), f"expected {expected}, got {array.dtype} {list(array.shape)}; reinstall")
    return array


def _batches(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Lists of (position, piece of that text), each list of at most _BATCH_CHARS characters."""
    batch: list[tuple[int, str]] = []
    size = 0
    for position, text in enumerate(texts):
        for piece in _pieces(text):
            if batch and size + len(piece) > _BATCH_CHARS:
                yield batch
                batch, size = [], 0
            batch.append((position, piece))
            size += len(piece)
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """Cut after a blank where there is one, so that the word pieces stay what they are in the whole text."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        blank = text.rfind(" ", start, start + _PIECE_CHARS)
        end = blank + 1 if blank >= start else start + _PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]
