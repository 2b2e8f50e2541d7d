"""Queries without an LLM: a passage's title, first sentence, headings, and the spans that set it apart.

Each has a task text that says what such a query is. Span: the 3 to 8 consecutive words of one sentence whose
inverse document frequencies (Spärck Jones 1972, ln(n / df)), summed and divided by the root of their number, are
highest.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nestvec.train.encoder.tables import Passage

KINDS = ("title", "sentence", "heading", "span")
TASKS = {
    "title": "find the text with this title",
    "sentence": "find the text that this sentence begins",
    "heading": "find the text with this heading",
    "span": "find the text by some of its words",
}
_WORD = re.compile(r"[^\W_](?:[\w'-]*[^\W_])?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z]|[\"'(])|\n\s*\n")
_HEADING = re.compile(
    r"^(?:#{1,6} +(?P<marked>\S.*?)[ #]*|(?P<ruled>\S.*)\n[=~^*-]{3,}|(?P<label>[^\W\d_a-z][^\n.:]{2,58}):)$", re.M
)
_SPAN_WORDS = (3, 8)
_MIN_WORDS, _MAX_CHARS = 3, 300


@dataclass(frozen=True)
class Corpus:
    """How many of `size` passages hold each word, and each heading."""

    size: int
    passages_with: Counter[str]
    headings: Counter[str]

    @classmethod
    def of(cls, passages: Iterable[Passage]) -> Corpus:
        """Counted over each passage's text."""
        counted: Counter[str] = Counter()
        headings: Counter[str] = Counter()
        size = 0
        for passage in passages:
            headings.update(set(_headings(passage.text)))
            counted.update({word.lower() for word in _WORD.findall(passage.text)})
            size += 1
        return cls(size, counted, headings)

    def weight(self, word: str) -> float:
        """ln(n / df), 0 for a word that every passage holds."""
        return math.log(self.size / max(1, self.passages_with[word.lower()]))


def extract(passage: Passage, corpus: Corpus, most: int) -> list[tuple[str, str]]:
    """Up to `most` (kind, query) of a passage, no query twice, in the order of KINDS; none for a text without words."""
    found = {
        "title": [passage.title],
        "sentence": _first_sentence(passage.text),
        "heading": [each for each in _headings(passage.text) if corpus.headings[each] == 1],  # not "Example"
        "span": _salient(passage.text, corpus),
    }
    queries: dict[str, str] = {}
    for kind in KINDS:
        for query in found[kind]:
            clean = " ".join(query.split())[:_MAX_CHARS].strip()
            if _WORD.search(clean):
                queries.setdefault(clean, kind)
    return [(kind, query) for query, kind in queries.items()][:most]


def _first_sentence(text: str) -> list[str]:
    found = sentences(text)
    return found[:1] if len(found) > 1 else []  # the whole text is no query for itself


def sentences(text: str) -> list[str]:
    """The sentences of at least 3 words."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and len(part.split()) >= _MIN_WORDS]


def _headings(text: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in _HEADING.finditer(text)]


def _salient(text: str, corpus: Corpus) -> list[str]:
    """The words of the best span of the text; none where no sentence is long enough."""
    best, span = 0.0, ""
    for sentence in sentences(text):
        words = list(_WORD.finditer(sentence))
        weights = [corpus.weight(word.group()) for word in words]
        found = _best_window(weights)
        if found is not None and found[0] > best:
            best = found[0]
            span = " ".join(word.group() for word in words[found[1] : found[2]])
    return [span] if span else []


def _best_window(weights: Sequence[float]) -> tuple[float, int, int] | None:
    """(score, start, end) of the window of allowed length with the best score.

    The score is the sum over the square root of the length: between the mean, which likes the shortest, and the sum.
    """
    sums = [0.0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    shortest, longest = _SPAN_WORDS
    windows = (
        ((sums[start + length] - sums[start]) / math.sqrt(length), start, start + length)
        for length in range(shortest, min(longest, len(weights)) + 1)
        for start in range(len(weights) - length + 1)
    )
    return max(windows, key=lambda window: window[0], default=None)
