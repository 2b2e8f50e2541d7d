"""The files between steps: the same rows in either format, and sources of every kind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import nestvec
from nestvec.errors import InvalidInput
from nestvec.train import files
from nestvec.train.encoder.sources import SourceColumns, read_source
from nestvec.train.encoder.tables import Passage, Step, rows, write

ROW = {
    "id": "a/llm",
    "positive": "ü",
    "seed": "b",
    "negatives": ["c"],
    "doc_ids": ["ü", "b", "c"],
    "fused": [0.03, 0.02, 0.01],
    "judges": ["one", "two"],
    "scores": [[1.0, 0.5, -1e9], [3.0, 2.0, 0.25]],
}


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_a_table_reads_back_what_was_written(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    else:
        write(tmp_path, "judged", [ROW])  # an earlier table of the other format must go
        monkeypatch.setattr(files, "find_spec", lambda _: None)
    path = write(tmp_path, "judged", iter([ROW, {**ROW, "id": "b"}]))
    assert [each.name for each in tmp_path.iterdir()] == [f"judged{suffix}"] == [path.name]
    assert list(rows(tmp_path, "judged")) == [ROW, {**ROW, "id": "b"}]


def test_a_table_that_is_not_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no pairs\.parquet and no pairs\.jsonl"):
        list(rows(tmp_path, "pairs"))
    (tmp_path / "passages.jsonl").write_text('{"doc_id": "a", "text": "b"}\n')
    with pytest.raises(InvalidInput, match="title missing"):
        list(rows(tmp_path, "passages"))
    (tmp_path / "passages.jsonl").write_text('{"doc_id": "a", "title": "", "text": "b"}\n{"doc')
    with pytest.raises(InvalidInput, match="line 2"):
        list(rows(tmp_path, "passages"))


def test_a_failed_write_leaves_the_table_before(tmp_path: Path) -> None:
    write(tmp_path, "judged", [ROW])
    with pytest.raises(KeyError):
        write(tmp_path, "judged", [{**ROW, "id": "b"}, {"id": "c"}])
    assert list(rows(tmp_path, "judged")) == [ROW]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_step_is_done_until_its_settings_or_what_it_read_change(tmp_path: Path) -> None:
    passage = {"doc_id": "a", "title": "", "text": "b"}
    write(tmp_path, "passages", [passage])
    write(tmp_path, "judged", [ROW])

    def step(setting: int) -> Step:
        return Step(tmp_path, "relabel", {"setting": setting, "names": ("a",)}, ("passages",), ("judged",))

    assert step(1).finished() is None
    step(1).finish({"rows": 1})
    assert step(1).finished() == {"rows": 1}
    assert step(2).finished() is None
    write(tmp_path, "passages", [passage, {**passage, "doc_id": "c"}])
    assert step(1).finished() is None
    step(1).finish({"rows": 1})
    next(tmp_path.glob("judged.*")).unlink()
    assert step(1).finished() is None


def test_passages_come_from_files_folders_and_collections(tmp_path: Path) -> None:
    plain, beir = tmp_path / "plain.jsonl", tmp_path / "beir"
    plain.write_text('{"text": "one"}\n{"text": "  "}\n{"text": "two"}\n')
    beir.mkdir()
    with gzip.open(beir / "corpus.jsonl.gz", "wt") as file:
        file.write(json.dumps({"_id": "d1", "title": "Three", "text": "three", "metadata": {}}) + "\n")
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("held", dims=2)
        collection.upsert(
            [
                nestvec.Record("r1", [1.0, 0.0], {"title": "Four"}, "four"),  # type: ignore[arg-type]
                nestvec.Record("r2", [0.0, 1.0]),  # type: ignore[arg-type]
            ]
        )
    found = list(read_source([str(plain), str(beir), "collection:held"], db=tmp_path / "db"))
    assert found == [
        Passage("plain.jsonl#1", "", "one"),
        Passage("plain.jsonl#3", "", "two"),
        Passage("d1", "Three", "three"),
        Passage("r1", "Four", "four"),
    ]
    assert [each.document for each in found] == ["one", "two", "Three: three", "Four: four"]
    with pytest.raises(InvalidInput, match="comes twice"):
        list(read_source([str(beir), str(beir)]))


def test_columns_can_be_named_and_missing_ones_are_said(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"key": "k", "name": "N", "body": "words"}\n')
    assert list(read_source([str(path)], columns=SourceColumns("key", "name", "body"))) == [Passage("k", "N", "words")]
    with pytest.raises(InvalidInput, match="no column 'text'; found: key, name, body"):
        list(read_source([str(path)]))
    with pytest.raises(InvalidInput, match="does not exist"):
        list(read_source([str(tmp_path / "absent.jsonl")]))
    with pytest.raises(InvalidInput, match=r"corpus\.jsonl"):
        list(read_source([str(tmp_path)]))
    with pytest.raises(InvalidInput, match="needs the database"):
        list(read_source(["collection:x"]))


def test_rows_without_a_text_are_left_out_and_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": "a", "title": "T", "text": ""}\n{"id": "b", "text": "some words"}\n{"id": "c"}\n')
    assert [each.doc_id for each in read_source([str(path)])] == ["b"]
    path.write_text('{"id": "a", "title": "T", "text": ""}\n')
    with pytest.raises(InvalidInput, match="none has a text"):
        list(read_source([str(path)]))
    path.write_text('{"id": "a", "text": 7}\n')
    with pytest.raises(InvalidInput, match="row 1"):
        list(read_source([str(path)]))
