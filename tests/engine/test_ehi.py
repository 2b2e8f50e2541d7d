"""Collections whose lists are the leaves of a learned tree: the same promises as every index, and an adapter's own."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import nursery
import pytest
from crc32c import crc32c
from documentation import python_passages
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, CompactResult, Cut, Plan, Record, Stage
from nestvec.engine import compaction
from nestvec.engine.encoders import load_encoder
from nestvec.errors import Damaged, InvalidInput
from nestvec.index.ehi.assign import Filing
from nestvec.index.ehi.model import EhiModel
from nestvec.index.ehi.router import Layer, Residual, Router
from nestvec.index.ehi.tree import Tree, adapt, tree_arrays, tree_from
from nestvec.index.quantize import kmeans

F32 = NDArray[np.float32]
ROWS, DIMS = 2600, 128
EVERYTHING = Plan("ehi", 10**6, shortlist=Cut(10**6))
NARROW = Plan("ehi", 6, (Stage(64, 100),), probe_margin=8.0)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [passage["text"] for passage in python_passages()[: ROWS + 300]]


@pytest.fixture(scope="module")
def vectors(texts: list[str]) -> F32:
    encoded = np.asarray(load_encoder("static").encode_documents(texts), np.float32)[:, :DIMS]
    return np.ascontiguousarray(encoded / np.linalg.norm(encoded, axis=1, keepdims=True))


def planted(vectors: F32, branches: tuple[int, ...], scale: float = 20.0) -> Router:
    """A tree by k-means: each level's heads point at the centres of what its parents hold."""
    heads, groups = [], [vectors]
    for branch in branches:
        centres = []
        split = []
        for group in groups:
            made = kmeans(np.resize(group, (max(len(group), branch), DIMS)), branch, 5, 0)
            made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-6)
            nearest = (group @ made.T).argmax(axis=1)
            centres.append(made)
            split += [group[nearest == child] if (nearest == child).any() else group[:1] for child in range(branch)]
        weights = np.concatenate(centres).astype(np.float32) * np.float32(scale)
        heads.append(Layer(weights, np.zeros(len(weights), np.float32)))
        groups = split
    return Router(branches, tuple(heads))


def some_adapter(seed: int = 3) -> Residual:
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal(shape).astype(np.float32) * 0.1 for shape in ((40, DIMS), (DIMS, 40)))
    return Residual(Layer(first, np.zeros(40, np.float32)), Layer(second, np.full(DIMS, 0.001, np.float32)))


@pytest.fixture(scope="module")
def tree(vectors: F32) -> Tree:
    return Tree(planted(vectors[:ROWS], (40,)))


TREES = {
    "one level": lambda vectors: Tree(planted(vectors[:ROWS], (40,))),
    "two levels": lambda vectors: Tree(planted(vectors[:ROWS], (6, 7)), some_adapter(), Filing(cap=1.5)),
    "two leaves": lambda vectors: Tree(planted(vectors[:ROWS], (40,)), None, Filing(2)),
    "spill": lambda vectors: Tree(planted(vectors[:ROWS], (40,)), some_adapter(), Filing(spill="soar")),
}


def batch(vectors: F32, texts: list[str] | None = None) -> Batch:
    return Batch(0, vectors=vectors, texts=texts, payloads=[{"n": i % 7} for i in range(len(vectors))])


def made(path: Path, vectors: F32, metric: str = "cosine", dtype: str = "float32", **options: object) -> Collection:
    database = nestvec.open(path)
    collection = database.create_collection("c", dims=DIMS, metric=metric, dtype=dtype)
    collection.build([batch(vectors[:ROWS])], rotate="none", calibrate=False, **options)  # type: ignore[arg-type]
    return collection


def ids(hits: nestvec.Hits) -> list[str]:
    return [hit.id for hit in hits]


