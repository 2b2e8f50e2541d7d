"""Collections whose index is another library's: the same promises through restart, writes, damage and absence."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, Cut, Plan, Record, Stage
from nestvec.engine.plan import library_plan
from nestvec.engine.schema import Metric
from nestvec.engine.storage import library_index
from nestvec.index.library.faiss import FaissConfig
from nestvec.index.library.scann import ScannConfig
from nestvec.index.library.search import LibraryConfig
from nestvec.server.wire import PlanBody

DIMS, ROWS = 24, 2600
FAISS = {"factory": "IVF24,PQ8x4fs", "dims": 16}
INSTALL = r"pip install 'nestvec\[scann\]'"
F32 = NDArray[np.float32]


def some(count: int, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    decay = 1.0 / np.sqrt(1.0 + np.arange(DIMS))
    centres = np.random.default_rng(42).standard_normal((30, DIMS)) * decay
    return (centres[rng.integers(30, size=count)] + 0.5 * rng.standard_normal((count, DIMS)) * decay).astype(np.float32)


def records(vectors: F32, start: int = 0) -> list[Record]:
    return [Record(str(start + i), vector, {"n": start + i}) for i, vector in enumerate(vectors)]


@contextmanager
def opened(path: Path, metric: Metric = "cosine") -> Iterator[Collection]:
    path.mkdir(exist_ok=True)
    with nestvec.open(path / "db") as database:
        yield database.create_collection("c", dims=DIMS, metric=metric, exist_ok=True)


def build(collection: Collection, vectors: F32, route: str, **settings: object) -> None:
    collection.build(
        [Batch(0, vectors=vectors, payloads=[{"n": i} for i in range(len(vectors))])],
        rotate="none",
        route=route,
        library=settings or None,
    )


def ids(hits: nestvec.Hits) -> list[str]:
    return [hit.id for hit in hits]


def recall(collection: Collection, queries: F32, **options: object) -> float:
    """The share of the exact answers that the default plan finds; every answer must come from the index."""
    shares = []
    for query in queries:
        hits = collection.search(query, **options)  # type: ignore[arg-type]
        assert hits.plan is not None
        assert hits.plan.route in ("faiss", "scann")
        exact = ids(collection.search(query, exact=True, **options))  # type: ignore[arg-type]
        assert len(set(ids(hits))) == len(exact) == 10
        shares.append(len(set(exact) & set(ids(hits))) / 10)
    return float(np.mean(shares))


@pytest.fixture(params=["faiss", "faiss graph", "scann"])
def route(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "scann":
        pytest.importorskip("scann")
    settings = {"faiss": FAISS, "faiss graph": {"factory": "HNSW16"}, "scann": {"dims": 16, "leaves": 24}}
    return request.param.split()[0], settings[request.param]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_a_library_s_index_lives_through_restart_writes_seal_compact_and_filters(
    tmp_path: Path, metric: Metric, route: tuple[str, dict[str, Any]]
) -> None:
    vectors, queries = some(ROWS + 1500), some(20, 5)
    with opened(tmp_path, metric) as collection:
        build(collection, vectors[:ROWS], route[0], **route[1])
        before = [ids(collection.search(query)) for query in queries]
        assert recall(collection, queries) > 0.9
        collection.verify()
    (tmp_path / "moved").mkdir()
    tmp_path = (tmp_path / "db").rename(tmp_path / "moved" / "db").parent
    with opened(tmp_path, metric) as collection:
        assert [ids(collection.search(query)) for query in queries] == before
        collection.upsert(records(vectors[ROWS:], ROWS))
        assert ids(collection.search(vectors[ROWS], k=1)) == [str(ROWS)] or metric == "dot"
        assert collection.seal().generation == 1
        assert recall(collection, queries) > 0.9
        dead = [str(i) for i in range(0, ROWS, 2)]
        assert collection.delete(dead) == len(dead)
        assert recall(collection, queries) > 0.9
        assert recall(collection, queries, filter={"field": "n", "range": {"gte": 500}}) > 0.9
        assert not {hit for query in queries for hit in ids(collection.search(query))} & set(dead)
        few = collection.search(queries[0], k=50, filter={"field": "n", "in": [1, 3, 5, 6]})
        assert sorted(ids(few)) == ["1", "3", "5"]
        assert collection.compact().rows == ROWS // 2 + 1500
        assert recall(collection, queries) > 0.9
        after = [ids(collection.search(query)) for query in queries]
        collection.compact(retrain=True)
        assert collection.info().generation == 2
        assert recall(collection, queries) > 0.9
        collection.verify()
    with opened(tmp_path, metric) as collection:
        assert np.mean([a == ids(collection.search(q)) for a, q in zip(after, queries, strict=True)]) > 0.5


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_the_same_rows_give_the_same_files(
    tmp_path: Path, metric: Literal["dot", "l2"], route: tuple[str, dict[str, Any]]
) -> None:
    vectors, written = np.random.default_rng(0).standard_normal((12_000, DIMS)).astype(np.float32), []
    settings: LibraryConfig = {"faiss": FaissConfig, "scann": ScannConfig}[route[0]].of(
        route[1] | ({"leaves": 128} if route[0] == "scann" else {}), DIMS, metric
    )
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        settings.train(vectors, metric, len(vectors)).assign(vectors).save(tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    index = FaissConfig.of(FAISS, DIMS, "dot").train(some(500), "dot", 500).assign(some(500))
    (tmp_path / "index.faiss").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        library_index.write(tmp_path, "postings", index)
    assert error.value.errno == errno.ENOSPC


def test_a_damaged_index_is_quarantined_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, route: tuple[str, dict[str, Any]]
) -> None:
    vectors, queries = some(ROWS), some(10, 5)
    with opened(tmp_path) as collection:
        build(collection, vectors, *route[:1], **route[1])
        before = [ids(collection.search(query)) for query in queries]
    (directory,) = (tmp_path / "db").glob("collections/*/postings/*")
    victim = max((path for path in directory.iterdir() if path.name != "manifest.json"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 255
    victim.chmod(0o600)
    victim.write_bytes(data)
    with caplog.at_level(logging.WARNING, "nestvec"), opened(tmp_path) as collection:
        assert [ids(collection.search(query)) for query in queries] == before
        assert str(victim) in caplog.text
        assert "quarantined" in caplog.text
        collection.verify()
    assert len(list((tmp_path / "db").glob("collections/*/quarantine/*"))) == 1


def test_a_model_that_cannot_be_read_keeps_its_route_and_settings(tmp_path: Path) -> None:
    vectors = some(ROWS)
    with opened(tmp_path) as collection:
        build(collection, vectors, "faiss", **FAISS)
    (template,) = (tmp_path / "db").glob("collections/*/generations/*/template.bin")
    template.write_bytes(b"\0" * template.stat().st_size)
    with opened(tmp_path) as collection:
        assert collection.search(vectors[0]).plan == Plan("exact")
        collection.compact(retrain=True)
        plan = collection.search(vectors[0]).plan
        assert plan is not None
        assert (plan.route, plan.probes) == ("faiss", 16)


def test_a_plan_that_finds_too_little_is_widened(tmp_path: Path) -> None:
    vectors = some(ROWS)
    with opened(tmp_path) as collection:
        build(collection, vectors, "faiss", **FAISS)
        narrow = Plan("faiss", 1, shortlist=Cut(1000))
        hits = collection.search(vectors[0], k=1000, plan=narrow)
        assert (len(hits), hits.plan) == (1000, Plan("faiss", 3, shortlist=Cut(3000)))
        hits = collection.search(vectors[0], k=1000, plan=Plan("faiss", 1, (Stage(DIMS, 1000),), shortlist=Cut(1000)))
        assert len(hits) == 1000
        deep = Plan("faiss", 24, (Stage(DIMS, 100),), shortlist=Cut(400))
        hits = collection.search(vectors[0], plan=deep)
        assert (hits.plan, ids(hits)) == (deep, ids(collection.search(vectors[0], exact=True)))
        assert hits.work.partitions == 24
        assert [(stage["dims"], stage["out"]) for stage in hits.work.stages] == [(16, 400), (24, 100), (24, 10)]


def test_a_reader_and_a_batch_answer_as_single_searches_do(tmp_path: Path, route: tuple[str, dict[str, Any]]) -> None:
    vectors, queries = some(ROWS), some(25, 5)
    with opened(tmp_path) as collection:
        build(collection, vectors, route[0], **route[1])
        single = [ids(collection.search(query)) for query in queries]
        assert [ids(hits) for hits in collection.search_batch(queries)] == single
        with collection.reader() as reader:
            assert reader.plan().route == route[0]
            assert [reader.ids(reader.search(query)[0]) for query in queries] == single
            assert [reader.ids(rows) for rows in reader.search_batch(queries, threads=2)[0]] == single


@pytest.mark.parametrize(
    ("route", "settings", "reason"),
    [
        ("faiss", {"factory": "IVF24,Nonsense"}, r"faiss \S+ refuses 'IVF24,Nonsense': .*could not parse code descrip"),
        ("faiss", {"factory": "PQ7"}, "refuses 'PQ7'"),
        ("faiss", {"factory": "IDMap,Flat"}, "add does not make sense with IndexIDMap"),
        ("faiss", {"factory": "NSG16"}, "refuses 'NSG16'"),
        ("faiss", {"factory": "IVF9999,Flat"}, "as large as number of clusters"),
        ("faiss", {"factory": 3}, "factory must be a faiss factory string"),
        ("faiss", {"factory": "Flat", "dims": 0}, "dims must be a prefix's length, from 1 to 24; got 0"),
        ("faiss", {"factory": "Flat", "nprobe": 3}, r"is told its factory, and optionally dims; got \['factory', 'npr"),
        ("faiss", None, "is told its factory"),
        ("hnsw", None, "must be one of soar, ehi, faiss, scann; got 'hnsw'"),
        ("soar", {"factory": "Flat"}, "leave them out for soar"),
        ("scann", {"leafs": 3}, "has the settings dims, leaves"),
        ("scann", {"leaves": 0}, "leaves must be a whole number from 1"),
        ("scann", {"soar_lambda": -1}, "soar_lambda must be a number >= 0"),
    ],
)
def test_a_route_that_cannot_be_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, route: str, settings: dict[str, Any] | None, reason: str
) -> None:
    with opened(tmp_path) as collection:
        with pytest.raises(nestvec.InvalidInput, match=reason) as error:
            collection.build([Batch(0, vectors=some(1200))], route=route, library=settings)
        assert "\n" not in str(error.value)
        assert "/faiss/" not in str(error.value)
        assert collection.count() == 0
    assert not list((tmp_path / "db").glob("collections/*/tmp-*"))


def test_an_index_has_one_route_and_plans_must_be_for_it(tmp_path: Path) -> None:
    with opened(tmp_path) as collection:
        build(collection, some(1500), "faiss", **FAISS)
        more = [Batch(0, [f"m{i}" for i in range(50)], some(50, 3))]
        for options in ({"route": "soar"}, {"route": "faiss", "library": {"factory": "Flat"}}):
            with pytest.raises(nestvec.InvalidInput, match="index is for the route 'faiss' with settings"):
                collection.build(more, **options)  # type: ignore[arg-type]
        assert collection.build(more, route="faiss", library=FAISS).generation == 1
        with pytest.raises(nestvec.InvalidInput, match="index is for the route 'faiss', got a plan for 'soar'"):
            collection.search(some(1)[0], plan=Plan("soar", 1, (Stage(DIMS, 10),)))


@pytest.mark.parametrize(
    "fields",
    [
        {"probes": 0, "shortlist": Cut(10)},
        {"probes": 1},
        {"probes": 1, "shortlist": Cut(10, 0.1)},
        {"probes": 1, "shortlist": Cut(10), "probe_margin": 0.1},
        {"probes": 1, "stages": (Stage(64, 10, rows="int8"),)},
        {"probes": 1, "stages": (Stage(64, 10, 0.1),)},
        {"probes": 1, "stages": (Stage(64, 50),), "shortlist": Cut(10)},
    ],
)
def test_plans_of_a_library_cut_by_count_over_stored_vectors(fields: dict[str, Any]) -> None:
    for route in ("faiss", "scann"):
        with pytest.raises(nestvec.InvalidInput):
            Plan(route, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "plan", [Plan("faiss", 8, (Stage(64, 40),), shortlist=Cut(90)), library_plan("scann", 9000, 96, 10)]
)
def test_plans_of_a_library_travel_as_json_and_over_the_wire(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    body = msgspec.convert(plan.to_json(), PlanBody)
    assert Plan.from_json(msgspec.to_builtins(body)) == plan


def test_without_its_library_a_collection_opens_searches_exactly_and_says_what_to_install(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scann")
    vectors = some(ROWS)
    plan = Plan("scann", 4, shortlist=Cut(100))
    with opened(tmp_path) as collection:
        build(collection, vectors, "scann")
        assert collection.search(vectors[0], plan=plan).plan == plan
    with monkeypatch.context() as hidden, caplog.at_level(logging.WARNING, "nestvec"):
        hidden.setitem(sys.modules, "scann", None)
        with opened(tmp_path) as collection:
            hits = collection.search(vectors[0])
            assert (ids(hits)[0], hits.plan) == ("0", Plan("exact"))
            collection.upsert(records(some(5, 8), ROWS))
            assert collection.seal().rows == 5
            (line,) = [record.getMessage() for record in caplog.records]
            assert "pip install 'nestvec[scann]'" in line
            with pytest.raises(nestvec.MissingDependency, match=INSTALL):
                collection.search(vectors[0], plan=plan)
            with pytest.raises(nestvec.MissingDependency, match=INSTALL):
                collection.compact(retrain=True)
        with opened(tmp_path / "other") as collection, pytest.raises(nestvec.MissingDependency, match=INSTALL):
            build(collection, vectors, "scann")
    with opened(tmp_path) as collection:
        assert collection.search(vectors[0]).plan == library_plan("scann", ROWS + 5, 52, 10)


def test_another_package_named_scann_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "scann", sys)
    with opened(tmp_path) as collection, pytest.raises(nestvec.MissingDependency, match=INSTALL):
        collection.build([Batch(0, vectors=some(1200))], route="scann")
