"""Bring your own vectors, and say which recall you want: the engine chooses how deep to look."""

import tempfile

import numpy as np

import nestvec
from nestvec import Batch

ROWS, DIMS = 10_000, 64
rng = np.random.default_rng(7)
topics = rng.standard_normal((200, DIMS)).astype(np.float32)


def vectors(count: int) -> np.ndarray:
    """Stand-ins for what a model gives: points around topics."""
    return topics[rng.integers(len(topics), size=count)] + rng.standard_normal((count, DIMS)).astype(np.float32)


with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
    items = database.create_collection("items", dims=DIMS, metric="cosine")
    # a build calibrates by itself, with documents as questions; where you have real ones, calibrate with those
    items.build([Batch(start=0, vectors=vectors(ROWS))], calibrate=False)  # a row's number is its id
    items.calibrate(vectors(1000))

    query = vectors(1)[0]
    for recall in (0.8, 0.95, 0.99):
        hits = items.search(query, k=10, recall=recall)
        print(f"asked for {recall}: {hits.plan.route}, estimate {hits.choice.estimate:.3f}, {hits.work.bytes:,} bytes")

    measured = items.measure_recall(vectors(500), k=10, recall=0.95)
    print(f"asked for 0.95, measured {measured.recall:.3f} (95 % interval {measured.low:.3f} to {measured.high:.3f})")