def assert_as_exact(collection: Collection, queries: F32, **options: object) -> None:
    """Visiting everything gives the exact answers, ties and scores included."""
    for query in queries:
        exact = collection.search(query, exact=True, **options)  # type: ignore[arg-type]
        found = collection.search(query, plan=EVERYTHING, **options)  # type: ignore[arg-type]
        assert [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in exact]


@pytest.fixture(params=TREES)
def learned(request: pytest.FixtureRequest, vectors: F32, tmp_path: Path) -> Iterator[tuple[Collection, Tree]]:
    tree = TREES[request.param](vectors)
    collection = made(tmp_path / "db", vectors, soar=False)
    report = collection.install_tree(tree)
    assert (report.rows, report.generation, report.leaves) == (ROWS, 1, tree.router.leaves)
    assert report.postings >= ROWS
    assert report.max_over_mean <= tree.filing.cap
    assert 1.0 <= report.imbalance <= report.max_over_mean
    yield collection, tree
    collection.close()


def adapted(tree: Tree, vectors: F32) -> F32:
    return adapt(tree.adapter, vectors, unit=True)


def test_a_tree_answers_as_the_exact_scan_and_tells_what_it_did(learned: tuple[Collection, Tree], vectors: F32) -> None:
    collection, tree = learned
    queries = vectors[ROWS : ROWS + 12]
    assert_as_exact(collection, queries, k=30)
    info = collection.info()
    assert (info.route, info.adapted) == ("ehi", tree.adapter is not None)
    base, wanted = adapted(tree, vectors[:ROWS]), adapted(tree, queries)
    shares = []
    for query, turned in zip(queries, wanted, strict=True):
        hits = collection.search(query, k=10, plan=NARROW)
        assert hits.plan == NARROW
        assert hits.work.partitions <= 6
        assert 0 < hits.work.codes < ROWS / 2
        assert tree.router.cost(6) <= hits.work.router <= tree.router.cost(6) + 6 * 128
        truth = np.argsort(-(base @ turned), kind="stable")[:10]
        np.testing.assert_allclose([hit.score for hit in hits], (base @ turned)[[int(i) for i in ids(hits)]], atol=2e-5)
        shares.append(np.isin([int(hit.id) for hit in hits], truth).mean())
    assert np.mean(shares) > 0.6


def test_filters_and_deletes_leave_as_many_hits_as_match(learned: tuple[Collection, Tree], vectors: F32) -> None:
    collection, _ = learned
    collection.delete([str(i) for i in range(0, ROWS, 3)])
    left = [i for i in range(ROWS) if i % 3]
    for query in vectors[ROWS : ROWS + 5]:
        for plan in (NARROW, Plan("ehi", 1, shortlist=Cut(10)), None):
            hits = collection.search(query, k=10, plan=plan, filter={"field": "n", "eq": 5})
            assert len(hits) == 10
            assert all(int(hit.id) % 3 and int(hit.id) % 7 == 5 for hit in hits)
            assert len(collection.search(query, k=1000, plan=replace_keep(plan))) == 1000
    assert_as_exact(collection, vectors[ROWS : ROWS + 4], k=20, filter={"field": "n", "eq": 2})
    assert collection.count() == len(left)
    collection.delete([str(i) for i in left[8:]])
    assert len(collection.search(vectors[0], k=10, plan=Plan("ehi", 1, shortlist=Cut(10)))) == 8


def replace_keep(plan: Plan | None) -> Plan | None:
    return None if plan is None else replace(plan, shortlist=Cut(1000), stages=())


