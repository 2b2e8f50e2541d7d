"""A collection keeps what it acknowledged and finds what brute force finds, through seal, build, compact and reopen."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import numpy as np
import pytest
from crc32c import crc32c
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, Plan, Record, Stage
from nestvec.engine.schema import CollectionConfig, Metric
from nestvec.engine.storage.catalog import change_facts

DIMS = 24
F32 = NDArray[np.float32]


def some(count: int, seed: int = 0, dims: int = DIMS) -> F32:
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


def records(vectors: F32, start: int = 0) -> list[Record]:
    return [Record(str(start + i), vector, {"n": start + i}) for i, vector in enumerate(vectors)]


def brute(vectors: F32, query: F32, k: int, metric: Metric) -> list[int]:
    wide, q = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        scores = wide @ q / np.linalg.norm(wide, axis=1)
    else:
        scores = wide @ q if metric == "dot" else -np.square(wide - q).sum(axis=1)
    return [int(row) for row in np.argsort(-scores, kind="stable")[:k]]


def found(collection: Collection, query: F32, k: int = 10, **options: object) -> list[int]:
    return [int(hit.id) for hit in collection.search(query, k=k, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_exact_search_is_brute_force_growing_sealed_mixed_and_compacted(tmp_path: Path, metric: Metric) -> None:
    vectors = some(1300)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS, metric=metric)
        collection.upsert(records(vectors[:700]))
        query = some(1, 9)[0]
        assert found(collection, query, exact=True) == brute(vectors[:700], query, 10, metric)
        assert collection.seal().rows == 700
        collection.upsert(records(vectors[700:], 700))
        assert found(collection, query, exact=True) == brute(vectors, query, 10, metric)
        assert collection.seal().generation == 1
        assert collection.compact().segments_before == 2
        assert found(collection, query, exact=True) == brute(vectors, query, 10, metric)
        collection.verify()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_get_gives_the_user_s_scale_back(tmp_path: Path, metric: Metric, dtype: nestvec.engine.schema.Dtype) -> None:
    vectors = some(1200) * np.linspace(0.1, 9, 1200, dtype=np.float32)[:, None]
    vectors *= np.linspace(0.02, 1, DIMS, dtype=np.float32)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS, metric=metric, granularities=(4, DIMS), dtype=dtype)
        report = collection.build([Batch(0, vectors=vectors)], rotate="pca")
        assert report.rotated
        collection.upsert([Record("new", vectors[5])])
        bound = 1e-5 if dtype == "float32" else 1e-2
        for id, row in (("0", 0), ("777", 777), ("new", 5)):
            got = collection.get([id], with_vector=True)[0].vector
            assert got is not None
            np.testing.assert_allclose(got, vectors[row], atol=bound * float(np.linalg.norm(vectors[row])))


@pytest.mark.parametrize("rows", [0, 1, 999, 1000, 1001])
def test_any_number_of_rows_survives_seal_and_reopen(tmp_path: Path, rows: int) -> None:
    vectors = some(rows)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        collection.upsert(records(vectors))
        assert collection.seal().generation == (1 if rows >= 1000 else None)
    with nestvec.open(tmp_path / "db", create=False) as database:
        collection = database.collection("c")
        assert collection.count() == rows
        assert len(collection.search(some(1)[0], k=10)) == min(10, rows)
        assert collection.compact(retrain=True).rows == rows


def test_auto_rotation_is_used_where_short_prefixes_are_poor(tmp_path: Path) -> None:
    vectors = some(3000) * np.linspace(0.05, 1, DIMS, dtype=np.float32) ** 2
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS, granularities=(8, DIMS))
        report = collection.build([Batch(0, vectors=vectors)])
        assert report.rotated
        assert report.prefix_recall is not None
        assert report.prefix_recall > 0.5
        query = vectors[17]
        assert found(collection, query, exact=True) == brute(vectors, query, 10, "cosine")
        assert found(collection, query)[0] == 17
        collection.upsert([Record("3000", query * 2)])
        assert set(found(collection, query, k=2)) == {17, 3000}
        assert collection.seal().rows == 1
        assert collection.compact(retrain=True).rows == 3001
        assert found(collection, query, k=2, exact=True) == [17, 3000]


def test_upsert_replaces_and_delete_is_final(tmp_path: Path) -> None:
    vectors = some(50)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        collection.upsert(records(vectors))
        collection.seal()
        collection.upsert([Record("3", vectors[4], {"new": True}, "text")])
        assert collection.delete(["4", "5", "absent"]) == 2
        for step in (lambda: None, collection.seal, collection.compact):
            step()
            assert collection.count() == 48
            hit = collection.search(vectors[4], k=1, with_vector=True)[0]
            assert (hit.id, hit.payload, hit.text) == ("3", {"new": True}, "text")
            assert not {4, 5} & set(found(collection, vectors[4], k=50))
            assert collection.get(["4"]) == []


def test_a_batch_with_one_bad_record_changes_nothing(tmp_path: Path) -> None:
    good = Record("a", some(1)[0])
    bad: list[Record] = [
        Record("", good.vector),
        Record("x\n", good.vector),
        Record("x" * 257, good.vector),
        Record("\ud800", good.vector),
        Record("b", np.zeros(DIMS, np.float32)),
        Record("b", np.full(DIMS, np.nan, np.float32)),
        Record("b", np.ones(DIMS + 1, np.float32)),
        Record("b", None),
        Record("a", good.vector),
        Record("b", good.vector, {"x": float("nan")}),
        Record("b", good.vector, {"x": "y" * 70000}),
        Record("b", good.vector, {1: 2}),  # type: ignore[dict-item]
    ]
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        for record in bad:
            with pytest.raises(nestvec.InvalidRecord) as caught:
                collection.upsert([good, record])
            assert caught.value.position == 1
        assert collection.count() == 0
        with pytest.raises(nestvec.InvalidRecord, match="24 dims, got 25"):
            collection.upsert([bad[6]])


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2, metric="dot", dtype="float16")
        with pytest.raises(nestvec.InvalidRecord, match="float16"):
            collection.upsert([Record("a", np.array([1e5, 0], np.float32))])


def test_a_search_always_gives_k_hits_and_says_when_it_widened(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        vectors = some(2500)
        collection.build([Batch(0, vectors=vectors)])
        narrow = Plan("soar", 1, (Stage(DIMS, 1000),))
        held = len(collection.search(vectors[0], k=40, plan=narrow))
        wider = collection.search(vectors[0], k=100, plan=narrow)
        assert (held, len(wider), wider.plan.route) == (40, 100, "soar")
        assert wider.plan.probes > 1
        hits = collection.search(vectors[0], k=1000, plan=narrow)
        assert (len(hits), hits.plan.route) == (1000, "exact")
        assert hits.work.codes >= wider.work.codes > 0
        assert hits.work.rows > 2500
        collection.delete([str(i) for i in range(2495)])
        assert len(collection.search(vectors[0], k=10)) == 5


@pytest.mark.parametrize(
    "query",
    [
        {"vector": [1.0]},
        {"vector": [[1.0] * DIMS]},
        {"vector": [float("nan")] * DIMS},
        {"vector": [0.0] * DIMS},
        {},
        {"text": "no encoder"},
        {"vector": [1.0] * DIMS, "k": 0},
        {"vector": [1.0] * DIMS, "k": 1001},
        {"vector": [1.0] * DIMS, "text": "both"},
        {"vector": ["x"] * DIMS},
        {"vector": [1.0] * DIMS, "plan": Plan("soar", 1, (Stage(7, 10),))},
    ],
)
def test_unusable_queries_are_invalid_input(tmp_path: Path, query: dict[str, object]) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        with pytest.raises(nestvec.InvalidInput):
            collection.search(**query)  # type: ignore[arg-type]


def test_build_rejects_go_to_a_file_or_stop_the_build(tmp_path: Path) -> None:
    vectors = some(10)
    vectors[4] = np.nan
    ids = [str(i) for i in range(10)]
    ids[7] = "0"
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        with pytest.raises(nestvec.InvalidRecord, match=r"row 4 .*NaN"):
            collection.build([Batch(0, ids, vectors)])
        assert collection.count() == 0
        batches = [Batch(0, ids[:5], vectors[:5]), Batch(5, ids[5:], vectors[5:])]
        report = collection.build(batches, rejects=tmp_path / "bad.jsonl")
        assert (report.rows, report.rejected, collection.count()) == (8, 2, 8)
        lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        assert [(line["row"], line["id"]) for line in lines] == [(4, "4"), (7, "0")]
        with pytest.raises(nestvec.InvalidRecord, match="already holds"):
            collection.build([Batch(0, vectors=some(1))])
        with pytest.raises(nestvec.InvalidInput, match="24 dims, got 3"):
            collection.build([Batch(0, vectors=some(1, dims=3))])
        assert not list((tmp_path / "db").rglob("tmp-*"))


@pytest.mark.parametrize("earlier", ["nothing", "an id of this build", "an overlapping batch", "a record"])
def test_row_numbers_as_ids_are_refused_where_they_exist_already(tmp_path: Path, earlier: str) -> None:
    vectors = some(12)
    batches = [Batch(0, vectors=vectors[:5]), Batch(5, vectors=vectors[5:])]
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        if earlier == "an id of this build":
            batches = [Batch(0, ["x", "7", "y", "z", "8"], vectors[:5]), Batch(5, vectors=vectors[5:])]
        if earlier == "an overlapping batch":
            batches = [batches[1], Batch(3, vectors=vectors[:5])]
        if earlier == "a record":
            collection.upsert([Record("7", vectors[0])])
        report = collection.build(batches, rejects=tmp_path / "bad.jsonl")
        refused = [json.loads(line)["id"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        expected = {"an id of this build": ["7", "8"], "an overlapping batch": ["5", "6", "7"], "a record": ["7"]}
        assert refused == expected.get(earlier, [])
        assert report.rows == sum(len(batch.vectors) for batch in batches if batch.vectors is not None) - len(refused)
        assert collection.get(["9"], with_vector=True)[0].payload is None
        collection.verify()


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)

        def interrupt(stage: str, done: int, total: int | None) -> None:
            if stage == "assign":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collection.build([Batch(0, vectors=some(1500))], progress=interrupt)
        root = tmp_path / "db" / "collections" / "000001"
        assert not [path for name in ("segments", "generations", "postings") for path in (root / name).iterdir()]
        assert not list(root.glob("tmp-*"))
        assert collection.build([Batch(0, vectors=some(1500))]).rows == 1500


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_damaged_postings_are_quarantined_and_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "db" / "collections" / "000001"
    vectors = some(2200)
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=DIMS).build([Batch(0, vectors=vectors)])
    flip(root / "postings" / "1-1" / "codes.bin", 10)
    for expected in (1, 0):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "nestvec"), nestvec.open(tmp_path / "db") as database:
            assert found(database.collection("c"), vectors[3])[0] == 3
            database.collection("c").verify()
        assert sum("codes.bin" in record.getMessage() for record in caplog.records) == expected
    assert len(list((root / "quarantine").iterdir())) == 1


def test_damaged_int8_rows_are_quarantined_and_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "db" / "collections" / "000001"
    vectors = some(2200)
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=DIMS).build([Batch(0, vectors=vectors)])
        answers = [found(database.collection("c"), vector) for vector in vectors[:5]]
    good = (root / "postings" / "1-1" / "rescore.bin").read_bytes()
    for damage in ("flipped", "missing"):
        if damage == "flipped":
            flip(root / "postings" / "1-1" / "rescore.bin", 10)
        else:
            (root / "postings" / "1-1" / "rescore.bin").unlink()
        with caplog.at_level(logging.WARNING, "nestvec"), nestvec.open(tmp_path / "db") as database:
            assert [found(database.collection("c"), vector) for vector in vectors[:5]] == answers
            database.collection("c").verify()
        assert (root / "postings" / "1-1" / "rescore.bin").read_bytes() == good
    assert sum("rescore.bin" in record.getMessage() for record in caplog.records) == 2
    assert len(list((root / "quarantine").iterdir())) == 2


@pytest.mark.parametrize("room", [0, 1 << 40])
def test_an_index_answers_alike_mapped_and_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    vectors = some(2200)
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=DIMS, metric="l2").build([Batch(0, vectors=vectors)])
        expected = [found(database.collection("c"), vector) for vector in vectors[:5]]
    monkeypatch.setattr("nestvec.engine.keeper.resident_room", lambda: room)
    with nestvec.open(tmp_path / "db") as database:
        assert [found(database.collection("c"), vector) for vector in vectors[:5]] == expected


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_without_int8_rows_the_index_is_smaller_and_stays_so(tmp_path: Path, metric: Metric) -> None:
    vectors = some(2200)
    with nestvec.open(tmp_path / "db") as database:
        full = database.create_collection("full", dims=DIMS, metric=metric)
        lean = database.create_collection("lean", dims=DIMS, metric=metric)
        full.build([Batch(0, vectors=vectors)], calibrate=False)
        lean.build([Batch(0, vectors=vectors)], rescore=False, calibrate=False)
        per_row = 64 + (4 if metric == "l2" else 0)
        assert full.info().index_bytes - lean.info().index_bytes == 2200 * per_row
        assert {stage.rows for stage in full.search(vectors[3]).plan.stages} == {"int8"}
        assert {stage.rows for stage in lean.search(vectors[3]).plan.stages} == {"stored"}
        for _ in range(2):
            hits = lean.search(vectors[3], plan=Plan("soar", 8, (Stage(DIMS, 100),)))
            assert int(hits[0].id) == found(full, vectors[3])[0]
            with pytest.raises(nestvec.InvalidInput, match="no int8 rows"):
                lean.search(vectors[3], plan=Plan("soar", 4, (Stage(64, 100, rows="int8"),)))
            lean.compact(retrain=True)
        with pytest.raises(nestvec.InvalidInput, match="int8 rows of 64 dims"):
            full.search(vectors[3], plan=Plan("soar", 4, (Stage(128, 100, rows="int8"),)))


def test_a_generation_of_another_release_is_named_and_searched_exactly_until_retrained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "db" / "collections" / "000001"
    vectors = some(2200)
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=DIMS, metric="dot").build([Batch(0, vectors=vectors)])
    _age(root / "generations" / "1", root / "catalog.sqlite")
    with caplog.at_level(logging.WARNING, "nestvec"), nestvec.open(tmp_path / "db") as database:
        collection = database.collection("c")
        assert "of another release" in caplog.text
        collection.verify()
        collection.upsert([Record("2200", vectors[7] * 2)])
        hits = collection.search(vectors[7])
        assert (hits[0].id, hits.plan.route, hits.generation) == ("2200", "exact", 1)
        assert collection.info().generation == 1
        assert collection.seal().rows == 1
        assert collection.compact(retrain=True).rows == 2201
        hits = collection.search(vectors[7], plan=Plan("soar", 8, (Stage(DIMS, 100),)))
        assert (hits[0].id, hits.plan.route, hits.generation) == ("2200", "soar", 2)


def _age(path: Path, of_catalog: Path) -> None:
    """Make a published generation one of an earlier format: what stands in its manifest, and in the catalog."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["meta"]["facts"]["version"] = 0
    data = json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(data)
    connection = apsw.Connection(str(of_catalog))
    connection.execute("UPDATE generation SET manifest_crc=?", (crc32c(data),))
    connection.close()


