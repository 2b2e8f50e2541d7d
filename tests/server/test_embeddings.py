"""/v1/embeddings answers as OpenAI's does."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.engine.encoders.registry import load_encoder
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

TEXTS = ["a small cat sleeps on the sofa", "open a TCP network socket"]


def embed(client: TestClient, **body: object) -> NDArray[np.float32]:
    reply = client.post("/v1/embeddings", json={"model": "static", "input": TEXTS, **body})
    assert reply.status_code == 200, reply.text
    return np.array([one["embedding"] for one in reply.json()["data"]], np.float32)


def test_the_shape_is_openais(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"model": "static", "input": TEXTS, "user": "somebody"}).json()
    assert set(reply) == {"object", "model", "data", "usage"}
    assert (reply["object"], reply["model"]) == ("list", "static")
    assert [(one["object"], one["index"]) for one in reply["data"]] == [("embedding", 0), ("embedding", 1)]
    assert reply["usage"] == {"prompt_tokens": 12, "total_tokens": 12}


def test_the_vectors_are_the_encoders(client: TestClient) -> None:
    encoder = load_encoder("static")
    np.testing.assert_array_equal(embed(client), encoder.encode_documents(TEXTS))
    np.testing.assert_array_equal(embed(client, input_type="query"), encoder.encode_queries(TEXTS))
    np.testing.assert_array_equal(embed(client, input=TEXTS[1]), encoder.encode_documents(TEXTS[1:]))


def test_base64_is_the_same_float32_numbers(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"model": "static", "input": TEXTS, "encoding_format": "base64"}).json()
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in reply["data"]]
    np.testing.assert_array_equal(decoded, embed(client))


def test_dimensions_cut_to_a_granularity_and_scale_again(client: TestClient) -> None:
    encoder = load_encoder("static")
    whole = embed(client)
    for dims in encoder.granularities:
        short = embed(client, dimensions=dims)
        wanted = whole[:, :dims] / np.linalg.norm(whole[:, :dims], axis=1, keepdims=True)
        np.testing.assert_allclose(short, wanted, atol=1e-6)
    refused = client.post("/v1/embeddings", json={"model": "static", "input": TEXTS, "dimensions": 100})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/dimensions"
    assert ", ".join(map(str, encoder.granularities)) in refused.json()["detail"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "openai:http://internal.example#m"}, 404),
        ({"model": "absent"}, 404),
        ({"input": []}, 422),
        ({"input": ""}, 422),
        ({"input": ["fine", ""]}, 422),
        ({"input": [[1, 2, 3]]}, 422),
        ({"input": ["x"] * 51}, 422),
        ({"encoding_format": "hex"}, 422),
        ({"surprise": 1}, 422),
    ],
)
def test_what_cannot_be_answered_is_refused(client: TestClient, change: dict[str, object], status: int) -> None:
    reply = client.post("/v1/embeddings", json={"model": "static", "input": TEXTS, **change})
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"


def test_a_read_key_is_enough_and_sees_only_its_collections_encoders(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestvec.server.routes_embeddings._ALWAYS", "another")
    database.create_collection("prose", encoder="static")
    bound = {name: database.create_key(name, "read", [name])[1] for name in ("docs", "prose")}
    client = TestClient(create_app(database, Settings()))
    for name, status in (("docs", 404), ("prose", 200)):
        body = {"model": "static", "input": "x"}
        assert client.post("/v1/embeddings", json=body, headers={"X-API-Key": bound[name]}).status_code == status
