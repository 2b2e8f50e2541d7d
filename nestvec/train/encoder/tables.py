"""The tables between the steps of training an encoder, and the state of a step.

    passages   doc_id title text                                       generate: all texts, also those without a query
    pairs      id doc_id title text task query generator               generate: a task and a query for a passage
    candidates id doc_ids[] scores[] seed_rank                         mine: the nearest passages of a query
    judged     id positive seed negatives[] doc_ids[] fused[] judges[] scores[][]      relabel
    triples    id task query positive_id positive_title positive_text negative_ids[] negative_titles[]
               negative_texts[] teacher_scores[]                       relabel: what step 4 reads

Beside each of them stands `<step>.json`: the settings, the digests of what the step read, and its summary. A step
whose settings and inputs are those of its file is done and not run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestvec.engine.storage.files import new_directory, new_file
from nestvec.errors import InvalidInput
from nestvec.train.files import Columns, Row, digest_of, find_table, read_table, write_table

FORMAT = 1
STEPS = ("generate", "mine", "relabel")
"""Those that make the tables, in order."""
TABLES: dict[str, Columns] = {
    "passages": {"doc_id": "text", "title": "text", "text": "text"},
    "pairs": {
        "id": "text",
        "doc_id": "text",
        "title": "text",
        "text": "text",
        "task": "text",
        "query": "text",
        "generator": "text",
    },
    "candidates": {"id": "text", "doc_ids": "texts", "scores": "numbers", "seed_rank": "integer"},
    "judged": {
        "id": "text",
        "positive": "text",
        "seed": "text",
        "negatives": "texts",
        "doc_ids": "texts",
        "fused": "numbers",
        "judges": "texts",
        "scores": "tables",
    },
    "triples": {
        "id": "text",
        "task": "text",
        "query": "text",
        "positive_id": "text",
        "positive_title": "text",
        "positive_text": "text",
        "negative_ids": "texts",
        "negative_titles": "texts",
        "negative_texts": "texts",
        "teacher_scores": "numbers",
    },
}


@dataclass(frozen=True)
class Passage:
    """A text of the corpus. `title` may be empty."""

    doc_id: str
    title: str
    text: str

    @property
    def document(self) -> str:
        """What encoders and judges that know no titles are given: as files with a title and a text are read."""
        return f"{self.title}: {self.text}" if self.title else self.text


def digest_of_passages(passages: Iterable[Passage]) -> str:
    """16 hexadecimal digits that change with any id, title or text, and with the order."""
    digest = hashlib.sha256()
    for passage in passages:
        for part in (passage.doc_id, passage.title, passage.text):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def rows(folder: Path, table: str) -> Iterator[Row]:
    """The rows of one of TABLES in `folder`. Raises InvalidInput where it is missing or is not such a table."""
    return read_table(folder, table, TABLES[table])


def read_passages(folder: Path) -> dict[str, Passage]:
    """Every passage by its doc_id."""
    return {row["doc_id"]: Passage(**row) for row in rows(folder, "passages")}


def write(folder: Path, table: str, made: Sequence[Row] | Iterator[Row]) -> Path:
    """Write one of TABLES into `folder`, whole or not at all."""
    return write_table(folder, table, TABLES[table], made)


@dataclass(frozen=True)
class Step:
    """One step in one folder: what it is asked for, and from which tables."""

    folder: Path
    name: str
    settings: Mapping[str, Any]
    reads: tuple[str, ...]
    makes: tuple[str, ...]

    def finished(self) -> dict[str, Any] | None:
        """The summary of an earlier run that was asked the same of the same tables and whose tables are still there."""
        path = self.folder / f"{self.name}.json"
        if not path.is_file() or any(find_table(self.folder, table) is None for table in self.makes):
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise InvalidInput(f"{path}: no JSON; remove it, and the step is run again") from None
        same = isinstance(kept, dict) and kept.get("asked") == self._asked()
        return kept["summary"] if same else None

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Note that the tables this step makes are there. Returns the summary."""
        kept = {"asked": self._asked(), "summary": dict(summary)}
        with new_file(self.folder / f"{self.name}.json") as file:
            file.write(json.dumps(kept, indent=1, ensure_ascii=False).encode() + b"\n")
        return dict(summary)

    def _asked(self) -> dict[str, Any]:
        read = {}
        for table in self.reads:
            path = find_table(self.folder, table)
            if path is None:
                raise InvalidInput(f"{self.folder} has no table {table!r}: run the step that makes it first")
            read[table] = digest_of(path)
        return {"format": FORMAT, "settings": json.loads(json.dumps(dict(self.settings))), "read": read}


def summaries(folder: Path) -> dict[str, Any]:
    """What each step that was done in `folder` was asked for, and what it said: {step: {settings, summary}}."""
    found = {}
    for name in STEPS:
        path = folder / f"{name}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {"settings": kept["asked"]["settings"], "summary": kept["summary"]}
    return found


def run_folder(folder: Path) -> Path:
    """`folder`, made if it is not there. Raises InvalidInput where its name is another kind of file's."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; --out must be a folder")
    return new_directory(folder, parents=True)
