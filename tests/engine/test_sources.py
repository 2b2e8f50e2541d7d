"""Reading files of vectors and texts in batches."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestvec.engine.sources import Source, open_source
from nestvec.errors import InvalidInput, MissingDependency

VECTORS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def write_vecs(path: Path, vectors: np.ndarray) -> Path:
    heads = np.full((len(vectors), 1), vectors.shape[1], "<i4").view(np.uint8)
    path.write_bytes(np.hstack([heads, np.ascontiguousarray(vectors).view(np.uint8)]).tobytes())
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), path)
    return path


def all_vectors(source: Source) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in source])


def as_records() -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "vector": row.tolist(), "payload": {"n": i}} for i, row in enumerate(VECTORS)]


def make(path: Path) -> Path:
    kind = path.name.split(".", 1)[1]
    if kind == "npy":
        np.save(path, VECTORS)
    elif kind == "npz":
        np.savez_compressed(path, data=VECTORS, names=np.arange(3))
    elif kind == "fvecs":
        write_vecs(path, VECTORS)
    elif kind == "parquet":
        write_parquet(path, {"vector": VECTORS.tolist(), "id": [str(i) for i in range(10)]})
    else:
        write_jsonl(path, as_records())
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "fvecs", "parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("batch_rows", [1, 3, 10, 4096])
def test_every_format_gives_the_vectors_back_in_bounded_batches(tmp_path: Path, kind: str, batch_rows: int) -> None:
    source = open_source([make(tmp_path / f"data.{kind}")], batch_rows=batch_rows)
    batches = list(source)
    assert source.dims == 4
    assert source.rows in (10, None)
    assert [batch.start for batch in batches] == list(range(0, 10, batch_rows))
    assert all(len(batch.vectors) <= batch_rows and batch.vectors.dtype == np.float32 for batch in batches)
    np.testing.assert_array_equal(all_vectors(source), VECTORS)


@pytest.mark.parametrize("kind", ["npy", "jsonl.gz"])
def test_several_files_number_their_rows_on(tmp_path: Path, kind: str) -> None:
    source = open_source([make(tmp_path / f"{name}.{kind}") for name in "ab"], batch_rows=7)
    assert [batch.start for batch in source] == [0, 7, 10, 17]
    np.testing.assert_array_equal(all_vectors(source), np.vstack([VECTORS, VECTORS]))


def test_bytes_of_bvecs_become_floats(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(all_vectors(open_source([write_vecs(tmp_path / "a.bvecs", vectors)])), vectors)


def test_ids_and_payloads_come_with_their_rows(tmp_path: Path) -> None:
    (batch,) = open_source([write_jsonl(tmp_path / "a.jsonl", as_records())])
    assert batch.ids == [f"r{i}" for i in range(10)]
    assert batch.payloads == [{"n": i} for i in range(10)]
    assert batch.texts is None


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_title_and_text_are_joined_unless_columns_are_named(tmp_path: Path, kind: str) -> None:
    rows = [{"id": 1, "title": "Zip", "text": "Archives.", "n": 5}, {"id": 2, "title": "", "text": "Alone.", "n": 6}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        write_parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    (batch,) = open_source([path])
    assert (batch.ids, batch.texts, batch.vectors) == (["1", "2"], ["Zip: Archives.", "Alone."], None)
    (named,) = open_source([path], text_column="text", payload_columns=["title", "n"])
    assert named.texts == ["Archives.", "Alone."]
    assert named.payloads == [{"title": "Zip", "n": 5}, {"title": "", "n": 6}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "x", "vector": [1, 2, 3]}, "expected 4 numbers, got 3"),
        ({"id": "x", "vector": [1, 2, "3", 4]}, "expected numbers, got a str"),
        ({"id": "x", "vector": [1, True, 3, 4]}, "expected numbers, got a bool"),
        ({"id": "x", "vector": None}, "got nothing"),
        ({"id": "x"}, "got nothing"),
        ({"id": "x", "vector": [1, 2, 3, 10**400]}, "too large"),
        ({"id": None, "vector": [1, 2, 3, 4]}, "id: expected"),
        ({"id": "x", "vector": [1, 2, 3, 4], "payload": [1]}, "payload: expected an object"),
    ],
)
def test_one_unusable_row_is_marked_and_its_neighbours_survive(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    rows = as_records()
    rows.insert(5, row)
    source = open_source([write_jsonl(tmp_path / "a.jsonl", rows)], batch_rows=4)
    batches = list(source)
    assert [batch.bad.keys() for batch in batches] == [set(), {1}, set()]
    assert reason in batches[1].bad[1]
    assert np.isnan(batches[1].vectors[1]).all()
    np.testing.assert_array_equal(np.delete(all_vectors(source), 5, axis=0), VECTORS)


def test_an_unusable_row_of_texts_has_no_text(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "one"}, {"id": 1.5, "text": "two"}, {"id": "c", "text": None}, {"id": "d", "text": 4}]
    (batch,) = open_source([write_jsonl(tmp_path / "a.jsonl", rows)])
    assert batch.texts == ["one", "", "", ""]
    assert batch.bad.keys() == {1, 2, 3}


def test_ragged_and_null_parquet_lists_are_marked(tmp_path: Path) -> None:
    lists = [[1.0, 2.0], None, [3.0], [4.0, None], [5.0, 6.0]]
    (batch,) = open_source([write_parquet(tmp_path / "a.parquet", {"embedding": lists})])
    assert set(batch.bad) == {1, 2, 3}
    np.testing.assert_array_equal(batch.vectors[[0, 4]], [[1, 2], [5, 6]])


def test_fixed_size_lists_in_parquet_know_their_dims(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    for kind in (arrow.float16(), arrow.float32(), arrow.float64()):
        flat = arrow.array(VECTORS.ravel().astype(kind.to_pandas_dtype()))
        column = arrow.FixedSizeListArray.from_arrays(flat, 4)
        source = open_source([write_parquet(tmp_path / "a.parquet", {"embedding": column})], batch_rows=3)
        assert (source.dims, source.rows) == (4, 10)
        np.testing.assert_allclose(all_vectors(source), VECTORS, atol=2e-3)


@pytest.mark.parametrize("line", ['{"id": ', "[1, 2]", '{"vector": [NaN]}', "\udcff"])
def test_a_broken_json_line_is_named(tmp_path: Path, line: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", as_records())
    path.write_bytes(path.read_bytes() + b"\n" + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(InvalidInput, match=r"a\.jsonl, line 12"):
        list(open_source([path]))


@pytest.mark.parametrize("kind", ["npy", "npz", "fvecs", "parquet", "jsonl.gz"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / f"data.{kind}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidInput, match=rf"data\.{kind}"):
        list(open_source([path]))


def test_vecs_whose_rows_differ_are_named_with_the_row(tmp_path: Path) -> None:
    path = write_vecs(tmp_path / "a.fvecs", VECTORS)
    content = bytearray(path.read_bytes())
    content[20 * 6 : 20 * 6 + 4] = (5).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.fvecs: row 6: expected 4 dims, got 5"):
        list(open_source([path]))


def test_objects_in_numpy_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=np.array([[{}]], object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InvalidInput, match=name.replace(".", r"\.")):
            open_source([tmp_path / name])


def test_errors_about_columns_and_members_list_what_was_found(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"name": "x", "body": "y"}])
    with pytest.raises(InvalidInput, match="found: name, body"):
        open_source([path])
    with pytest.raises(InvalidInput, match="no column 'vec'; found: name, body"):
        open_source([path], vector_column="vec")
    np.savez(tmp_path / "a.npz", a=VECTORS, b=VECTORS)
    with pytest.raises(InvalidInput, match=r"found: a \[10, 4\], b \[10, 4\]"):
        open_source([tmp_path / "a.npz"])
    assert open_source([tmp_path / "a.npz"], vector_column="b").dims == 4
    with pytest.raises(InvalidInput, match="no column 'key'"):
        open_source([make(tmp_path / "b.npy")], id_column="key")


def test_missing_unknown_and_disagreeing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        open_source([tmp_path / "none.npy"])
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(InvalidInput, match=r"a\.csv: expected a file ending in \.npy"):
        open_source([tmp_path / "a.csv"])
    with pytest.raises(InvalidInput, match="at least one"):
        open_source([])
    np.save(tmp_path / "wide.npy", np.ones((3, 5)))
    with pytest.raises(InvalidInput, match=r"wide\.npy has vectors of 5 dims, but .* vectors of 4 dims"):
        open_source([make(tmp_path / "b.npy"), tmp_path / "wide.npy"])
    np.save(tmp_path / "flat.npy", np.ones(3))
    with pytest.raises(InvalidInput, match=r"flat\.npy: expected numbers \[rows, dims\], got float64 \[3\]"):
        open_source([tmp_path / "flat.npy"])


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependency, match=r"nestvec\[parquet\]"):
        open_source([tmp_path / "a.parquet"])