def test_damaged_segments_and_records_are_named(tmp_path: Path) -> None:
    root = tmp_path / "db" / "collections" / "000001"
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        collection.upsert(records(some(100)))
        collection.seal()
        flip(root / "segments" / "1" / "vectors.bin", 5)
        with pytest.raises(nestvec.Damaged, match=r"vectors\.bin: block 0"):
            collection.verify()
    flip(root / "segments" / "1" / "vectors.bin", 5)
    for name in ("manifest.json", "seqs.bin", "vectors.bin", "norms.bin"):
        flip(root / "segments" / "1" / name, 5)
        with nestvec.open(tmp_path / "db") as database, pytest.raises(nestvec.Damaged, match=name):
            database.collection("c")
        flip(root / "segments" / "1" / name, 5)
    (root / "catalog.sqlite").unlink()
    with nestvec.open(tmp_path / "db") as database, pytest.raises(nestvec.Damaged, match=r"catalog\.sqlite"):
        database.collection("c")


def test_searches_go_on_while_others_write_seal_and_compact(tmp_path: Path) -> None:
    vectors = some(600)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        collection.upsert(records(vectors[:100]))

        def search(turn: int) -> None:
            for _ in range(60):
                hits = collection.search(vectors[turn], k=100)
                assert len({hit.id for hit in hits}) == 100
                assert hits[0].id == str(turn)

        def write() -> None:
            for start in range(100, 600, 50):
                collection.upsert(records(vectors[start : start + 50], start))
                collection.upsert(records(vectors[start : start + 50], start))
                collection.seal()
                collection.compact()

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(write), *(pool.submit(search, turn) for turn in range(3))]:
                future.result()
        assert collection.count() == 600
        assert found(collection, vectors[7], exact=True) == brute(vectors, vectors[7], 10, "cosine")


