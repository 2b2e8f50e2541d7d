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
from nestvec.server.app import create_app, serve
from nestvec.server.settings import Settings

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
    def damaged(_: Collection) -> None:
        raise Damaged("segments/1/vectors.bin", "fails its checksum")

    monkeypatch.setattr(Collection, "warm", damaged)
    monkeypatch.delenv("NESTVEC_API_KEY", raising=False)
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("docs", dims=4)
    with pytest.raises(Damaged, match="fails its checksum"):
        serve(tmp_path / "db", Settings(port=0))


def test_a_missing_encoder_stops_only_text(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_encoder(_: Collection) -> None:
        raise EncoderMismatch("made with another encoder")

    monkeypatch.setattr(Collection, "warm", other_encoder)
    with TestClient(create_app(database, Settings())) as client:
        deadline = time.monotonic() + 10
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
