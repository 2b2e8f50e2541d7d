"""Live recall: comparisons are right, bounded, and a broken promise is noticed, said, and mended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, InvalidInput

DIMS = 32
F32 = NDArray[np.float32]


def points(rows: int, seed: int, centres: slice = slice(None), noise: float = 0.7) -> F32:
    every = np.random.default_rng(99).normal(size=(60, DIMS))[centres]
    rng = np.random.default_rng(seed)
    vectors = every[rng.integers(0, len(every), rows)] + noise * rng.normal(size=(rows, DIMS))
    return (vectors * np.linspace(1, 0.2, DIMS)).astype(np.float32)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    made = nestvec.open(tmp_path / "db").create_collection("c", dims=DIMS, metric="dot", granularities=(8, DIMS))
    made.build([Batch(0, vectors=points(12_000, 1))], rotate="none", calibrate=False)
    return made


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_live_recall_is_that_of_the_searches(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    collection.calibrate(points(400, 5))
    assert collection.live_recall() == []
    collection.watch(1.0)
    queries = points(40, 6)
    for query in queries:
        collection.search(query, recall=0.9)
    until(lambda: sum(each.queries for each in collection.live_recall()) == 40)
    (live,) = collection.live_recall()
    measured = collection.measure_recall(queries, recall=0.9)
    assert (live.k, live.selectivity) == (10, 1.0)
    assert live.recall == pytest.approx(measured.recall)
    assert live.low <= live.recall <= live.high
    assert live.target == measured.target == 0.9
    assert not live.missed


def test_watching_a_share_of_the_searches_compares_about_that_share(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    collection.calibrate(points(400, 5))
    collection.watch(0.1)
    for batch in np.split(points(1000, 6), 50):
        collection.search_batch(batch, recall=0.9)
        time.sleep(0.005)
    until(lambda: sum(each.queries for each in collection.live_recall()) >= 50)
    assert sum(each.queries for each in collection.live_recall()) <= 160


def test_drift_is_noticed_marked_and_mended(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated on easy queries, asked hard ones: the promise breaks, and today's queries restore it."""
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    easy, hard = points(600, 5, slice(0, 20), 0.3), points(1200, 6, noise=2.5)
    collection.calibrate(easy)
    before = collection.measure_recall(hard[:400], recall=0.95)
    assert before.high < 0.95
    collection.watch(1.0, recalibrate=True)
    first = collection.calibration()
    for query in hard[:700]:
        collection.search(query, recall=0.95)
        time.sleep(0.002)

    def mended() -> bool:
        now = collection.calibration()
        assert first is not None
        return now is not None and now.stale is None and now.frontiers != first.frontiers

    until(mended, 60)
    after = collection.measure_recall(hard[700:], recall=0.95)
    assert after.recall >= 0.945 > before.recall


def test_without_recalibrating_replies_say_that_the_promise_is_stale(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    collection.calibrate(points(600, 5, slice(0, 20), 0.3))
    collection.watch(1.0)
    for query in points(250, 6, noise=2.5):
        hits = collection.search(query, recall=0.95)
        time.sleep(0.002)
    until(lambda: (made := collection.calibration()) is not None and made.stale is not None)
    hits = collection.search(query, recall=0.95)
    assert hits.choice is not None
    assert hits.choice.stale is not None
    assert "calibrate" in hits.choice.stale


def test_closing_stops_the_watch(collection: Collection) -> None:
    collection.calibrate(points(200, 5))
    collection.watch(0.5)
    collection.watch(0.5)
    collection.close()
    with pytest.raises(InvalidInput, match="share"):
        collection.watch(0.0)


def test_a_new_calibration_is_not_held_to_what_an_old_one_promised(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    hard = points(1000, 6, noise=2.5)
    collection.calibrate(points(600, 5, slice(0, 20), 0.3))
    collection.watch(1.0)
    for query in hard[:250]:
        collection.search(query, recall=0.95)
        time.sleep(0.002)
    until(lambda: (made := collection.calibration()) is not None and made.stale is not None)
    collection.calibrate(hard[250:900])
    for query in hard[900:930]:
        collection.search(query, recall=0.95)
    until(lambda: sum(each.queries for each in collection.live_recall()) == 30)
    made = collection.calibration()
    assert made is not None
    assert made.stale is None


def test_with_chunking_live_recall_is_that_of_the_chunks_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole documents have lower scores than as many chunks: compared with those they would seem to be missed."""
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    made = nestvec.open(tmp_path / "db").create_collection(
        "c", encoder="static", chunking=nestvec.Chunking(8, 0), granularities=None
    )
    words = [
        "ash",
        "birch",
        "cedar",
        "elm",
        "fir",
        "hazel",
        "ivy",
        "juniper",
        "larch",
        "maple",
        "oak",
        "pine",
        "rowan",
        "spruce",
        "willow",
        "yew",
    ]
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(words, 60)) for _ in range(700)]
    made.build([Batch(0, [f"d{i}" for i in range(700)], texts=texts)], calibrate=False)
    made.calibrate(texts=[" ".join(rng.choice(words, 5)) for _ in range(300)])
    made.watch(1.0)
    for _ in range(20):
        hits = made.search(text=" ".join(rng.choice(words, 5)), k=5, recall=0.9)
        assert hits.choice is not None
        assert hits.choice.k is not None
        assert hits.choice.k >= 20
    if hits.choice.plan.route == "exact":
        pytest.skip("too few chunks for a plan")
    until(lambda: sum(each.queries for each in made.live_recall()) >= 20)
    assert all(each.recall > 0.85 for each in made.live_recall())


def test_closing_ends_a_calibration_under_way(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    began = threading.Event()

    def endless(part: object, queries: object, encode: object, progress: Callable[[str, int, int], None]) -> None:
        began.set()
        while True:
            progress("calibrate", 0, 1)
            time.sleep(0.01)

    collection.calibrate(points(600, 5, slice(0, 20), 0.3))
    collection.watch(1.0, recalibrate=True)
    monkeypatch.setattr("nestvec.engine.monitor.calibrate", endless)
    for query in points(700, 6, noise=2.5):
        collection.search(query, recall=0.95)
        time.sleep(0.002)
    assert began.wait(30)
    started = time.monotonic()
    collection.close()
    assert time.monotonic() - started < 5


def test_a_search_that_is_not_compared_costs_next_to_nothing(collection: Collection) -> None:
    collection.calibrate(points(200, 5))
    collection.watch(1e-9)
    query = points(1, 6)
    hits = collection.search(query[0], recall=0.9)
    assert hits.choice is not None
    assert collection._watch is not None
    monitor = collection._watch.monitor
    with collection.part.keeper.current() as (_, snapshot):
        times = []
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(500):
                monitor.offer(query, 10, snapshot, hits.choice, [])
            times.append((time.perf_counter() - started) / 500)
    assert min(times) < 2e-6
    assert monitor._thread is None
