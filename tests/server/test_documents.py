"""Collections with chunking over REST, and which encoders a client may choose."""

from __future__ import annotations

import msgspec
import pytest
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

LONG = "The archive module reads members of a compressed file. " * 20 + "Rain falls on the mountains. " * 20


@pytest.fixture
def chunked(client: TestClient) -> TestClient:
    body = {"encoder": "static", "chunking": {"words": 20, "overlap": 5}}
    assert client.put("/v1/collections/long", json=body).status_code == 201
    records = [{"id": "page", "text": LONG}, {"id": "note", "text": "An orchestra plays."}]
    reply = client.put("/v1/collections/long/records", json={"records": records})
    assert reply.json()["count"] == 2
    return client


def test_the_configuration_comes_back_and_the_same_one_is_found(chunked: TestClient) -> None:
    assert chunked.get("/v1/collections/long").json()["config"]["chunking"] == {"words": 20, "overlap": 5}
    assert chunked.get("/v1/collections/docs").json()["config"]["chunking"] is None
    same = {"encoder": "static", "chunking": {"words": 20, "overlap": 5}}
    assert chunked.put("/v1/collections/long", json=same).status_code == 200
    assert chunked.put("/v1/collections/long", json={"encoder": "static"}).status_code == 409


@pytest.mark.parametrize(
    "chunking", [{"words": 7}, {"words": 20, "overlap": 11}, {"words": "20"}, {"tokens": 20}, {"words": 20.5}, 20]
)
def test_chunking_that_makes_no_sense_is_422(client: TestClient, chunking: object) -> None:
    body = {"encoder": "static", "chunking": chunking}
    assert client.put("/v1/collections/bad", json=body).status_code == 422


def test_a_hit_has_its_chunk_s_id_and_its_document_s(chunked: TestClient) -> None:
    query = {"text": "rain in the mountains", "k": 5}
    hits = chunked.post("/v1/collections/long/query", json=query).json()["hits"]
    assert [hit["document"] for hit in hits] == ["page", "note"]
    assert hits[0]["id"].startswith("page#")
    assert "Rain" in hits[0]["text"]
    packed = chunked.post("/v1/collections/long/query", json=query, headers={"Accept": "application/msgpack"})
    assert [hit["document"] for hit in msgspec.msgpack.decode(packed.content)["hits"]] == ["page", "note"]
    plain = chunked.post("/v1/collections/docs/query", json={"vector": [1.0] * 8, "k": 1}).json()["hits"]
    assert "document" not in plain[0]


def test_documents_are_counted_read_and_deleted_whole(chunked: TestClient) -> None:
    assert chunked.get("/v1/collections/long/records/count").json()["count"] == 2
    got = chunked.post("/v1/collections/long/records/get", json={"ids": ["page"]}).json()["records"]
    assert len(got) > 5
    assert chunked.post("/v1/collections/long/records/delete", json={"ids": ["page"]}).json()["deleted"] == 1
    assert chunked.get("/v1/collections/long/records/count").json()["count"] == 1


@pytest.mark.parametrize("name", ["sentence-transformers:/etc", "openai:http://127.0.0.1:1/v1#m", "static:x"])
def test_a_client_cannot_have_the_service_open_a_folder_or_an_address(client: TestClient, name: str) -> None:
    reply = client.put("/v1/collections/mine", json={"encoder": name})
    assert reply.status_code == 422
    assert "NESTVEC_ENCODERS" in reply.json()["detail"]


def test_what_the_operator_lists_is_tried(database: Database) -> None:
    name = "openai:http://127.0.0.1:1/v1#m?query_deadline=0.1"
    with TestClient(create_app(database, Settings(encoders=f"other:one {name}"))) as client:
        reply = client.put("/v1/collections/mine", json={"encoder": name})
    assert (reply.status_code, reply.json()["code"]) == (502, "encoder_unavailable")
