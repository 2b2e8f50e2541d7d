"""Recall over REST: goals of queries and what replies say of them, frontiers, explanations, live recall, jobs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

from .conftest import wait_ready

DIMS = 16
F32 = NDArray[np.float32]
PATH = "/v1/collections/big"


def points(rows: int, seed: int) -> F32:
    centres = np.random.default_rng(99).normal(size=(40, DIMS))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 40, rows)] + 0.7 * rng.normal(size=(rows, DIMS))
    return (vectors * np.linspace(1, 0.2, DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with nestvec.open(tmp_path_factory.mktemp("recall") / "db") as database:
        big = database.create_collection("big", dims=DIMS, metric="dot", granularities=(4, DIMS))
        payloads = [{"r": i % 10} for i in range(20_000)]
        big.build([nestvec.Batch(0, vectors=points(20_000, 1), payloads=payloads)], rotate="none", calibrate=False)
        big.calibrate(points(800, 2))
        database.create_collection("small", dims=DIMS).upsert([nestvec.Record("a", points(1, 3)[0])])
        yield database


@pytest.fixture(scope="module")
def client(database: Database) -> Iterator[TestClient]:
    with TestClient(create_app(database, Settings(max_batch=200, recall_share=0.0))) as client:
        wait_ready(client)
        yield client


def test_a_query_says_which_recall_and_the_reply_what_it_rests_on(client: TestClient, database: Database) -> None:
    query = points(1, 5)[0]
    asked = {"vector": query.tolist(), "k": 10, "recall": 0.9}
    reply = client.post(f"{PATH}/query", json=asked).json()
    here = database.collection("big").search(query, k=10, recall=0.9)
    assert here.choice is not None
    assert here.choice.basis is not None
    recall = reply["recall"]
    assert (recall["target"], recall["estimate"], recall["k"]) == (0.9, here.choice.estimate, 10)
    assert (recall["stale"], recall["reason"]) == (None, here.choice.reason)
    basis = recall["basis"]
    assert (basis["ks"], basis["selectivities"]) == ([10], [1.0])
    assert (basis["queries"], basis["source"]) == (here.choice.basis.queries, "queries")
    assert 0 <= basis["age_seconds"] < 600
    assert reply["plan"] == here.choice.plan.to_json()
    batch = client.post(f"{PATH}/query/batch", json={"queries": [asked, {**asked, "recall": 0.99}]}).json()["results"]
    assert [each["recall"]["target"] for each in batch] == [0.9, 0.99]


def test_without_a_goal_the_recall_is_the_default_and_with_a_plan_none_is_promised(client: TestClient) -> None:
    vector = points(1, 5)[0].tolist()
    assert client.post(f"{PATH}/query", json={"vector": vector}).json()["recall"]["target"] == 0.95
    for way in ({"exact": True}, {"plan": {"route": "exact"}}):
        assert client.post(f"{PATH}/query", json={"vector": vector, **way}).json()["recall"] is None
    small = client.post("/v1/collections/small/query", json={"vector": vector, "recall": 0.9}).json()["recall"]
    assert (small["target"], small["estimate"], small["basis"]) == (0.9, 1.0, None)


@pytest.mark.parametrize(
    "ways",
    [
        {"recall": 0.9, "budget_ms": 1.0},
        {"recall": 0.9, "plan": {"route": "exact"}},
        {"budget_bytes": 1000, "exact": True},
        {"budget_ms": 1.0, "budget_bytes": 1000},
    ],
)
def test_two_ways_to_search_are_refused_by_name(client: TestClient, ways: dict[str, object]) -> None:
    vector = points(1, 5)[0].tolist()
    for route, body in (("query", {"vector": vector, **ways}), ("explain", ways)):
        answer = client.post(f"{PATH}/{route}", json=body)
        assert answer.status_code == 422
        assert answer.json()["detail"].endswith("got " + " and ".join(ways))


@pytest.mark.parametrize("goal", [{"recall": 0}, {"recall": 1.01}, {"budget_ms": 0}, {"budget_bytes": -1}])
def test_goals_out_of_bounds_are_refused(client: TestClient, goal: dict[str, float]) -> None:
    answer = client.post(f"{PATH}/query", json={"vector": points(1, 5)[0].tolist(), **goal})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(goal))}"


def test_queries_with_different_goals_are_answered_each_with_its_own(client: TestClient) -> None:
    vector = points(1, 5)[0].tolist()
    plans = {}
    for recall in (0.8, 0.9, 0.99):
        reply = client.post(f"{PATH}/query", json={"vector": vector, "recall": recall}).json()
        assert reply["recall"]["estimate"] >= recall
        plans[recall] = json.dumps(reply["plan"])
    assert len(set(plans.values())) == 3
    cheap = client.post(f"{PATH}/query", json={"vector": vector, "budget_ms": 1e-6}).json()["recall"]
    assert (cheap["target"], "no plan keeps within" in cheap["reason"]) == (None, True)


def test_the_frontier_has_all_points_and_says_what_to_do_where_there_is_none(
    client: TestClient, database: Database
) -> None:
    made = database.collection("big").calibration()
    assert made is not None
    assert client.get(f"{PATH}/frontier").json() == json.loads(json.dumps(made.to_json()))
    none = client.get("/v1/collections/small/frontier")
    assert (none.status_code, none.json()["code"]) == (404, "not_calibrated")
    assert '"calibrate"' in none.json()["detail"]


def test_explain_tells_the_plan_and_what_each_step_of_a_run_did(client: TestClient) -> None:
    planned = client.post(f"{PATH}/explain", json={"recall": 0.9, "k": 5}).json()
    assert (planned["k"], planned["rows"], planned["work"], planned["hits"]) == (5, 20_000, None, None)
    choice = planned["choice"]
    assert choice["considered"][choice["at"]]["floor"] >= 0.9
    query = points(1, 5)[0]
    run = client.post(
        f"{PATH}/explain",
        content=msgspec.msgpack.encode({"vector": query.tobytes(), "recall": 0.9, "k": 5}),
        headers={"Content-Type": "application/msgpack"},
    ).json()
    assert run["choice"]["plan"] == choice["plan"]
    stages = run["work"]["stages"]
    assert stages[-1]["out"] == len(run["hits"]) == 5
    assert all(before["out"] == after["in"] for before, after in pairwise(stages))
    assert 0 < sum(stage["bytes"] for stage in stages) <= run["work"]["bytes"]
    few = client.post(f"{PATH}/explain", json={"filter": {"field": "r", "eq": 3}}).json()
    assert (few["filter"]["mode"], few["filter"]["matching"]) == ("exact", 2000)
    assert "2,000 rows match" in few["choice"]["reason"]


def test_recall_is_measured_now_on_given_queries(client: TestClient, database: Database) -> None:
    queries = points(60, 6)
    here = database.collection("big").measure_recall(queries, k=5, recall=0.9)
    body = {"vectors": queries.tolist(), "k": 5, "recall": 0.9}
    found = client.post(f"{PATH}/recall", json=body).json()
    assert found == {"k": 5, "selectivity": 1.0, "queries": 60, "recall": here.recall, "low": here.low,
                     "high": here.high, "target": 0.9, "missed": False}  # fmt: skip
    planned = client.post(f"{PATH}/recall", json={**body, "recall": None, "plan": {"route": "exact"}}).json()
    assert (planned["recall"], planned["target"]) == (1.0, None)
    for bad, words in (
        ({}, "exactly one of vectors and texts"),
        ({**body, "plan": {"route": "exact"}}, "recall and plan"),
        ({"vectors": points(201, 1).tolist()}, "at most 200 vectors"),
        ({"vectors": [[1.0, 2.0]]}, "16 numbers"),
    ):
        answer = client.post(f"{PATH}/recall", json=bad)
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def finished(client: TestClient, submitted: dict[str, object]) -> dict[str, object]:
    end = time.monotonic() + 60
    while (job := client.get(f"/v1/jobs/{submitted['id']}").json())["state"] not in ("done", "failed"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(job)


def test_a_job_calibrates_with_given_queries_or_by_itself(client: TestClient) -> None:
    packed = base64.b64encode(points(400, 7).tobytes()).decode()
    for vectors in (packed, points(400, 7).tolist()):
        job = client.post(f"{PATH}/jobs", json={"kind": "calibrate", "vectors": vectors})
        assert job.status_code == 202
        result = finished(client, job.json())["result"]
        made = client.get(f"{PATH}/frontier").json()
        assert isinstance(result, dict)
        assert (result["calibrated"], result["source"], result["seconds"]) == (True, "queries", made["seconds"])
        assert max(each["queries"] for each in made["frontiers"]) < 400
    none = finished(client, client.post("/v1/collections/small/jobs", json={"kind": "calibrate"}).json())
    assert none["result"]["calibrated"] is False  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"vectors": [[0.0] * DIMS] * 99}, "100 to 3000 vectors, got 99"),
        ({"texts": ["one"] * 3001}, "100 to 3000 texts, got 3001"),
        ({"vectors": [[0.0] * 3] * 100}, "16 numbers, got 3"),
        ({"vectors": "no base64!"}, "base64"),
        ({"vectors": "AAAA", "texts": ["a"] * 100}, "at most one of vectors and texts"),
    ],
)
def test_queries_that_cannot_calibrate_are_refused_before_the_job(
    client: TestClient, body: dict[str, object], words: str
) -> None:
    answer = client.post(f"{PATH}/jobs", json={"kind": "calibrate", **body})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def samples(client: TestClient) -> dict[tuple[str, str], float]:
    """(name, collection and k) -> value."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, f"{sample.labels.get('collection')} {sample.labels.get('k', '')}".strip()): sample.value
        for family in families
        for sample in family.samples
    }


