"""Pairs of queries and documents: files of them, and the pairs that a collection's own records give."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.errors import InvalidInput
from nestvec.evaluation.files import json_object
from nestvec.train.files import parquet_rows

F32 = NDArray[np.float32]
QUERY, VECTOR, DOCUMENT, GRADE = ("query", "text"), ("vector",), ("document", "doc_id"), ("grade",)
"""Names that a column may have, the first found of each."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries, each once, and which documents are relevant to them.

    `texts` or `vectors` (f32 [q, dims]) of the queries, the other None. `query` int64 [p]: the pair's query.
    `documents`: the pair's document id. `grades` f32 [p], all over 0.
    """

    texts: list[str] | None
    vectors: F32 | None
    query: NDArray[np.int64]
    documents: list[str]
    grades: F32

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return len(self.texts) if self.texts is not None else 0 if self.vectors is None else len(self.vectors)


def read_pairs(path: Path) -> Pairs:
    """The pairs of a .jsonl, .parquet or .tsv file.

    Columns or keys: `query` (text) or `vector` (numbers); `document` (or `doc_id`); and, if there is one, `grade`: a
    number, 1 where it is absent, pairs with 0 or less are left out. A .tsv file has no header: query, document, grade.
    The same query in several lines is one query. Raises InvalidInput naming the line, MissingDependency for parquet.
    """
    readers = {".jsonl": _json_lines, ".parquet": _parquet, ".tsv": _tabbed}
    if path.suffix not in readers:
        raise InvalidInput(f"{path}: pairs are read from .jsonl, .parquet or .tsv files")
    made = _Maker(path)
    for number, row in readers[path.suffix](path):
        made.add(number, row)
    return made.pairs()


class _Maker:
    """Collects the pairs of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place: dict[Any, int] = {}
        self.texts: list[str] = []
        self.vectors: list[F32] = []
        self.query: list[int] = []
        self.documents: list[str] = []
        self.grades: list[float] = []

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        document, grade = _first(row, DOCUMENT), _first(row, GRADE)
        if not isinstance(document, str) or not document:
            raise self._wrong(number, f"a document id under {' or '.join(DOCUMENT)}, got {document!r}")
        value = self._grade(number, grade)
        place = self._place(number, row)
        if value > 0:
            self.query.append(place)
            self.documents.append(document)
            self.grades.append(value)

    def _grade(self, number: int, grade: object) -> float:
        if grade is None or grade == "":
            return 1.0
        try:
            value = float(grade)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise self._wrong(number, f"a number as grade, got {grade!r}")
        return value

    def _place(self, number: int, row: Mapping[str, Any]) -> int:
        text, vector = _first(row, QUERY), _first(row, VECTOR)
        if isinstance(text, str) and text.strip() and not self.vectors:
            if text not in self.place:
                self.place[text] = len(self.texts)
                self.texts.append(text)
            return self.place[text]
        if vector is None or self.texts:
            raise self._wrong(number, "a query text in every line, or a vector in every line")
        try:
            numbers = np.asarray(vector, np.float32)
        except (TypeError, ValueError):
            numbers = np.empty(0, np.float32)
        if numbers.ndim != 1 or not numbers.size or (self.vectors and numbers.shape != self.vectors[0].shape):
            raise self._wrong(number, "a vector of numbers, as long as those before it")
        key = numbers.tobytes()
        if key not in self.place:
            self.place[key] = len(self.vectors)
            self.vectors.append(numbers)
        return self.place[key]

    def _wrong(self, number: int, expected: str) -> InvalidInput:
        return InvalidInput(f"{self.path}, line {number}: expected {expected}")

    def pairs(self) -> Pairs:
        """What was collected. Raises InvalidInput where nothing was."""
        if not self.documents:
            raise InvalidInput(f"{self.path}: no pair with a grade over 0 in it")
        return Pairs(
            None if self.vectors else self.texts,
            np.stack(self.vectors) if self.vectors else None,
            np.array(self.query, np.int64),
            self.documents,
            np.array(self.grades, np.float32),
        )


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:  # noqa: ANN401 - a value of JSON
    return next((row[name] for name in names if row.get(name) is not None), None)


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, json_object(path, number, line)


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    known = (*QUERY, *VECTOR, *DOCUMENT, *GRADE)
    return enumerate(parquet_rows(path, lambda there: [name for name in known if name in there]), 1)


def _tabbed(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for number, cells in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if not cells:
                continue
            if not 2 <= len(cells) <= 3:
                raise InvalidInput(
                    f"{path}, line {number}: expected query, document and perhaps a grade, with tabs between"
                )
            yield number, dict(zip(("query", "document", "grade"), cells, strict=False))
