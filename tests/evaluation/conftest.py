"""A judged set of real text: passages of Python's documentation, and the words of their titles as queries."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from documentation import python_passages

DOCUMENTS, EVERY = 1300, 40


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def items() -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, str, int]]]:
    """Documents, queries, and (query, document, grade): a query's own passage 2, others of its module's title 1."""
    documents = [
        {"_id": p["id"], "title": p["module"], "text": p["text"], "of": p["title"]}
        for p in python_passages()[:DOCUMENTS]
    ]
    queries, judged = [], []
    for number, document in enumerate(documents[::EVERY]):
        query = {"_id": f"q{number}", "text": document["of"].replace(".", " ").replace("_", " ")}
        queries.append(query)
        judged.append((query["_id"], document["_id"], 2))
        same = [other for other in documents if other["of"] == document["of"] and other is not document]
        judged += [(query["_id"], other["_id"], 1) for other in same]
    judged.append(("q0", documents[-1]["_id"], 0))
    queries.append({"_id": "unjudged", "text": "nobody knows"})
    return documents, queries, judged


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set in BEIR's format."""
    folder = tmp_path_factory.mktemp("sets") / "stdlib"
    documents, queries, judged = items()
    write_lines(folder / "corpus.jsonl", [json.dumps(each) for each in documents])
    write_lines(folder / "queries.jsonl", [json.dumps(each) for each in queries])
    rows = ["\t".join(map(str, each)) for each in judged]
    write_lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *rows])
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with `id`, splits beside the queries, one headerless qrels.tsv, all compressed."""
    folder = tmp_path_factory.mktemp("packed") / "stdlib"
    documents, queries, judged = items()

    def renamed(each: dict[str, Any], **more: str) -> str:
        return json.dumps({"id": each["_id"], **{k: v for k, v in each.items() if k != "_id"}, **more})

    write_lines(folder / "corpus.jsonl.gz", [renamed(each) for each in documents])
    other = {"_id": "learn", "text": "a query of another split"}
    asked = [renamed(each, split="test") for each in queries] + [renamed(other, split="train")]
    write_lines(folder / "queries.jsonl.gz", asked)
    rows = ["\t".join(map(str, each)) for each in [*judged, ("learn", documents[0]["_id"], 1)]]
    write_lines(folder / "qrels.tsv.gz", rows)
    return folder
