"""A reader gives a collection's own answers as arrays, and keeps to its instant."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import numpy as np
import pytest
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, Cut, Plan, Reader, Record, Stage
from nestvec.engine.schema import Metric

DIMS = 24
F32 = NDArray[np.float32]
NARROW = Plan("soar", 1, (Stage(DIMS, 1000),))


def some(count: int, seed: int = 0) -> F32:
    scale = np.linspace(1, 0.1, DIMS, dtype=np.float32)
    return np.random.default_rng(seed).normal(size=(count, DIMS)).astype(np.float32) * scale


def make(path: Path, metric: Metric, state: str) -> Collection:
    """2500 records in a state that a reader must cope with; ids are what brute force would count."""
    collection = nestvec.open(path).create_collection("c", dims=DIMS, metric=metric, granularities=(8, DIMS))
    rotate = "pca" if state == "rotated" else "none"
    vectors = some(2500)
    if state == "growing":
        collection.upsert([Record(str(i), vector) for i, vector in enumerate(vectors)])
        return collection
    first = 1500 if state in ("two segments", "with growing rows") else 2500
    collection.build([Batch(0, vectors=vectors[:first])], rotate=rotate)
    if first < 2500:
        collection.upsert([Record(str(i), vectors[i]) for i in range(first, 2500)])
    if state == "two segments":
        collection.seal()
    if state == "with deleted rows":
        collection.delete([str(i) for i in range(0, 2500, 3)])
    return collection


STATES = ["built", "rotated", "two segments", "with growing rows", "with deleted rows", "growing"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_a_reader_answers_as_its_collection_one_by_one_and_in_batches(
    tmp_path: Path, metric: Metric, state: str
) -> None:
    collection = make(tmp_path / "db", metric, state)
    queries = some(12, 5)
    plans = [None, Plan("exact"), NARROW, Plan("soar", 8, (Stage(8, 90), Stage(DIMS, 60)), shortlist=Cut(200, 0.5))]
    with collection.reader() as reader:
        assert len(reader) == collection.count()
        for plan in plans:
            hits = [collection.search(query, k=7, plan=plan) for query in queries]
            rows, scores = reader.search_batch(queries, k=7, plan=plan, threads=2)
            assert (rows.dtype, scores.dtype, rows.shape) == (np.int64, np.float32, (12, 7))
            for i, query in enumerate(queries):
                ids, one = [hit.id for hit in hits[i]], reader.search(query, k=7, plan=plan)
                assert reader.ids(one[0]) == ids == reader.ids(rows[i])
                np.testing.assert_array_equal(one[1], [hit.score for hit in hits[i]])
                np.testing.assert_array_equal(one[1], scores[i])
                np.testing.assert_array_equal(one[0], rows[i])
        assert reader.plan(7) == collection.search(queries[0], k=7).plan or state == "growing"


def test_rows_count_live_records_in_the_order_of_their_writing(tmp_path: Path) -> None:
    collection = make(tmp_path / "db", "dot", "built")
    with collection.reader() as reader:
        assert reader.ids([0, 17, 2499]) == ["0", "17", "2499"]
        assert reader.search(some(2500)[17], k=1, plan=Plan("exact"))[0].dtype == np.int64
    collection.delete(["0", "2"])
    collection.upsert([Record("1", some(1)[0])])
    with collection.reader() as reader:
        assert len(reader) == 2498
        assert reader.ids([0, 1, 2497]) == ["3", "4", "1"]
        assert reader.ids(np.arange(2498))[:2] == ["3", "4"]


def test_a_reader_sees_its_own_instant_whatever_is_written_later(tmp_path: Path) -> None:
    collection = make(tmp_path / "db", "dot", "with growing rows")
    query = some(1, 3)[0]
    with collection.reader() as reader:
        before = reader.search(query, k=20)
        ids = reader.ids(before[0])
        collection.delete(ids)
        collection.upsert([Record("new", query * 9)])
        collection.seal()
        collection.compact(retrain=True)
        for got, expected in zip(reader.search(query, k=20), before, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert reader.ids(before[0]) == ids
        with collection.reader() as later:
            assert later.ids(later.search(query, k=1)[0]) == ["new"]
            assert len(later) == 2481


def test_a_reader_widens_a_plan_that_finds_too_little(tmp_path: Path) -> None:
    collection = make(tmp_path / "db", "cosine", "built")
    with collection.reader() as reader:
        rows, scores = reader.search(some(1, 3)[0], k=1000, plan=NARROW)
        assert len(set(rows.tolist())) == 1000
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_array_equal(reader.search_batch(some(1, 3), k=1000, plan=NARROW)[0][0], rows)


def test_fewer_rows_than_k_are_followed_by_none(tmp_path: Path) -> None:
    collection = nestvec.open(tmp_path / "db").create_collection("c", dims=DIMS)
    with collection.reader() as reader:
        assert len(reader.search(some(1)[0])[0]) == 0
        assert reader.ids([]) == []
        assert reader.search_batch(some(3))[0].tolist() == [[-1] * 10] * 3
    collection.upsert([Record("a", some(1)[0]), Record("b", -some(1)[0])])
    with collection.reader() as reader:
        rows, scores = reader.search_batch(some(1), k=3)
        assert rows.tolist() == [[0, 1, -1]]
        assert scores[0, 2] == -np.inf
        assert reader.search_batch(np.empty((0, DIMS), np.float32))[0].shape == (0, 10)


QUERIES = {
    "a list": lambda query: query.tolist(),
    "float64": lambda query: query.astype(np.float64),
    "every other number": lambda query: np.repeat(query, 2)[::2],
    "a row of a map": lambda query: np.stack([query, query]).view(np.memmap)[1],
    "read-only": lambda query: np.frombuffer(query.tobytes(), np.float32),
    "tiny": lambda query: query * np.float32(1e-15),
}


@pytest.mark.parametrize("kind", QUERIES)
def test_queries_of_any_kind_that_a_collection_takes(tmp_path: Path, kind: str) -> None:
    collection = make(tmp_path / "db", "cosine", "built")
    with collection.reader() as reader:
        query = QUERIES[kind](some(1, 3)[0])
        assert reader.ids(reader.search(query)[0]) == [hit.id for hit in collection.search(query)]


@pytest.mark.parametrize(
    "call",
    [
        {"vector": np.full(DIMS, np.nan, np.float32)},
        {"vector": np.full(DIMS, np.inf, np.float32)},
        {"vector": np.full(DIMS, 1e19, np.float32)},
        {"vector": np.zeros(DIMS, np.float32)},
        {"vector": np.ones(DIMS + 1, np.float32)},
        {"vector": np.ones((1, DIMS), np.float32)},
        {"vector": ["x"] * DIMS},
        {"vector": np.ones(DIMS, np.float32), "k": 0},
        {"vector": np.ones(DIMS, np.float32), "k": 1001},
        {"vector": np.ones(DIMS, np.float32), "k": 2.5},
        {"vector": np.ones(DIMS, np.float32), "plan": Plan("soar", 1, (Stage(7, 10),))},
        {"vector": np.ones(DIMS, np.float32), "plan": Plan("soar", 1, (Stage(640, 10, rows="int8"),))},
    ],
)
def test_unusable_queries_are_invalid_input_cold_and_warm(tmp_path: Path, call: dict[str, object]) -> None:
    with make(tmp_path / "db", "cosine", "built").reader() as reader:
        for _ in range(2):
            with pytest.raises(nestvec.InvalidInput):
                reader.search(**call)  # type: ignore[arg-type]
            reader.search(some(1)[0])


def test_bad_batches_rows_and_threads_are_invalid_input(tmp_path: Path) -> None:
    with make(tmp_path / "db", "dot", "built").reader() as reader:
        bad = some(3)
        bad[1, 4] = np.nan
        for call in ({"vectors": bad}, {"vectors": some(1)[0]}, {"vectors": some(1), "threads": 0}):
            with pytest.raises(nestvec.InvalidInput):
                reader.search_batch(**call)  # type: ignore[arg-type]
        for rows in ([-1], [2500], [0.5], [[1]], "1"):
            with pytest.raises(nestvec.InvalidInput):
                reader.ids(rows)


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    collection = make(tmp_path / "db", "dot", "built")
    reader = collection.reader()
    reader.search(some(1)[0])
    reader.close()
    reader.close()
    for use in (lambda: reader.search(some(1)[0]), lambda: reader.search_batch(some(1)), lambda: reader.ids([0])):
        with pytest.raises(nestvec.NestvecError, match="closed"):
            use()
    with collection.reader() as reader:
        collection.close()
        with pytest.raises(nestvec.NestvecError, match="closed"):
            reader.ids([0])
    with pytest.raises(nestvec.NestvecError, match="closed"):
        collection.reader()


def test_a_reader_holds_sqlite_s_log_until_it_is_closed_or_forgotten(tmp_path: Path) -> None:
    collection = make(tmp_path / "db", "dot", "built")
    log = apsw.Connection(str(tmp_path / "db" / "collections" / "000001" / "catalog.sqlite"))

    def held() -> bool:
        collection.upsert([Record("new", some(1)[0])])
        return bool(log.execute("PRAGMA wal_checkpoint(TRUNCATE)").get[0])

    reader = collection.reader()
    assert held()
    reader.close()
    assert not held()
    reader = collection.reader()
    assert held()
    del reader
    assert not held()
    log.close()


def test_many_threads_share_a_reader(tmp_path: Path) -> None:
    queries = some(40, 5)
    with make(tmp_path / "db", "cosine", "built").reader() as reader:
        alone = [reader.ids(reader.search(query, k=1 + i % 9)[0]) for i, query in enumerate(queries)]

        def ask(i: int, shared: Reader = reader) -> list[str]:
            return shared.ids(shared.search(queries[i], k=1 + i % 9)[0])

        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                assert list(pool.map(ask, range(40))) == alone