def test_new_rows_are_sealed_into_the_tree_and_compactions_keep_it(
    learned: tuple[Collection, Tree], vectors: F32
) -> None:
    collection, tree = learned
    fresh = [Record(str(ROWS + i), vectors[ROWS + 20 + i] * 3) for i in range(200)]
    collection.upsert(fresh)
    everything = np.concatenate((vectors[:ROWS], vectors[ROWS + 20 : ROWS + 220]))
    held = adapted(tree, everything)
    query = vectors[ROWS + 5]
    truth = np.argsort(-(held @ adapted(tree, query[None])[0]), kind="stable")[:15]

    def check(generation: int) -> None:
        hits = collection.search(query, k=15, exact=True)
        assert [int(hit.id) for hit in hits] == truth.tolist()
        assert hits.generation == generation
        assert_as_exact(collection, vectors[ROWS : ROWS + 3], k=20)
        got = collection.get(["3", str(ROWS + 7)], with_vector=True)
        np.testing.assert_allclose(got[0].vector, held[3], atol=1e-5)
        np.testing.assert_allclose(got[1].vector, 3 * held[ROWS + 7], atol=1e-5)

    check(1)
    assert collection.seal().generation == 1
    check(1)
    model = model_of(collection)
    assert collection.compact() == CompactResult(2, ROWS + 200, 0)
    assert model_of(collection) is model
    check(1)
    collection.compact(retrain=True)
    check(2)
    kept, other = tree_arrays(Tree(model.router))[1], tree_arrays(Tree(model_of(collection).router))[1]
    assert all(np.array_equal(kept[name], other[name]) for name in kept)
    assert model_of(collection).config == model.config
    collection.verify()


def model_of(collection: Collection) -> EhiModel:
    with collection.part.keeper.current() as (_, snapshot):
        assert isinstance(snapshot.model, EhiModel)
        return snapshot.model


@pytest.mark.parametrize(("metric", "dtype"), [("dot", "float32"), ("l2", "float16"), ("cosine", "float16")])
def test_every_metric_and_dtype(vectors: F32, tmp_path: Path, metric: str, dtype: str) -> None:
    longer = vectors * (1 + np.arange(len(vectors), dtype=np.float32) % 3)[:, None]
    collection = made(tmp_path / "db", longer, metric, dtype)
    collection.install_tree(Tree(planted(vectors[:ROWS], (6, 6)), some_adapter(), Filing(2)))
    assert_as_exact(collection, longer[ROWS : ROWS + 6], k=25)
    found = collection.get(["9"], with_vector=True)[0].vector
    assert found is not None
    wanted = adapt(some_adapter(), (vectors if metric == "cosine" else longer)[9:10], unit=metric == "cosine")[0]
    np.testing.assert_allclose(found, wanted, rtol=0.01, atol=5e-3)
    collection.close()


