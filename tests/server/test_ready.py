"""Ready is more than alive: collections are mapped and warm, and the service is not stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.collection import Collection
from nestvec.engine.database import Database
from nestvec.errors import Damaged, EncoderMismatch
from nestvec.server.app import create_app
from nestvec.server.settings import Settings
from nestvec.server.start import serve

Served = Callable[[FastAPI], AbstractContextManager[str]]


def test_the_socket_answers_while_collections_are_warmed(
    database: Database, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(Collection, "warm", lambda _: let_go.wait(30))
    app = create_app(database, Settings())
    with served(app) as url:
        deadline = time.monotonic() + 10
        while True:
            try:
                assert httpx.get(url + "/livez").status_code == 200
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
        cold = httpx.get(url + "/readyz")
        assert (cold.status_code, cold.headers["retry-after"]) == (503, "1")
        let_go.set()
        while httpx.get(url + "/readyz").status_code != 200:
            assert time.monotonic() < deadline
        app.state.service.stopping = True
        assert httpx.get(url + "/readyz").status_code == 503


def test_a_database_that_cannot_be_read_ends_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_: Collection) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Collection, "warm", unreadable)
    monkeypatch.delenv("NESTVEC_API_KEY", raising=False)
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("docs", dims=4)
    with pytest.raises(OSError, match="the disk is gone"):
        serve(tmp_path / "db", Settings(port=0))


def test_a_damaged_collection_leaves_the_others_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NESTVEC_API_KEY", raising=False)
    with nestvec.open(tmp_path / "db") as database:
        for name in ("broken", "whole"):
            database.create_collection(name, dims=2).upsert([nestvec.Record("a", [1, 0])])
        path = database.collection("broken").part.layout.catalog
    data = bytearray(path.read_bytes())
    at = data.rindex(b'"metric": "cosine"')
    data[at] ^= 1
    path.write_bytes(data)
    with nestvec.open(tmp_path / "db") as database, TestClient(create_app(database, Settings())) as client:
        deadline = time.monotonic() + 10
        while (reply := client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline
        assert reply.json() == {"status": "degraded"}
        assert client.get("/v1/info").json()["damaged"] == ["broken"]
        assert [one["name"] for one in client.get("/v1/collections").json()["collections"]] == ["whole"]
        query = {"vector": [1.0, 0.0], "k": 1}
        assert len(client.post("/v1/collections/whole/query", json=query).json()["hits"]) == 1
        refused = client.post("/v1/collections/broken/query", json=query)
        assert (refused.status_code, refused.json()["code"]) == (500, "damaged")
        with pytest.raises(Damaged, match="configuration fails its checksum"):
            database.create_collection("broken", dims=2)
        with pytest.raises(nestvec.NotFound):
            database.collection("other")


def test_a_missing_encoder_stops_only_text(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_encoder(_: Collection) -> None:
        raise EncoderMismatch("made with another encoder")

    monkeypatch.setattr(Collection, "warm", other_encoder)
    with TestClient(create_app(database, Settings())) as client:
        deadline = time.monotonic() + 10
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
