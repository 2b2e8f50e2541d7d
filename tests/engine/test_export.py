"""Export, and the way back: build and import give equal ids, payloads, texts and vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec import Record
from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.engine.jobs import Cancelled
from nestvec.engine.sources import open_source

DIMS, ROWS = 8, 2500
BLOCK = 1000
PAYLOADS = [None, {}, {"n": 1}, {"n": "eins", "deep": {"list": [1, None, "ä"]}}, {"big": 2**63 - 1, "f": 0.1}]
TEXTS = [None, "", "text", "zwei\nZeilen \N{SNOWMAN}"]


def record(number: int, vector: np.ndarray) -> Record:
    return Record(f"id-\N{SNOWMAN}{number}", vector, PAYLOADS[number % 5], TEXTS[number % 4])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.engine.export._BLOCK_ROWS", BLOCK)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with nestvec.open(tmp_path / "db") as database:
        yield database


def fill(database: Database, metric: str = "dot", dtype: str = "float32") -> Collection:
    """Two segments, growing and dead rows."""
    collection = database.create_collection("c", dims=DIMS, metric=metric, dtype=dtype)  # type: ignore[arg-type]
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMS)).astype(np.float32)
    for start in range(0, ROWS, 500):
        collection.upsert([record(i, vectors[i]) for i in range(start, start + 500)])
        if start in (500, 1500):
            collection.seal()
    collection.delete([f"id-\N{SNOWMAN}{i}" for i in (0, 700, 2400)])
    return collection


def contents(collection: Collection) -> list[tuple[object, ...]]:
    found, cursor = [], None
    while True:
        page = collection.scroll(cursor=cursor, limit=1000, with_vector=True)
        for each in page.records:
            assert each.vector is not None
            found.append((each.id, each.payload, each.text, each.vector.tobytes()))
        cursor = page.cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("way", ["build", "import"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("metric", "dtype"), [("dot", "float32"), ("l2", "float16")])
def test_out_and_back_again_everything_is_equal(
    database: Database, tmp_path: Path, way: str, suffix: str, metric: str, dtype: str
) -> None:
    collection = fill(database, metric, dtype)
    path = tmp_path / f"out.{suffix}"
    report = collection.export(path)
    assert (report.path, report.format, report.rows) == (str(path), suffix, ROWS - 3)
    assert report.bytes == path.stat().st_size
    again = database.create_collection("again", dims=DIMS, metric=metric, dtype=dtype)  # type: ignore[arg-type]
    source = open_source([path], batch_rows=700)
    if way == "build":
        assert again.build(source, rotate="none").rows == ROWS - 3
    else:
        assert again.import_batches(source) == ROWS - 3
    assert contents(again) == contents(collection)


def test_cosine_comes_back_to_a_rounding(database: Database, tmp_path: Path) -> None:
    """Unit vectors and norms are what is stored, so the second rounding may move the last bit."""
    collection = fill(database, "cosine")
    collection.export(tmp_path / "out.parquet")
    again = database.create_collection("again", dims=DIMS)
    again.build(open_source([tmp_path / "out.parquet"]))
    ids = [str(row[0]) for row in contents(collection)]
    one, two = collection.get(ids, with_vector=True), again.get(ids, with_vector=True)
    np.testing.assert_allclose([r.vector for r in one], [r.vector for r in two], rtol=1e-5, atol=1e-6)


def test_npz_keeps_ids_and_npy_rows(database: Database, tmp_path: Path) -> None:
    collection = fill(database)
    for suffix in ("npz", "npy"):
        assert collection.export(tmp_path / f"out.{suffix}").rows == ROWS - 3
    wanted = [(id, vector) for id, _, _, vector in contents(collection)]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert archive["ids"].tolist() == [id for id, _ in wanted]
        np.testing.assert_array_equal(archive["vectors"], np.load(tmp_path / "out.npy", allow_pickle=False))
    again = database.create_collection("again", dims=DIMS, metric="dot")
    again.build(open_source([tmp_path / "out.npz"], batch_rows=999), rotate="none")
    assert [(id, vector) for id, _, _, vector in contents(again)] == wanted


def test_a_filter_leaves_only_what_matches(database: Database, tmp_path: Path) -> None:
    collection = fill(database)
    filter = {"field": "n", "eq": 1}
    report = collection.export(tmp_path / "some", format="jsonl", filter=filter)
    lines = [json.loads(line) for line in (tmp_path / "some").read_text().splitlines()]
    assert report.rows == len(lines) == collection.count(filter=filter) > 0
    assert {line["payload"]["n"] for line in lines} == {1}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npz", "npy"])
def test_nothing_exports_as_nothing(database: Database, tmp_path: Path, suffix: str) -> None:
    assert database.create_collection("c", dims=3).export(tmp_path / f"out.{suffix}").rows == 0


def test_it_is_one_instant_whatever_is_written_meanwhile(database: Database, tmp_path: Path) -> None:
    collection = fill(database)
    before = {row[0] for row in contents(collection)}

    def progress(stage: str, done: int, total: int | None) -> None:
        if done == BLOCK:
            collection.upsert([Record("late", np.ones(DIMS))])
            collection.delete([f"id-\N{SNOWMAN}{i}" for i in range(2000, 2100)])
            collection.seal()
            collection.compact()

    collection.export(tmp_path / "out.jsonl", progress=progress)
    ids = {json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()}
    assert ids == before


def test_stopped_it_leaves_the_older_file_and_nothing_else(database: Database, tmp_path: Path) -> None:
    collection, folder = fill(database), tmp_path / "out"
    folder.mkdir()
    (folder / "out.parquet").write_text("older")

    def progress(stage: str, done: int, total: int | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        collection.export(folder / "out.parquet", progress=progress)
    assert [path.name for path in folder.iterdir()] == ["out.parquet"]
    assert (folder / "out.parquet").read_text() == "older"
    collection.export(folder / "out.parquet")
    assert (folder / "out.parquet").read_bytes()[:4] == b"PAR1"


@pytest.mark.parametrize("name", ["out", "out.csv", "out.parquet/x.parquet", "absent/out.jsonl", ""])
def test_places_and_formats_that_cannot_be_are_refused(database: Database, tmp_path: Path, name: str) -> None:
    collection = database.create_collection("c", dims=3)
    with pytest.raises(nestvec.InvalidInput):
        collection.export(tmp_path / name)
    with pytest.raises(nestvec.InvalidInput, match="csv"):
        collection.export(tmp_path / "x.jsonl", format="csv")


def test_an_import_replaces_what_is_there_and_names_the_bad_row(database: Database, tmp_path: Path) -> None:
    collection = fill(database)
    collection.export(tmp_path / "out.jsonl")
    collection.upsert([Record("id-\N{SNOWMAN}1", np.ones(DIMS), {"new": True}), Record("beside", np.ones(DIMS))])
    done: list[int] = []
    rows = collection.import_batches(
        open_source([tmp_path / "out.jsonl"]), progress=lambda _, rows, __: done.append(rows)
    )
    assert rows == done[-1] == ROWS - 3
    assert collection.count() == ROWS - 2
    assert collection.get(["id-\N{SNOWMAN}1"])[0].payload == {}
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    lines[1500] = json.dumps({"id": "bad", "vector": [1, 2], "text": None, "payload": None})
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(nestvec.InvalidRecord, match=r"row 1500 \(id 'bad'\)"):
        collection.import_batches(open_source([tmp_path / "bad.jsonl"]))
    assert collection.count() == ROWS - 2