def test_texts_are_encoded_and_another_encoder_is_refused(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder="static")
        collection.upsert([Record("a", text="open a file for reading"), Record("b", text="sort a list of numbers")])
        collection.build([Batch(0, ["d"], None, ["draw a triangle on the screen"])])
        hit = collection.search(text="sorting numbers", k=1)[0]
        assert (hit.id, hit.text) == ("b", "sort a list of numbers")
        assert collection.search(text="triangle", k=1)[0].id == "d"
    config = CollectionConfig(collection.config.dims, encoder="static", encoder_fingerprint="other")
    connection = apsw.Connection(str(tmp_path / "db" / "collections" / "000001" / "catalog.sqlite"))
    change_facts(connection, config=json.dumps(config.to_json()))
    connection.close()
    with nestvec.open(tmp_path / "db") as database, pytest.raises(nestvec.EncoderMismatch, match="other"):
        database.collection("c").search(text="numbers")


WRITER = """
import sys, numpy as np, nestvec
path, who = sys.argv[1:]
rng = np.random.default_rng(int(who))
with nestvec.open(path) as database:
    collection = database.collection("c")
    for i in range(20):
        collection.upsert([nestvec.Record(f"{who}-{i}-{j}", rng.normal(size=24)) for j in range(5)])
        if i % 7 == 6:
            try:
                collection.seal()
                collection.compact()
            except nestvec.Busy:
                pass
"""


