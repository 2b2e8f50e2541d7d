"""Chunking: a long text becomes overlapping pieces of so many words, cut where a sentence ends if one ends nearby.

Words, not an encoder's tokens: the same text gives the same chunks under every encoder, also one behind a network that
shows no tokenizer. The default of 160 words fills what small models read: technical English has about 1.6 word pieces a
word, and all-MiniLM-L6-v2 reads 256 of them. A word is a run without blanks. Where a script writes no blanks, two
Chinese or Japanese characters count as a word; a run of anything else counts as a word every 32 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nestvec.errors import InvalidInput

MIN_WORDS, MAX_WORDS = 8, 10_000
MARK = "#"
"""Chunk n of document d has the id `d#n`. The last MARK of a chunk's id is the border, so d may hold marks itself."""

_WIDE = "\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WIDE}]{{1,2}}|[^\s{_WIDE}]{{1,32}}")
_SENTENCE_END = re.compile(r"[.!?…]['\")\]»”’]*\s|[。！？]|\n\s*\n")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Chunking:
    """Chunks of at most `words` words; the last `overlap` words of one are the first of the next."""

    words: int = 160
    overlap: int = 32

    def __post_init__(self) -> None:
        _check_integer("words", self.words, MIN_WORDS, MAX_WORDS)
        _check_integer("overlap", self.overlap, 0, self.words // 2)

    def to_json(self) -> dict[str, int]:
        """Plain JSON types; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Chunking:
        """The chunking that `to_json` wrote."""
        return cls(data["words"], data["overlap"])

    def split(self, text: str) -> list[str]:
        """The chunks in order, each a slice of `text` without its outer blanks; a text of one chunk comes back whole.

        A chunk ends at the last paragraph's end in its last quarter, else at the last sentence's end there, else after
        `words` words. Takes time linear in the text.
        """
        words = [match.span() for match in _WORD.finditer(text)]
        if len(words) <= self.words:
            return [text]
        return [text[words[first][0] : words[last - 1][1]] for first, last in self._ranges(text, words)]

    def _ranges(self, text: str, words: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """(first word, word after the last) of every chunk."""
        first = 0
        while len(words) - first > self.words:
            last = self._cut(text, words, first)
            yield first, last
            first = last - self.overlap
        yield first, len(words)

    def _cut(self, text: str, words: list[tuple[int, int]], first: int) -> int:
        """The word after a chunk's last. The last quarter is longer than nothing and shorter than the rest less
        the overlap, so every chunk starts later than the one before."""
        least, most = first + self.words - self.words // 4, first + self.words
        start, end = words[least - 1][1] - 1, words[most][0]
        for border in (_PARAGRAPH_END, _SENTENCE_END):
            ends = [match.end() for match in border.finditer(text, start, end)]
            if ends:
                return next(each for each in range(most, least - 1, -1) if words[each - 1][1] <= ends[-1])
        return most


def chunk_id(document: str, number: int) -> str:
    """The id of chunk `number`, from 0, of a document."""
    return f"{document}{MARK}{number}"


def document_of(chunk: str) -> str:
    """The document's id in a chunk's id."""
    return chunk.rpartition(MARK)[0]


def is_first(chunk: str) -> bool:
    """Whether this is its document's first chunk; every document has one, so counting them counts documents."""
    return chunk.endswith(f"{MARK}0")


def _check_integer(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput(f"chunking: {name} must be an integer from {least} to {most}, got {value!r}")
