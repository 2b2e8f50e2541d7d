"""kill -9 at every named crash point: the old or the new state is there, whole, and nothing temporary remains."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import nursery
import pytest

import nestvec
from nestvec import Record

ROWS, DIMS = 1100, 8

CHILD = """
import sys, numpy as np, nestvec
path, verb = sys.argv[1:]
with nestvec.open(path) as database:
    collection = database.collection("c")
    rng = np.random.default_rng(1)
    if verb == "build":
        scale = np.linspace(0.05, 1, 8) ** 2
        collection.build([nestvec.Batch(0, [f"b{i}" for i in range(1200)], rng.normal(size=(1200, 8)) * scale)],
                         rotate="pca")
    elif verb == "seal":
        collection.seal()
    elif verb == "compact":
        collection.compact(retrain=True)
    elif verb == "snapshot":
        database.snapshot("c")
    elif verb == "restore":
        database.restore(database.snapshots()[0].name, "other")
    elif verb == "ingest":
        collection.upsert([nestvec.Record(f"b{i}", rng.normal(size=8)) for i in range(50)])
    elif verb == "erase":
        collection.delete([str(i) for i in range(2, 50)])
    elif verb == "create":
        database.create_collection("other", dims=2)
    else:
        database.delete_collection("other")
"""

SHARED = [
    "segment-staged",
    "segment-renamed",
    "generation-staged",
    "generation-renamed",
    "postings-staged",
    "postings-renamed",
]
POINTS = {
    "ingest": ["upsert-before-commit", "upsert-committed"],
    "erase": ["erase-before-commit", "erase-committed"],
    "seal": [
        "seal-written",
        "segment-vectors-written",
        *SHARED,
        "seal-published",
        "seal-before-commit",
        "seal-committed",
    ],
    "compact": [
        "compact-written",
        "segment-vectors-written",
        *SHARED,
        "compact-merged",
        "compact-before-commit",
        "compact-committed",
        "compact-swept",
    ],
    "build": ["build-read", "build-rotated", *SHARED, "build-before-commit", "build-committed"],
    "snapshot": ["snapshot-linked", "snapshot-held", "snapshot-written", "snapshot-renamed"],
    "restore": ["restore-copied", "restore-verified", "restore-renamed"],
    "create": ["create-staged", "create-renamed"],
    "delete": ["delete-renamed"],
}
CASES = [(verb, point) for verb, points in POINTS.items() for point in points]


def prepare(path: Path, verb: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kept: dict[str, np.ndarray] = {}
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=DIMS, granularities=(2, DIMS))
        if verb == "delete":
            database.create_collection("other", dims=2)
        if verb != "build":
            for start in range(0, ROWS, 550):
                vectors = rng.normal(size=(550, DIMS)).astype(np.float32)
                kept |= {str(start + i): vector for i, vector in enumerate(vectors)}
                collection.upsert([Record(str(start + i), vector) for i, vector in enumerate(vectors)])
                if verb == "compact":
                    collection.seal()
            collection.delete(["1", "600"])
            del kept["1"], kept["600"]
        if verb in ("snapshot", "restore"):
            collection.seal()
        if verb == "restore":
            database.snapshot("c")
    return kept


def check(path: Path, kept: dict[str, np.ndarray], verb: str) -> None:
    with nestvec.open(path, create=False) as database:
        collection = database.collection("c")
        assert all(report.ok for report in database.verify())
        if verb == "build":
            assert collection.count() in (0, 1200)
            records = collection.get([f"b{i}" for i in range(1200)], with_vector=True)
            assert len(records) == collection.count()
            kept = {record.id: record.vector for record in records if record.vector is not None}
        if verb == "ingest":
            added = {
                record.id: record.vector for record in collection.get([f"b{i}" for i in range(50)], with_vector=True)
            }
            assert len(added) in (0, 50)
            kept = kept | {id: vector for id, vector in added.items() if vector is not None}
        if verb == "erase" and not collection.get(["2"]):
            kept = {id: vector for id, vector in kept.items() if not 2 <= int(id) < 50}
        assert collection.count() == len(kept)
        if kept:
            matrix = np.stack(list(kept.values())).astype(np.float64)
            query = np.random.default_rng(5).normal(size=DIMS).astype(np.float32)
            scores = matrix @ query / np.linalg.norm(matrix, axis=1)
            best = [list(kept)[i] for i in np.argsort(-scores, kind="stable")[:10]]
            assert [hit.id for hit in collection.search(query, exact=True)] == best
            assert len(collection.search(query, k=1000)) == min(1000, len(kept))
            assert len(collection.get(list(kept))) == len(kept)
        if verb == "snapshot":
            assert [info.rows for info in database.snapshots()] in ([], [len(kept)])
        if verb == "restore" and len(database.collections()) == 2:
            assert database.collection("other").count() == len(kept)
        root = path / "collections" / "000001"
        info = collection.info()
        assert len(list((root / "segments").iterdir())) == info.segments
        assert len(list((root / "generations").iterdir())) == (info.generation is not None)
    assert not list(path.rglob("tmp-*"))


@pytest.mark.parametrize(("verb", "point"), CASES)
def test_a_kill_leaves_the_old_or_the_new_state_whole(tmp_path: Path, verb: str, point: str) -> None:
    path = tmp_path / "db"
    kept = prepare(path, verb)
    arguments = [sys.executable, "-c", CHILD, str(path), verb]
    child = nursery.run(arguments, env=os.environ | {"NESTVEC_CRASH_AT": point})
    assert child.returncode == -9, child.stderr
    check(path, kept, verb)
    if verb in ("seal", "compact"):
        assert nursery.run(arguments).returncode == 0
        check(path, kept, verb)


def test_every_crash_point_in_the_source_is_tested() -> None:
    source = Path(nestvec.__file__).parent
    named = {
        point
        for path in (source / "engine").rglob("*.py")
        for point in re.findall(r'crash_point\("([a-z-]+)"\)', path.read_text())
    }
    assert named == {point for _, point in CASES}