def test_live_recall_is_watched_told_and_counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.engine.monitor._COST_SHARE", 1.0)
    database.switch_aliases([nestvec.AliasSwitch("live", "big")])
    try:
        with TestClient(create_app(database, Settings(recall_share=1.0))) as client:
            wait_ready(client)
            assert client.get(f"{PATH}/recall").json() == {"recall": []}
            for query in points(30, 8).tolist():
                client.post("/v1/collections/live/query", json={"vector": query, "recall": 0.9})
            end = time.monotonic() + 30
            while sum(each["queries"] for each in client.get(f"{PATH}/recall").json()["recall"]) < 30:
                assert time.monotonic() < end
                time.sleep(0.02)
            (live,) = client.get("/v1/collections/live/recall").json()["recall"]
            assert (live["k"], live["selectivity"], live["target"], live["missed"]) == (10, 1.0, 0.9, False)
            assert live["low"] <= live["recall"] <= live["high"]
            found = samples(client)
            assert found["nestvec_recall", "big 10"] == live["recall"]
            assert found["nestvec_recall_low", "big 10"] == live["low"]
            assert found["nestvec_recall_high", "big 10"] == live["high"]
            assert found["nestvec_recall_target", "big 10"] == 0.9
            assert found["nestvec_compared_queries_total", "big 10"] == 30
            assert found["nestvec_compared_recall_total", "big 10"] == pytest.approx(30 * live["recall"])
            assert found["nestvec_calibration_stale", "big"] == 0
    finally:
        database.switch_aliases([nestvec.AliasSwitch("live", None)])


def test_a_share_of_nought_watches_nothing(client: TestClient, database: Database) -> None:
    fresh = database.create_collection("fresh", dims=DIMS)
    fresh.upsert([nestvec.Record("a", points(1, 3)[0])])
    assert client.post("/v1/collections/fresh/query", json={"vector": points(1, 3)[0].tolist()}).status_code == 200
    assert not fresh.watched
    with TestClient(create_app(database, Settings())) as watching:
        wait_ready(watching)
        watching.post("/v1/collections/fresh/query", json={"vector": points(1, 3)[0].tolist()})
    assert fresh.watched
