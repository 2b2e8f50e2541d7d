"""What Prometheus reads: requests by route, steps of searches, refusals, collections; with labels that stay few."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

BASE = "/v1/collections/docs"


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value."""
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status_not_by_what_clients_invent(client: TestClient) -> None:
    for i in range(3):
        client.get(f"/v1/collections/absent-{i}")
        client.get(f"/nothing/{i}")
        client.request(f"BREW{i}", "/v1/info")
    client.get(BASE)
    found = samples(client)
    counted = {labels: value for (name, labels), value in found.items() if name == "nestvec_requests_total"}
    route = ("route", "/v1/collections/{name}")
    assert counted[(("method", "GET"), route, ("status", "404"))] == 3
    assert counted[(("method", "GET"), route, ("status", "200"))] == 1
    assert counted[(("method", "any"), ("route", "none"), ("status", "404"))] == 3
    assert counted[(("method", "any"), ("route", "none"), ("status", "405"))] == 3
    times = [
        value for (name, labels), value in found.items() if name == "nestvec_request_seconds_count" and route in labels
    ]
    assert times == [4]
    assert not re.search(r"absent|nothing|BREW", client.get("/metrics").text)


def test_every_step_of_a_search_has_a_histogram(client: TestClient) -> None:
    for _ in range(2):
        assert client.post(f"{BASE}/query", json={"vector": [1.0] * 8}).status_code == 200
    client.post(f"{BASE}/query/batch", json={"queries": [{"vector": [1.0] * 8}, {"vector": [0.5] * 8}]})
    found = samples(client)
    assert found[("nestvec_search_step_seconds_count", (("step", "exact"),))] == 4
    assert 0 < found[("nestvec_search_step_seconds_sum", (("step", "exact"),))] < 1


def test_a_text_query_has_the_step_encode(client: TestClient) -> None:
    client.put("/v1/collections/prose", json={"encoder": "static"})
    client.put("/v1/collections/prose/records", json={"records": [{"id": "a", "text": "a small cat"}]})
    client.post("/v1/collections/prose/query", json={"text": "cat"})
    assert samples(client)[("nestvec_search_step_seconds_count", (("step", "encode"),))] == 1


def test_collections_are_told_as_they_are_now(client: TestClient, database: Database) -> None:
    docs = (("collection", "docs"),)
    found = samples(client)
    assert (found[("nestvec_collection_rows", docs)], found[("nestvec_collection_growing", docs)]) == (20, 20)
    database.collection("docs").seal()
    database.collection("docs").delete(["r0"])
    found = samples(client)
    assert [found[(f"nestvec_collection_{what}", docs)] for what in ("rows", "growing", "segments")] == [19, 0, 1]
    database.delete_collection("docs")
    assert ("nestvec_collection_rows", docs) not in samples(client)


def test_the_build_and_refusals_are_told(database: Database) -> None:
    client = TestClient(create_app(database, Settings(api_key=SecretStr("k"))), headers={"X-API-Key": "k"})
    client.get("/v1/info", headers={"X-API-Key": "wrong"})
    found = samples(client)
    assert found[("nestvec_refused_total", (("reason", "auth"),))] == 1
    assert found[("nestvec_requests_in_flight", ())] == 1  # this very one
    (build,) = [labels for name, labels in found if name == "nestvec_build_info"]
    assert {name for name, _ in build} == {"version", "kernels"}
