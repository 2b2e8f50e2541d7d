"""Static encoders: one vector per word piece, summed. No network is run, so a query takes microseconds.

`static` is the default encoder, from the data that ships here: made by scripts/make_static_encoder.py, as
data/PROVENANCE.md says. `static:FOLDER` is one that `nestvec train` made; its folder holds the same four files.

A text's vector is the sum of its word pieces' rows, each row times 1 + ln(how often the piece is in the text), brought
to length 1. How much a word counts (Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings")
is part of its row.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from nestvec.engine.encoders.texts import Floats, batches, check_texts
from nestvec.errors import Damaged, InvalidInput, NotFound
from nestvec.index.granularity import check_granularities

FORMAT = 2
DATA = Path(__file__).parent / "data"
TOKENIZER, MATRIX, SCALES, CARD = "static_tokenizer.json", "static_matrix.npy", "static_scales.npy", "static_card.json"
UNKNOWN = "[UNK]"
GROUP = 64
"""So many numbers of a row share a scale."""
TEXT = "{text}"
"""Where a template of the card has the text."""

_PIECE_CHARS = 16_384  # longer texts are cut into word pieces piece by piece
_BATCH_CHARS, _BATCH_TEXTS = 65_536, 4096
_BLOCK = 4096  # rows gathered at once: 8 MiB at 512 dims

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Card:
    """What the card says that makes the vectors; the rest of it (data, recipe, scores) is for people."""

    granularities: tuple[int, ...]
    query: str = TEXT
    document: str = TEXT

    @property
    def dims(self) -> int:
        """Length of the vectors."""
        return self.granularities[-1]

    @classmethod
    def parse(cls, content: bytes) -> Card:
        """From the card's JSON. Raises ValueError, KeyError or TypeError where it is not such a card."""
        fields: dict[str, Any] = json.loads(content)
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']}")
        granularities = check_granularities(fields["granularities"], fields["granularities"][-1])
        card = cls(granularities, **fields["templates"])
        if TEXT not in card.query or TEXT not in card.document or card.dims % GROUP:
            raise ValueError(f"templates without {TEXT}, or dims that are no multiple of {GROUP}")
        return card


class StaticEncoder:
    """Weighted sum of the rows of a text's word pieces, of length 1. Immutable, so threads may share it."""

    def __init__(self, name: str, tokenizer: Tokenizer, rows: Floats, card: Card, fingerprint: str) -> None:
        """`rows` f32 [tokens, dims], the word weights included; the row of the unknown token must not be zero."""
        self.name, self.fingerprint = name, fingerprint
        self.dims, self.granularities = card.dims, card.granularities
        self.tokenizer, self.rows, self._card = tokenizer, rows, card
        self._unknown = rows[tokenizer.token_to_id(UNKNOWN)]

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """f32 [len(texts), dims] of length 1. Raises InvalidInput naming the position of an empty or non-text item.

        A text without any known word piece gets the vector of the unknown token.
        """
        return self._encode(texts, self._card.query)

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """The same as encode_queries, unless the card has a template of its own for documents."""
        return self._encode(texts, self._card.document)

    def _encode(self, texts: Sequence[str], template: str) -> Floats:
        check_texts(texts)
        sums = np.zeros((len(texts), self.dims), np.float32)
        for positions in batches(texts, _BATCH_TEXTS, _BATCH_CHARS):
            batch = [texts[position] for position in positions]
            if template != TEXT:
                batch = [template.replace(TEXT, text) for text in batch]
            self._add(batch, sums[positions[0] : positions[-1] + 1])
        sums[~sums.any(axis=1)] = self._unknown
        # einsum adds every row up in the same order, whatever the batch: a text's vector is the same alone
        sums /= np.sqrt(np.einsum("ij,ij->i", sums, sums))[:, None]
        return sums

    def _add(self, texts: Sequence[str], sums: Floats) -> None:
        """Add to each row of `sums` the weighted token rows of its text."""
        tokens, counts, ends = count_tokens(self.tokenizer, texts)
        weights = 1 + np.log(counts, dtype=np.float32)
        start = 0
        for position, end in enumerate(ends):
            # text by text, so that the rows gathered stay in the cache and the order of the sum is the text's own
            for block in range(start, end, _BLOCK):
                part = slice(block, min(block + _BLOCK, end))
                sums[position] += weights[part] @ self.rows[tokens[part]]
            start = end


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Ids, Ids, list[int]]:
    """(word pieces of each text in ascending order, how often each is in it, where each text's pieces end)."""
    width = tokenizer.get_vocab_size()
    keys = [np.zeros(0, np.int64)]
    for batch in _pieces(texts):
        encoded = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        ids = [item.ids for item in encoded]
        owners = np.repeat([position for position, _ in batch], [len(each) for each in ids])
        flat = np.fromiter((token for each in ids for token in each), np.int64, len(owners))
        keys.append(owners * width + flat)
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    ends = np.searchsorted(found, np.arange(1, len(texts) + 1) * width)
    return found % width, counts, ends.tolist()