def test_a_snapshot_a_restart_and_a_damaged_list_bring_the_same_answers(
    vectors: F32, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = TREES["two levels"](vectors)
    collection = made(tmp_path / "db", vectors, soar=False)
    collection.install_tree(tree)
    queries = vectors[ROWS : ROWS + 8]
    wanted = [[(hit.id, hit.score) for hit in collection.search(query, plan=NARROW)] for query in queries]
    collection.close()

    def answers(held: Collection) -> list[list[tuple[str, float]]]:
        return [[(hit.id, hit.score) for hit in held.search(query, plan=NARROW)] for query in queries]

    with nestvec.open(tmp_path / "db") as database:
        assert answers(database.collection("c")) == wanted
        name = database.snapshot("c").name
        database.restore(name, "copy")
        copy = database.collection("copy")
        assert answers(copy) == wanted
        assert copy.info().adapted
    [postings] = (tmp_path / "db" / "collections" / "000001" / "postings").iterdir()
    codes = postings / "codes.bin"
    codes.write_bytes(bytes([codes.read_bytes()[0] ^ 1]) + codes.read_bytes()[1:])
    with caplog.at_level(logging.WARNING, "nestvec"), nestvec.open(tmp_path / "db") as database:
        assert "quarantined" in caplog.text
        assert answers(database.collection("c")) == wanted
        assert all(report.ok for report in database.verify())


def test_a_damaged_router_means_exact_search_and_a_damaged_adapter_none(
    vectors: F32, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collection = made(tmp_path / "db", vectors, soar=False)
    collection.install_tree(TREES["two levels"](vectors))
    query = vectors[ROWS]
    wanted = ids(collection.search(query, exact=True))
    collection.close()
    home = tmp_path / "db" / "collections" / "000001" / "generations" / "1"
    head, adapter = home / "head1_weights.bin", home / "adapter_first_weights.bin"
    whole = head.read_bytes()
    head.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with caplog.at_level(logging.WARNING, "nestvec"), nestvec.open(tmp_path / "db") as database:
        assert "searching exactly" in caplog.text
        held = database.collection("c")
        assert ids(held.search(query)) == wanted
        held.compact(retrain=True)
        assert (held.info().route, held.info().adapted) == ("soar", True)
        assert ids(held.search(query, exact=True)) == wanted
    home = home.parent / "2"
    adapter = home / "adapter_first_weights.bin"
    adapter.write_bytes(bytes(4) + adapter.read_bytes()[4:])
    with nestvec.open(tmp_path / "db") as database:
        assert [str(one) for one in database.damaged()]
        with pytest.raises(Damaged, match="adapter_first_weights"):
            database.collection("c")


def test_a_build_into_a_tree_and_calibrated_searches(
    vectors: F32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.engine.calibration.measure.EXACT_ROWS", 500)
    tree = TREES["two levels"](vectors)
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        report = collection.build([batch(vectors[:ROWS])], tree=tree)
        assert (report.generation, report.rotated) == (1, False)
        assert (collection.info().route, collection.info().adapted) == ("ehi", True)
        assert_as_exact(collection, vectors[ROWS : ROWS + 4], k=20)
        calibration = collection.calibration()
        assert calibration is not None
        points = [point for frontier in calibration.frontiers for point in frontier.points]
        assert {point.plan.route for point in points} == {"ehi"}
        hits = collection.search(vectors[ROWS], k=10, recall=0.8)
        assert hits.choice is not None
        told = collection.explain(vectors[ROWS], k=10, plan=NARROW)
        assert told.work is not None
        assert told.work.router == hits_router(collection, vectors[ROWS])
        with collection.reader() as reader:
            rows, scores = reader.search(vectors[ROWS], k=10, plan=NARROW)
            found = collection.search(vectors[ROWS], k=10, plan=NARROW)
            assert reader.ids(rows) == ids(found)
            assert scores.tolist() == [hit.score for hit in found]
            batched, _ = reader.search_batch(vectors[ROWS : ROWS + 5], k=10, plan=NARROW, threads=2)
            assert reader.ids(batched[0]) == ids(found)
        with pytest.raises(InvalidInput, match="got a plan for 'soar'"):
            collection.search(vectors[0], plan=Plan("soar", 3, shortlist=Cut(20)))
        more = Batch(0, [f"more{i}" for i in range(50)], vectors[ROWS : ROWS + 50])
        collection.build([more], calibrate=False)
        assert ids(collection.search(vectors[ROWS], k=1, exact=True)) == ["more0"]
        assert_as_exact(collection, vectors[ROWS : ROWS + 4], k=20)


def hits_router(collection: Collection, query: F32) -> int:
    return collection.search(query, k=10, plan=NARROW).work.router


@pytest.mark.parametrize("rotate", ["auto", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_build_into_a_tree_is_the_same_as_installing_it(
    vectors: F32, tmp_path: Path, rotate: str, dtype: str
) -> None:
    tree = TREES["two levels"](vectors)
    with nestvec.open(tmp_path / "db") as database:
        built, installed = (database.create_collection(name, dims=DIMS, dtype=dtype) for name in ("b", "i"))
        built.build([batch(vectors[:ROWS])], rotate=rotate, tree=tree, calibrate=False)
        installed.build([batch(vectors[:ROWS])], rotate="none", soar=False)
        installed.install_tree(tree)
        assert built.info().adapted
        for query in vectors[ROWS : ROWS + 5]:
            one, other = (held.search(query, k=10, exact=True) for held in (built, installed))
            np.testing.assert_allclose(
                [hit.score for hit in one], [hit.score for hit in other], atol=2e-3 if dtype == "float16" else 1e-6
            )


def test_a_default_plan_finds_most_of_the_nearest(vectors: F32, tmp_path: Path) -> None:
    collection = made(tmp_path / "db", vectors, tree=TREES["one level"](vectors))
    shares = []
    for query in vectors[ROWS : ROWS + 40]:
        hits = collection.search(query, k=10)
        assert hits.plan is not None
        assert hits.plan.route == "ehi"
        shares.append(len(set(ids(hits)) & set(ids(collection.search(query, k=10, exact=True)))) / 10)
    assert np.mean(shares) > 0.9
    collection.close()


def test_a_rotated_collection_takes_a_tree_of_its_own_coordinates_alone(vectors: F32, tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=DIMS)
        collection.build([batch(vectors[:ROWS])], rotate="pca", calibrate=False)
        with collection.part.keeper.current() as (_, snapshot):
            rotation = snapshot.turn.rotation
            stored = np.asarray(snapshot.segments[0].segment.vectors)
        assert rotation is not None
        tree = Tree(planted(stored, (30,)), some_adapter(), rotation=rotation)
        with pytest.raises(InvalidInput, match="other coordinates"):
            collection.install_tree(replace(tree, rotation=None))
        collection.install_tree(tree)
        held = adapt(tree.adapter, stored, unit=True)
        query = vectors[ROWS]
        truth = np.argsort(-(held @ adapt(tree.adapter, (query @ rotation)[None], unit=True)[0]), kind="stable")[:10]
        assert [int(hit.id) for hit in collection.search(query, k=10, exact=True)] == truth.tolist()
        other = database.create_collection("other", dims=DIMS)
        other.build([batch(vectors[:ROWS])], tree=tree, calibrate=False)
        assert [int(hit.id) for hit in other.search(query, k=10, exact=True)] == truth.tolist()


def test_what_does_not_fit_is_refused(vectors: F32, tree: Tree, tmp_path: Path) -> None:
    collection = made(tmp_path / "db", vectors, soar=False)
    wide = Router((4,), (Layer(np.ones((4, DIMS + 1), np.float32), np.zeros(4, np.float32)),))
    with pytest.raises(InvalidInput, match="sees 129 dims"):
        collection.install_tree(Tree(wide))
    small = Residual(Layer(np.ones((3, 8), np.float32), np.zeros(3, np.float32)),
                     Layer(np.ones((8, 3), np.float32), np.zeros(8, np.float32)))  # fmt: skip
    with pytest.raises(InvalidInput, match="for vectors of 8 dims"):
        collection.install_tree(replace(tree, adapter=small))
    collection.install_tree(replace(tree, adapter=some_adapter()))
    with pytest.raises(InvalidInput, match="went through an adapter already"):
        collection.install_tree(replace(tree, adapter=some_adapter()))
    collection.install_tree(tree)
    assert collection.info().adapted
    with pytest.raises(InvalidInput, match="has an index"):
        collection.build([batch(vectors[:5])], tree=tree)
    with nestvec.open(tmp_path / "new") as database:
        empty = database.create_collection("c", dims=DIMS)
        with pytest.raises(InvalidInput, match="no sealed rows"):
            empty.install_tree(tree)
        with pytest.raises(InvalidInput, match="needs a trained tree"):
            empty.build([batch(vectors[:5])], route="ehi")
        with pytest.raises(InvalidInput, match="makes no index"):
            empty.build([batch(vectors[:5])], tree=tree, soar=False)
        with pytest.raises(InvalidInput, match="a tree is for the route 'ehi'"):
            empty.build([batch(vectors[:5])], route="soar", tree=tree)
    collection.close()


def test_two_processes_see_the_adapter_at_the_same_commit(vectors: F32, tmp_path: Path) -> None:
    """A second opening of the same files, as another process has, with growing rows that it read before."""
    tree = TREES["two levels"](vectors)
    collection = made(tmp_path / "db", vectors, soar=False)
    collection.upsert([Record("grown", vectors[ROWS + 1])])
    with nestvec.open(tmp_path / "db") as database:
        other = database.collection("c")
        before = other.search(vectors[ROWS + 1], k=1)
        assert (before[0].id, before.generation) == ("grown", None)
        collection.install_tree(tree)
        after = other.search(vectors[ROWS + 1], k=2, exact=True)
        assert (after[0].id, after.generation) == ("grown", 1)
        turned = adapted(tree, vectors)
        second = float(np.sort(turned[:ROWS] @ turned[ROWS + 1])[-1])
        np.testing.assert_allclose(after[1].score, second, atol=2e-5)
    collection.close()


POINTS = sorted(
    {*re.findall(r'crash_point\("(compact-[a-z-]+)"\)', Path(compaction.__file__).read_text()),
     "generation-staged", "generation-renamed", "postings-staged", "postings-renamed", "segment-staged"}
)  # fmt: skip
CRASH = """
import os, sys, nestvec, numpy as np
from nestvec.index.ehi.tree import tree_from
import json
held = dict(np.load(sys.argv[2], allow_pickle=False))
meta = json.loads(str(held.pop("meta")))
with nestvec.open(sys.argv[1]) as database:
    collection = database.collection("c")
    os.environ["NESTVEC_CRASH_AT"] = sys.argv[3]
    collection.install_tree(tree_from(meta, held))
"""


def test_a_kill_at_any_point_of_an_install_leaves_old_or_new(vectors: F32, tmp_path: Path) -> None:
    import json
    import shutil

    tree = TREES["two levels"](vectors)
    made(tmp_path / "db", vectors, soar=False).close()
    meta, arrays = tree_arrays(tree)
    np.savez(tmp_path / "tree.npz", meta=json.dumps(meta), **arrays)
    query, turned = vectors[ROWS], adapted(tree, vectors[: ROWS + 1])
    old = np.argsort(-(vectors[:ROWS] @ query), kind="stable")[:10].tolist()
    new = np.argsort(-(turned[:ROWS] @ turned[ROWS]), kind="stable")[:10].tolist()
    assert old != new
    seen = set()
    for point in POINTS:
        path = tmp_path / point
        shutil.copytree(tmp_path / "db", path)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CRASH, str(path), str(tmp_path / "tree.npz"), point]
        killed = nursery.run(command, env=environment, timeout=120)
        assert killed.returncode == -9, point
        with nestvec.open(path) as database:
            collection = database.collection("c")
            assert all(report.ok for report in database.verify())
            info = collection.info()
            found = [int(hit.id) for hit in collection.search(query, k=10, exact=True)]
            assert found == (new if info.adapted else old), point
            assert (info.generation is not None) == info.adapted
            seen.add(info.adapted)
            collection.install_tree(tree if not info.adapted else replace(tree, adapter=None))
            assert [int(hit.id) for hit in collection.search(query, k=10, exact=True)] == new
        home = path / "collections" / "000001"
        assert not list(home.glob("tmp-*"))
    assert seen == {False, True}


def test_a_tree_goes_through_its_arrays(tree: Tree) -> None:
    whole = replace(tree, adapter=some_adapter(), filing=Filing(3, 1.25), rotation=np.eye(DIMS, dtype=np.float32))
    meta, arrays = tree_arrays(whole)
    back = tree_from(meta, arrays)
    assert back.filing == whole.filing
    assert tree_arrays(back)[0] == meta
    assert all(np.array_equal(array, tree_arrays(back)[1][name]) for name, array in arrays.items())
    assert crc32c(back.router.heads[0].weights.tobytes()) == crc32c(tree.router.heads[0].weights.tobytes())
    for spoil in ({"version": 9}, {"filing": {"cap": 0.1}}, {"branches": [4, 5]}, {"beam": 0}):
        with pytest.raises(Damaged):
            tree_from(meta | spoil, arrays)
    with pytest.raises(Damaged, match="head0_bias"):
        tree_from(meta, {name: array for name, array in arrays.items() if name != "head0_bias"})
