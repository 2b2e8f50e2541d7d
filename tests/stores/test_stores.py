"""F14: stores that released versions wrote open today, and answer the same."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import nestvec

HERE = Path(__file__).parent
STORES = sorted(path.name for path in HERE.iterdir() if (path / "nestvec.json").is_file())


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_stores", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def expected(make: ModuleType, name: str) -> dict[str, tuple[np.ndarray, dict[str, object]]]:
    """id -> (vector, payload), as they were written."""
    layers = {"growing": [(1, 30)], "sealed": [(2, 1100), (3, 20)], "built": [(4, 1200)]}[name]
    held = {}
    for place, (seed, n) in enumerate(layers):
        held |= {f"r{i}": (row, make.payload(i)) for i, row in enumerate(make.vectors(seed, n))}
        if name == "sealed" and place == 0:
            held = {id: value for id, value in held.items() if int(id[1:]) >= 10}
    held.pop("r30" if name == "sealed" else "", None)
    return held


@pytest.mark.parametrize("version", STORES)
def test_a_store_of_an_earlier_release_answers_as_it_did(version: str, make: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "db"
    shutil.copytree(HERE / version, path)
    with nestvec.open(path, create=False) as database:
        assert database.damaged() == []
        assert all(report.ok for report in database.verify())
        assert database.aliases() == {"live": "built"}
        listed = database.keys()
        assert [(key.name, key.scope, key.collections) for key in listed] == [("reader", "read", ("built",))]
        for name in ("growing", "sealed", "built"):
            same(database.collection(name), expected(make, name))
        restored = database.restore(database.snapshots()[0].name, "restored")
        same(restored, expected(make, "growing"))
        sealed = database.collection("sealed")
        sealed.upsert(make.records(5, 40))
        sealed.seal()
        sealed.compact(retrain=True)
        assert sealed.count() == 1100
        assert all(report.ok for report in database.verify())


def same(collection: nestvec.Collection, held: dict[str, tuple[np.ndarray, dict[str, object]]]) -> None:
    """Records, filters, exact and approximate search, and words."""
    assert collection.count() == len(held)
    close = {"rtol": 2e-3, "atol": 0.1} if collection.config.dtype == "float16" else {"rtol": 1e-5, "atol": 1e-4}
    for record in collection.get(list(held), with_vector=True):
        assert record.payload == held[record.id][1]
        np.testing.assert_allclose(record.vector, held[record.id][0], **close)
    even = {"all": [{"field": "even", "eq": True}, {"field": "nested.word", "eq": "word3"}]}
    wanted = [id for id, (_, payload) in held.items() if payload["even"] and payload["nested"] == {"word": "word3"}]
    assert collection.count(filter=even) == len(wanted)
    matrix = np.stack([vector for vector, _ in held.values()]).astype(np.float64)
    query = matrix[len(matrix) // 2] + 0.25
    scores = {
        "dot": matrix @ query,
        "l2": -np.square(matrix - query).sum(axis=1),
        "cosine": matrix @ query / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query),
    }[collection.config.metric]
    exact = collection.search(query.astype(np.float32), exact=True)
    np.testing.assert_allclose([hit.score for hit in exact], np.sort(scores)[::-1][:10], rtol=3e-3)
    found = collection.search(query.astype(np.float32), recall=0.95)
    assert len({hit.id for hit in found} & {hit.id for hit in exact}) >= 9
    if collection.config.bm25:
        assert collection.search(text="words about 12", rank="bm25")[0].id == "r12"


def test_there_is_a_store_of_every_release() -> None:
    """A release that changes what is on disk adds its own with tests/stores/make.py."""
    assert STORES