def load(spec: str | None = None) -> StaticEncoder:
    """The default encoder, or that in the folder `spec`.

    Raises NotFound where that is no folder, InvalidInput where it holds no encoder, Damaged naming a file that does
    not fit the others.
    """
    if spec is None:
        return load_folder(DATA, "static")
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise NotFound(f"expected a folder behind static:, which `nestvec train` makes; {spec!r} is none")
    if not (folder / CARD).is_file():
        raise InvalidInput(f"{folder}: holds no {CARD}, so it is no static encoder")
    return load_folder(folder, f"static:{spec}")


def load_folder(folder: Path, name: str) -> StaticEncoder:
    """The encoder from the four files in `folder`. Raises Damaged naming the file that does not fit."""
    contents = {file: _content(folder / file) for file in (TOKENIZER, MATRIX, SCALES, CARD)}
    try:
        tokenizer = Tokenizer.from_str(contents[TOKENIZER].decode())
    except Exception as error:  # tokenizers raises bare Exception
        raise Damaged(str(folder / TOKENIZER), f"{error}; {_AGAIN}") from error
    try:
        card = Card.parse(contents[CARD])
    except (ValueError, KeyError, TypeError, IndexError, InvalidInput) as error:
        raise Damaged(str(folder / CARD), f"expected a card of format {FORMAT}: {error!r}; {_AGAIN}") from error
    tokens = tokenizer.get_vocab_size()
    packed = _array(contents[MATRIX], folder / MATRIX, np.uint8, (tokens, card.dims // 2))
    scales = _array(contents[SCALES], folder / SCALES, np.float16, (tokens, card.dims // GROUP))
    digest = hashlib.sha256(f"static {FORMAT} {card}".encode())
    for file in (TOKENIZER, MATRIX, SCALES):
        digest.update(contents[file])
    return StaticEncoder(name, tokenizer, unpack(packed, scales), card, digest.hexdigest()[:16])


_AGAIN = "reinstall, or train it again"


def pack(rows: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """(uint8 [tokens, dims / 2], float16 [tokens, dims / GROUP]): 4 bits a number, GROUP numbers to a scale.

    The scale is that of a few which gives the smallest squared error. Dim j and dim j + dims / 2 share a byte: the
    first in its low half.
    """
    tokens, dims = rows.shape
    groups = rows.reshape(tokens, dims // GROUP, GROUP)
    largest = np.abs(groups).max(2) / 7
    best, least = np.zeros_like(largest, np.float16), np.full(largest.shape, np.inf)
    for share in np.linspace(0.5, 1, 11):
        scales = np.maximum(largest * share, np.finfo(np.float16).smallest_subnormal).astype(np.float16)
        error = ((_codes(groups, scales) * scales.astype(np.float32)[..., None] - groups) ** 2).sum(2)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    codes = (_codes(groups, best) + 8).astype(np.uint8).reshape(tokens, dims)
    packed: npt.NDArray[np.uint8] = codes[:, : dims // 2] + np.uint8(16) * codes[:, dims // 2 :]
    return packed, best


def unpack(packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.float16]) -> Floats:
    """f32 [tokens, dims] of what `pack` gave."""
    tokens, half = packed.shape
    rows = np.empty((tokens, 2 * half), np.float32)
    np.subtract(packed & 15, 8, out=rows[:, :half], dtype=np.float32)
    np.subtract(packed >> 4, 8, out=rows[:, half:], dtype=np.float32)
    rows.reshape(tokens, -1, GROUP)[...] *= scales.astype(np.float32)[..., None]
    return rows


def _codes(groups: Floats, scales: npt.NDArray[np.float16]) -> Floats:
    """Whole numbers from -8 to 7."""
    rounded: Floats = np.clip(np.rint(groups / scales.astype(np.float32)[..., None]), -8, 7)
    return rounded


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(str(path), f"is missing; {_AGAIN}") from error


def _array(content: bytes, path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Damaged(str(path), f"{error}; {_AGAIN}") from error
    if array.dtype != dtype or array.shape != shape:
        expected = f"{dtype.__name__} {list(shape)}"
        raise Damaged(str(path), f"expected {expected}, got {array.dtype} {list(array.shape)}; {_AGAIN}")
    return array


def _pieces(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Lists of (position, piece of that text), each list of about _BATCH_CHARS characters at most.

    Texts are cut after a blank where there is one, so that the word pieces stay what they are in the whole text.
    """
    batch: list[tuple[int, str]] = []
    size = 0
    for position, text in enumerate(texts):
        for piece in _cut(text):
            if batch and size + len(piece) > _BATCH_CHARS:
                yield batch
                batch, size = [], 0
            batch.append((position, piece))
            size += len(piece)
    if batch:
        yield batch


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        blank = text.rfind(" ", start, start + _PIECE_CHARS)
        end = blank + 1 if blank >= start else start + _PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]