def test_four_processes_lose_nothing_and_see_each_other_at_once(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        command = [sys.executable, "-c", WRITER, str(tmp_path / "db")]
        children = [subprocess.Popen([*command, str(who)]) for who in range(4)]
        assert [child.wait(60) for child in children] == [0] * 4
        assert collection.count() == 400
        ids = [f"{who}-{i}-{j}" for who in range(4) for i in range(20) for j in range(5)]
        assert len(collection.get(ids, with_vector=True)) == 400
        assert len(collection.search(some(1)[0], k=400)) == 400
        with nestvec.open(tmp_path / "db") as other:
            theirs = other.collection("c")
            assert theirs.delete(ids[:1]) == 1
            assert collection.count() == 399
            theirs.seal()
            assert len(collection.search(some(1)[0], k=1000)) == 399


def test_a_segment_that_is_half_removed_under_a_reader_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction in another process deletes the files of old segments one by one."""
    from nestvec.engine import keeper

    with nestvec.open(tmp_path / "db") as database, nestvec.open(tmp_path / "db") as other:
        collection = database.create_collection("c", dims=DIMS)
        for start in (0, 50):
            collection.upsert(records(some(50, start), start))
            collection.seal()
        real, moments = keeper.open_segment, list[Path]()

        def raced(directory: Path, *rest: object) -> object:
            if not moments:
                moments.append(directory)
                manifest = (directory / "manifest.json").read_bytes()
                with ThreadPoolExecutor(1) as apart:
                    apart.submit(collection.compact).result(30)
                directory.mkdir()
                (directory / "manifest.json").write_bytes(manifest)
            return real(directory, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(keeper, "open_segment", raced)
        assert len(other.collection("c").search(some(1)[0], k=200)) == 100
        assert moments
