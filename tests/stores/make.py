"""Write the small stores of this release into tests/stores/<version>/: run once for each release, and kept.

python tests/stores/make.py
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

import nestvec
from nestvec import AliasSwitch, Batch, Record

HERE = Path(__file__).parent
DIMS = 16


def vectors(seed: int, n: int) -> np.ndarray:
    """Small whole numbers of falling spread, so that scores are the same everywhere and a rotation is worth it."""
    scale = np.linspace(12, 2, DIMS)
    return np.round(np.random.default_rng(seed).normal(size=(n, DIMS)) * scale).astype(np.float32)


def payload(number: int) -> dict[str, object]:
    """The payload of record `number`."""
    return {"n": number, "even": number % 2 == 0, "tags": [f"t{number % 5}"], "nested": {"word": f"word{number % 7}"}}


def make(path: Path) -> None:
    """A collection of every kind: growing only; sealed with deletes and an index; built, rotated, float16; chunked."""
    with nestvec.open(path) as database:
        growing = database.create_collection("growing", dims=DIMS, metric="l2", bm25=True, fields={"n": "number"})
        growing.upsert(records(1, 30))
        sealed = database.create_collection("sealed", dims=DIMS, metric="dot", bm25=True)
        sealed.upsert(records(2, 1100))
        sealed.delete([f"r{i}" for i in range(10)])
        sealed.seal()
        sealed.upsert(records(3, 20))
        sealed.delete(["r30"])
        built = database.create_collection(
            "built", dims=DIMS, metric="cosine", dtype="float16", granularities=(4, 8, DIMS)
        )
        ids = [f"r{i}" for i in range(1200)]
        built.build([Batch(0, ids, vectors(4, 1200), None, [payload(i) for i in range(1200)])], rotate="pca")
        database.switch_aliases([AliasSwitch("live", "built")])
        database.create_key("reader", "read", ["built"])
        database.snapshot("growing")


def records(seed: int, n: int) -> list[Record]:
    """The records r0, r1, ... of one seed."""
    return [Record(f"r{i}", row, payload(i), f"some words about {i}") for i, row in enumerate(vectors(seed, n))]


if __name__ == "__main__":
    target = HERE / version("nestvec")
    if target.exists():
        sys.exit(f"{target} is there already: a store that was kept is never made again")
    make(target)
    for lock in target.rglob("*LOCK*"):
        lock.unlink()
    shutil.rmtree(target / "jobs", ignore_errors=True)
