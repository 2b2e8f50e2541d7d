"""Recall through the clients: what is promised, measured, explained and calibrated is what it is in process."""

from __future__ import annotations

import numpy as np
import pytest

import nestvec

from .conftest import DIMS, Service


def points(rows: int, seed: int) -> np.ndarray:
    """f32 [rows, DIMS] around common centres: queries and rows of the same kind."""
    centres, rng = np.random.default_rng(9).normal(size=(30, DIMS)), np.random.default_rng(seed)
    return (centres[rng.integers(0, 30, rows)] + 0.7 * rng.normal(size=(rows, DIMS))).astype(np.float32)


@pytest.fixture
def here(service: Service) -> nestvec.Collection:
    made = service.database.create_collection("big", dims=DIMS, metric="dot", granularities=(4, DIMS))
    payloads = [{"r": i % 10} for i in range(6000)]
    made.build([nestvec.Batch(0, vectors=points(6000, 1), payloads=payloads)], rotate="none", calibrate=False)
    return made


def test_calibration_is_made_waited_for_and_read(client: nestvec.Client, here: nestvec.Collection) -> None:
    there = client.collection("big")
    assert there.calibration() is None
    told: list[str] = []
    made = there.calibrate(points(1500, 2), progress=lambda stage, done, total: told.append(stage))
    assert made == here.calibration() == there.calibration()
    assert made is not None
    assert (made.source, max(each.queries for each in made.frontiers)) == ("queries", 1500 - 128)
    with pytest.raises(nestvec.InvalidInput, match="100 to 3000 vectors, got 7"):
        there.calibrate(points(7, 2))
    with pytest.raises(nestvec.InvalidInput, match="not with both"):
        there.calibrate(points(200, 2), texts=["a"] * 200)
    there.calibrate()
    again = here.calibration()
    assert again is not None
    assert again.source == "documents"
    client.create_collection("empty", dims=DIMS)
    assert client.collection("empty").calibrate() is None


def test_no_more_vectors_are_sent_than_a_service_takes(
    client: nestvec.Client, here: nestvec.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.client.recall_verbs._MOST_BYTES", 300 * 4 * DIMS + 1)
    made = client.collection("big").calibrate(points(900, 2))
    assert made is not None
    assert {each.queries for each in made.frontiers if each.k == 1} == {300 - 300 // 7}


def test_hits_say_what_they_say_in_process(client: nestvec.Client, here: nestvec.Collection) -> None:
    here.calibrate(points(300, 2))
    there, query = client.collection("big"), points(1, 5)[0]
    for asked in ({"recall": 0.9}, {"recall": 0.99, "k": 3}, {}, {"budget_ms": 1e-6}, {"exact": True}):
        local = here.search(query, **asked).choice
        for remote in (there.search(query, **asked), there.search_batch(query[None], **asked)[0]):
            choice = remote.choice
            if local is None:
                assert choice is None
                continue
            assert choice is not None
            told = ("plan", "reason", "target", "estimate", "basis", "stale", "k")
            assert [getattr(choice, name) for name in told] == [getattr(local, name) for name in told]
    with pytest.raises(nestvec.InvalidInput, match="recall and budget_ms"):
        there.search(query, recall=0.9, budget_ms=1)


def test_explanations_are_those_of_the_process(client: nestvec.Client, here: nestvec.Collection) -> None:
    here.calibrate(points(300, 2))
    there, query = client.collection("big"), points(1, 5)[0]
    few = {"field": "r", "range": {"lt": 2}}
    assert there.explain(k=5, recall=0.9).to_json() == here.explain(k=5, recall=0.9).to_json()
    assert there.explain(filter=few, budget_ms=1).to_json() == here.explain(filter=few, budget_ms=1).to_json()
    remote, local = there.explain(query, recall=0.9), here.explain(query, recall=0.9)
    assert remote.choice.plan == local.choice.plan
    assert remote.hits is not None
    assert local.hits is not None
    assert [(hit.id, hit.score) for hit in remote.hits] == [(hit.id, hit.score) for hit in local.hits]
    assert remote.work is not None
    assert local.work is not None
    for one, other in zip(remote.work.stages, local.work.stages, strict=True):
        assert {**one, "micros": 0} == {**other, "micros": 0}


def test_recall_is_measured_as_in_process(client: nestvec.Client, here: nestvec.Collection) -> None:
    here.calibrate(points(300, 2))
    there, queries = client.collection("big"), points(40, 6)
    plan = nestvec.Plan("soar", 2, (nestvec.Stage(DIMS, 20),), shortlist=nestvec.Cut(40))
    for asked in ({"recall": 0.9}, {"plan": plan}, {"k": 3, "filter": {"field": "r", "eq": 1}}):
        assert there.measure_recall(queries, **asked) == here.measure_recall(queries, **asked)
    with pytest.raises(nestvec.InvalidInput, match="exactly one"):
        there.measure_recall()
    assert there.live_recall() == here.live_recall() == []
