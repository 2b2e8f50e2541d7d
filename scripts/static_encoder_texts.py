"""The texts that the default encoder learns from, and the pairs made of them. Nothing of them ends up in the package.

Always: the documentation of the running Python (PSF licence) and WordNet 3.0 (WordNet licence; Debian's wordnet-base).
Where ../shared/data is there: MedQuAD (CC BY 4.0; answers, and the questions of its training split but for 500), and
the rows of docs_passages that come from packages under permissive licences (PERMISSIVE).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nestvec.engine import stdlib_docs

PERMISSIVE = {
    "apache2-doc": "Apache-2.0",
    "aws-botocore": "Apache-2.0",
    "erlang-doc": "Apache-2.0",
    "google-discovery": "Apache-2.0",
    "libboost1.74-doc": "BSL-1.0",
    "libeigen3-doc": "MPL-2.0",
    "llvm-14-doc": "Apache-2.0 with LLVM exceptions",
    "nodejs-doc": "MIT",
    "postgresql-doc-15": "PostgreSQL",
    "python-django-doc": "BSD-3-Clause",
    "python-pandas-doc": "BSD-3-Clause",
    "python-scipy-doc": "BSD-3-Clause",
    "python3.11-doc": "PSF-2.0",
    "rust-doc": "MIT or Apache-2.0",
    "sqlite3-doc": "public domain",
    "vba-docs": "CC BY 4.0",
}
PART_WORDS = 140
HELD_OUT = 500
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(0-9])|\n\n+")


class Texts:
    """`pairs`: (short or related text, text) by source; `taught`: texts whose vectors the teacher gives; `held_out`:
    (question, answer) that nothing learns from."""

    def __init__(self, seed: int) -> None:
        self.pairs: dict[str, list[tuple[str, str]]] = {}
        self.taught: list[str] = []
        self.held_out: list[tuple[str, str]] = []
        self.rng = np.random.default_rng(seed)

    def pair(self, source: str, one: str, other: str) -> None:
        """Note a pair, unless one of the two says too little."""
        one, other = " ".join(one.split()), " ".join(other.split())
        if len(one) > 2 and len(other) > 8:
            self.pairs.setdefault(source, []).append((one, other))

    def clozes(self, source: str, title: str, text: str, count: int) -> None:
        """A sentence or some words of a text → the text, mostly without them, mostly with its title."""
        sentences, words = sentences_of(text), text.split()
        for _ in range(count):
            if len(sentences) > 1 and self.rng.random() < 0.6:
                query = self._shortened(sentences[self.rng.integers(len(sentences))], 24, 8, 20)
                rest = text if self.rng.random() < 0.25 else text.replace(query, " ")
            elif len(words) >= 16:
                query = self._shortened(text, 0, 5, 15)
                rest = text if self.rng.random() < 0.4 else text.replace(query, " ")
            else:
                return
            self.pair(source, query, f"{title}: {rest}" if title and self.rng.random() < 0.7 else rest)

    def _shortened(self, text: str, most: int, shortest: int, longest: int) -> str:
        """Some consecutive words of a text of more than `most`."""
        words = text.split()
        if len(words) <= most:
            return text
        length = min(len(words), int(self.rng.integers(shortest, longest)))
        start = int(self.rng.integers(len(words) - length + 1))
        return " ".join(words[start : start + length])


def collect(wordnet: Path, shared: Path | None, seed: int) -> Texts:
    """Everything there is to learn from."""
    texts = Texts(seed)
    _stdlib(texts)
    _wordnet(texts, wordnet)
    if shared is not None:
        _documentation(texts, shared)
        _medquad(texts, shared)
    return texts


def sentences_of(text: str) -> list[str]:
    """Sentences of at least 4 words."""
    return [part.strip() for part in _SENTENCE_END.split(text) if len(part.split()) >= 4]


def _stdlib(texts: Texts) -> None:
    for each in stdlib_docs.passages():
        text = " ".join(each["text"].split()[:160])
        texts.pair("std_title", each["title"].replace(".", " ").replace("_", " "), text)
        texts.clozes("std_cloze", each["title"], text, 2)
        texts.taught.append(f"{each['title']}: {text}")


def _wordnet(texts: Texts, folder: Path) -> None:
    synsets = {(pos, offset): fields for pos, offset, *fields in _synsets(folder)}
    for lemmas, gloss, examples, above in synsets.values():
        for lemma in lemmas[:3]:
            texts.pair("wn_word", lemma, gloss)
        for example in examples:
            texts.pair("wn_example", example, f"{', '.join(lemmas[:2])}: {gloss}")
        if len(lemmas) > 1:
            texts.pair("wn_synonym", lemmas[0], ", ".join([lemmas[1], *lemmas[2:4]]))
        if above in synsets:
            names, meaning = synsets[above][:2]
            texts.pair("wn_above", gloss, f"{', '.join(names[:3])}: {meaning}")
        texts.taught.append(f"{', '.join(lemmas[:3])}: {gloss}")
        texts.taught += [example for example in examples if len(example) > 15]


def _synsets(folder: Path) -> Iterator[tuple[Any, ...]]:
    """(part of speech, offset, lemmas, gloss, examples, (part of speech, offset) of the first hypernym)."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence
            left, _, right = line.partition(" | ")
            fields = left.split()
            words = int(fields[3], 16)
            lemmas = [re.sub(r"\(.*\)", "", fields[4 + 2 * i]).replace("_", " ") for i in range(words)]
            links = fields[5 + 2 * words :]
            ups = (
                links[i + 2 : i : -1] for i in range(0, 4 * int(fields[4 + 2 * words]), 4) if links[i] in ("@", "@i")
            )
            gloss = re.sub(r';?\s*"[^"]*"', "", right).strip(" ;\n")
            above = tuple(next(ups, ["", ""]))
            yield fields[2].replace("s", "a"), fields[0], lemmas, gloss, re.findall(r'"([^"]+)"', right), above


