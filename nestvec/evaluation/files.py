"""Judged sets on disk: documents, queries, and which documents are relevant to which query.

A set is a folder in BEIR's format (Thakur et al., arXiv 2104.08663): corpus.jsonl with `_id`, `title`, `text`;
queries.jsonl with `_id`, `text`; qrels/SPLIT.tsv with a header, then query, document, grade. All may end in .gz. Also
read: `id` for `_id`, and one qrels.tsv without a header for all splits, where each query names its own `split`.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestvec.errors import InvalidInput, NotFound

Grades = Mapping[str, Mapping[str, int]]
"""Query -> document -> grade, of relevant documents (grade over 0) only."""


OTHERS = 1000


@dataclass(frozen=True)
class JudgedSet:
    """One split of a set. `queries`: (id, text) of those with a relevant document, in the file's order; `grades`: of
    these queries; `corpus`: the file that `documents` reads; `others`: at most OTHERS texts of the file's queries that
    are none of `queries`."""

    name: str
    corpus: Path
    queries: tuple[tuple[str, str], ...]
    grades: Grades
    others: tuple[str, ...]


def read_set(folder: Path, split: str = "test", most: int | None = None) -> JudgedSet:
    """The queries and judgements of a split; of more than `most` queries a seeded sample of so many.

    Raises NotFound for a folder that lacks a file, InvalidInput naming file and line of what cannot be read.
    """
    corpus, queries = _find(folder, "corpus.jsonl"), _find(folder, "queries.jsonl")
    grades = _read_grades(_find(folder, f"qrels/{split}.tsv", "qrels.tsv"))
    asked, unasked = [], []
    for id, text, of in _read_queries(queries):
        if of in (None, split) and id in grades:
            asked.append((id, text))
        else:
            unasked.append(text)
    if not asked:
        raise InvalidInput(f"{folder}: no query of split {split!r} has a relevant document")
    if most is not None and len(asked) > most:
        everyone, asked = asked, random.Random(0).sample(asked, most)
        unasked += [text for _, text in everyone]
    kept = {id: grades[id] for id, _ in asked}
    return JudgedSet(folder.resolve().name, corpus, tuple(asked), kept, _others(asked, unasked))


def _others(asked: list[tuple[str, str]], unasked: list[str]) -> tuple[str, ...]:
    """A seeded sample of the texts that nobody is asked."""
    measured = {text for _, text in asked}
    found = [text for text in dict.fromkeys(unasked) if text not in measured]
    return tuple(random.Random(0).sample(found, min(OTHERS, len(found))))


def documents(path: Path) -> Iterator[tuple[str, str]]:
    """(id, "title: text") of every document, in the file's order; "" where both are empty.

    Raises InvalidInput naming file and line of what is no document, or has the id of an earlier one.
    """
    seen: set[str] = set()
    for number, item in _objects(path):
        id = _id(path, number, item)
        if id in seen:
            raise InvalidInput(f"{path}, line {number}: a second document with the id {id!r:.100}")
        seen.add(id)
        yield id, document_text(_string(path, number, item, "title"), _string(path, number, item, "text"))


def document_text(title: str, text: str) -> str:
    """What is indexed of a document, joined as `nestvec build` joins them; "" where both are empty."""
    return ": ".join(part for part in (title.strip(), text.strip()) if part)


def _find(folder: Path, *names: str) -> Path:
    """The first of these files that is there, plain or with .gz."""
    candidates = [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    raise NotFound(
        f"{folder}: expected {' or '.join(names)} (or with .gz) in the folder of a judged set; none is there"
    )


def _read_queries(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """(id, text, its split if the file says it)."""
    seen: set[tuple[str, str | None]] = set()
    for number, item in _objects(path):
        id, split = _id(path, number, item), item.get("split")
        text = _string(path, number, item, "text").strip()
        if not text:
            raise InvalidInput(f"{path}, line {number}: query {id!r:.100} has no text")
        if (id, split) in seen:
            raise InvalidInput(f"{path}, line {number}: a second query with the id {id!r:.100}")
        seen.add((id, split))
        yield id, text, split


def _read_grades(path: Path) -> Grades:
    grades: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        parts = line.rstrip("\r\n").split("\t")
        if len(parts) == 3 and number == 1 and not _is_number(parts[2]):
            continue  # the header
        if len(parts) != 3 or not _is_number(parts[2]):
            raise InvalidInput(
                f"{path}, line {number}: expected query, document, whole grade with tabs between; got {line!r:.100}"
            )
        query, document, grade = parts[0], parts[1], int(float(parts[2]))
        if grade > 0:
            grades.setdefault(query, {})[document] = grade
    return grades


def _is_number(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of every line that is not blank."""
    for number, line in _lines(path):
        if line.strip():
            yield number, json_object(path, number, line)


def json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The JSON object in a line of a file. Raises InvalidInput naming file and line where there is none."""
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}, line {number}: no JSON: {error}") from None
    if not isinstance(item, dict):
        raise InvalidInput(f"{path}, line {number}: expected a JSON object, got {type(item).__name__}")
    return item


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path}, after line {number}: cannot be read: {error}") from None


def _id(path: Path, number: int, item: dict[str, Any]) -> str:
    id = item.get("_id", item.get("id"))
    if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "":
        raise InvalidInput(f'{path}, line {number}: expected an id in "_id" or "id", got {id!r:.100}')
    return str(id)


def _string(path: Path, number: int, item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{path}, line {number}: {key!r} must be a string, got {type(value).__name__}")
    return value
