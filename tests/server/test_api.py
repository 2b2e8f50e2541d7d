"""What the routes do when they are used well."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

BASE = "/v1/collections/docs"
SIDE = [1.0, 0, 0, 0, 0, 0, 0, 0]


def test_health_is_open_and_info_says_what_runs(client: TestClient) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert client.get(path).json() == {"status": "ok"}
    info = client.get("/v1/info").json()
    named = {"name", "version", "kernels", "sqlite", "encoders", "routes", "workers", "limits", "damaged"}
    assert set(info) == named
    assert info["damaged"] == []
    assert {"exact", "soar"} <= set(info["routes"])
    assert info["limits"]["max_batch"] == 50
    assert info["name"] == "nestvec"
    assert "static" in info["encoders"]


def test_ready_only_between_start_and_stop(database: Database, settings: Settings) -> None:
    app = create_app(database, settings)
    response = TestClient(app).get("/readyz")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.001)
    assert TestClient(app).get("/readyz").status_code == 503


def test_put_collection_is_idempotent_and_refuses_another_configuration(client: TestClient) -> None:
    body = {"dims": 16, "metric": "l2", "granularities": [4, 16]}
    created = client.put("/v1/collections/new", json=body)
    again = client.put("/v1/collections/new", json=body)
    other = client.put("/v1/collections/new", json={**body, "metric": "dot"})
    assert (created.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert created.json() == again.json() == client.get("/v1/collections/new").json()
    assert created.json()["config"]["granularities"] == [4, 16]
    assert other.json()["code"] == "conflict"


def test_collections_are_listed_and_deleted(client: TestClient) -> None:
    client.put("/v1/collections/new", json={"dims": 4})
    assert [c["name"] for c in client.get("/v1/collections").json()["collections"]] == ["docs", "new"]
    deleted = client.delete("/v1/collections/new")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.delete("/v1/collections/new").status_code == 404
    assert [c["name"] for c in client.get("/v1/collections").json()["collections"]] == ["docs"]


def test_an_acknowledged_upsert_is_searchable_at_once(client: TestClient) -> None:
    record = {"id": "new-é-🙂", "vector": SIDE, "payload": {"big": 2**63, "deep": [{"a": None}]}, "text": "hello"}
    reply = client.put(f"{BASE}/records", json={"records": [record]})
    assert reply.status_code == 200
    assert reply.json()["count"] == 1
    found = client.post(f"{BASE}/query", json={"vector": SIDE, "k": 1, "with_vector": True}).json()
    (hit,) = found["hits"]
    assert hit == {**record, "score": pytest.approx(1.0)}
    assert set(found) == {"hits", "plan", "work", "generation", "filter", "recall", "took_ms"}
    assert found["plan"]["route"] == "exact"
    assert found["work"]["rows"] > 0
    assert found["took_ms"] >= 0


def test_records_are_read_counted_and_deleted(client: TestClient) -> None:
    got = client.post(f"{BASE}/records/get", json={"ids": ["r3", "absent", "r1"], "with_vector": True}).json()
    by_id = {record["id"]: record for record in got["records"]}
    assert set(by_id) == {"r1", "r3"}
    assert by_id["r3"]["payload"] == {"n": 3}
    assert len(by_id["r3"]["vector"]) == 8
    assert "vector" not in client.post(f"{BASE}/records/get", json={"ids": ["r3"]}).json()["records"][0]
    assert client.post(f"{BASE}/records/delete", json={"ids": ["r3", "absent"]}).json() == {"deleted": 1}
    assert client.get(f"{BASE}/records/count").json() == {"count": 19}
    assert client.post(f"{BASE}/records/get", json={"ids": ["r3"]}).json() == {"records": []}


def test_a_batch_answers_as_the_single_queries_do_in_their_order(client: TestClient) -> None:
    rng = np.random.default_rng(1)
    queries = [
        {"vector": rng.standard_normal(8).tolist(), "k": 1 + i % 3, "exact": i % 2 == 0, "with_payload": i < 3}
        for i in range(6)
    ]
    batch = client.post(f"{BASE}/query/batch", json={"queries": queries}).json()
    single = [client.post(f"{BASE}/query", json=query).json()["hits"] for query in queries]
    assert [result["hits"] for result in batch["results"]] == single
    assert [len(hits) for hits in single] == [1, 2, 3, 1, 2, 3]


def test_a_query_without_payload_has_none(client: TestClient) -> None:
    hits = client.post(f"{BASE}/query", json={"vector": SIDE, "with_payload": False}).json()["hits"]
    assert len(hits) == 10
    assert all(hit["payload"] is None and "vector" not in hit for hit in hits)


def test_seal_and_compact_keep_every_record(client: TestClient) -> None:
    before = client.post(f"{BASE}/query", json={"vector": SIDE, "exact": True}).json()["hits"]
    assert client.post(f"{BASE}/seal").json()["rows"] == 20
    client.post(f"{BASE}/records/delete", json={"ids": ["r0"]})
    compacted = client.post(f"{BASE}/compact")
    assert compacted.status_code == 200, compacted.text
    assert (compacted.json()["rows"], compacted.json()["dropped"]) == (19, 1)
    assert client.post(f"{BASE}/compact", json={"retrain": False}).status_code == 200
    after = client.post(f"{BASE}/query", json={"vector": SIDE, "exact": True}).json()["hits"]
    kept = [hit["id"] for hit in before if hit["id"] != "r0"]
    assert [hit["id"] for hit in after][: len(kept)] == kept
    info = client.get(BASE).json()
    assert (info["count"], info["growing"], info["sealed"]) == (19, 0, 19)


def test_a_soar_plan_is_followed_and_reported_stage_by_stage(client: TestClient) -> None:
    rng = np.random.default_rng(5)
    client.put("/v1/collections/many", json={"dims": 8, "granularities": [4, 8]})
    for start in range(0, 400, 50):
        records = [{"id": str(start + i), "vector": rng.standard_normal(8).tolist()} for i in range(50)]
        assert client.put("/v1/collections/many/records", json={"records": records}).status_code == 200
    client.post("/v1/collections/many/seal")
    assert client.post("/v1/collections/many/compact", json={"retrain": True}).status_code == 200
    plan = {
        "route": "soar",
        "probes": 2,
        "probe_margin": 9.5,
        "shortlist": {"keep": 80, "margin": 7.5},
        "stages": [
            {"dims": 64, "keep": 60, "margin": 6.5, "rows": "int8"},
            {"dims": 4, "keep": 40, "rows": "stored"},
        ],
        "stage_metric": "partial",
    }
    reply = client.post("/v1/collections/many/query", json={"vector": SIDE, "k": 5, "plan": plan}).json()
    assert reply["plan"] == plan
    assert len(reply["hits"]) == 5
    assert reply["generation"] is not None
    assert reply["work"]["partitions"] >= 2
    assert [stage["dims"] for stage in reply["work"]["stages"]][1:] == [64, 4, 8]


def test_text_is_encoded_by_the_collections_encoder(client: TestClient) -> None:
    assert client.put("/v1/collections/prose", json={"encoder": "static"}).status_code == 201
    texts = {"cat": "a small cat sleeps on the sofa", "socket": "open a TCP network socket", "soup": "recipe for soup"}
    records = [{"id": id, "text": text} for id, text in texts.items()]
    assert client.put("/v1/collections/prose/records", json={"records": records}).json()["count"] == 3
    reply = client.post("/v1/collections/prose/query", json={"text": "network connection over TCP", "k": 1})
    assert reply.status_code == 200, reply.text
    (hit,) = reply.json()["hits"]
    assert (hit["id"], hit["text"]) == ("socket", texts["socket"])
    queries = [{"text": "kitten"}, {"vector": [0.5] * client.get("/v1/collections/prose").json()["config"]["dims"]}]
    assert len(client.post("/v1/collections/prose/query/batch", json={"queries": queries}).json()["results"]) == 2


def test_text_without_an_encoder_is_a_clear_refusal(client: TestClient) -> None:
    for path, body in ((f"{BASE}/query", {"text": "a"}), (f"{BASE}/query/batch", {"queries": [{"text": "a"}]})):
        problem = client.post(path, json=body)
        assert problem.status_code in (409, 422)
        assert "encoder" in problem.json()["detail"]


def test_the_request_id_comes_back_or_is_made(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/healthz", headers={"X-Request-Id": "bad id\t"}).headers["x-request-id"]
    assert made != client.get("/healthz").headers["x-request-id"]
    assert 16 <= len(made) <= 64
    assert client.get("/v1/no", headers={"X-Request-Id": "abc-2"}).json()["instance"] == "abc-2"


def test_replies_are_json_bytes_that_msgspec_reads_back(client: TestClient) -> None:
    from nestvec.server.wire import QueryReply

    reply = client.post(f"{BASE}/query", json={"vector": SIDE})
    assert reply.headers["content-type"] == "application/json"
    assert len(msgspec.json.decode(reply.content, type=QueryReply).hits) == 10