def _documentation(texts: Texts, shared: Path) -> None:
    for row in rows(shared / "docs_passages.jsonl.gz"):
        if row["source"] not in PERMISSIVE:
            continue
        title, text = row["title"], row["text"]
        whole = f"{title}: {text}".strip(": ")
        texts.pair("docs_title", title.replace("|", " "), text)
        texts.pair("docs_title", re.split(r"[|:]", title)[-1].strip() or title, whole)
        sentences = sentences_of(text)
        if len(sentences) > 1:
            texts.pair("docs_first", sentences[0], f"{title}: {' '.join(sentences[1:])}")
        texts.clozes("docs_cloze", title, text, 4)
        texts.taught.append(whole)


def _medquad(texts: Texts, shared: Path) -> None:
    answers = {row["id"]: row["text"].split() for row in rows(shared / "medquad/corpus.jsonl.gz")}
    for words in answers.values():
        for start in range(0, min(len(words), 8 * PART_WORDS), PART_WORDS):
            part = words[start : start + PART_WORDS]
            if start == 0 or len(part) > 40:
                texts.clozes("med_cloze", "", " ".join(part), 2)
        if len(words) > PART_WORDS + 80:
            texts.pair("med_part", " ".join(words[:PART_WORDS]), " ".join(words[PART_WORDS : 2 * PART_WORDS]))
        texts.taught.append(" ".join(words[:PART_WORDS]))
    asked = [(question, " ".join(answers[answer][:PART_WORDS])) for question, answer in _questions(shared / "medquad")]
    texts.held_out += asked[:HELD_OUT]
    for question, answer in asked[HELD_OUT:]:
        texts.pair("med_question", question, answer)
        texts.taught.append(question)


def _questions(folder: Path) -> list[tuple[str, str]]:
    """(question, id of its answer) of the training split, shuffled."""
    right: dict[str, str] = {}
    with gzip.open(folder / "qrels.tsv.gz", "rt", encoding="utf-8") as file:
        for query, document, grade in (line.split("\t") for line in file):
            if int(grade) > 0:
                right.setdefault(query, document)
    found = [(row["text"], right[row["id"]]) for row in rows(folder / "queries.jsonl.gz") if row["split"] == "train"]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl.gz."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
