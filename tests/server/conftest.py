"""A real database of one small collection behind the real application."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.database import Database
from nestvec.engine.record import Record
from nestvec.server.app import create_app
from nestvec.server.process import configuration
from nestvec.server.settings import Settings
from nestvec.server.waiting import listen

DIMS = 8


def vectors(n: int) -> np.ndarray:
    """n random vectors, the same every time."""
    return np.random.default_rng(7).standard_normal((n, DIMS)).astype(np.float32)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("NESTVEC_API_KEY", raising=False)
    return Settings(max_body_mb=1, max_batch=50)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with nestvec.open(tmp_path / "db") as database:
        fill(database)
        yield database


def fill(database: Database) -> None:
    """The collection `docs` of 20 records."""
    rows = vectors(20)
    collection = database.create_collection("docs", dims=DIMS, granularities=(4, DIMS))
    collection.upsert([Record(f"r{i}", rows[i], {"n": i}, f"text {i}") for i in range(20)])


@pytest.fixture
def client(database: Database, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(database, settings)) as client:
        wait_ready(client)
        yield client


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of one service for all of a module's refusals; after them it holds what it held before."""
    with nestvec.open(tmp_path_factory.mktemp("refusing") / "db") as database, pytest.MonkeyPatch.context() as patch:
        patch.delenv("NESTVEC_API_KEY", raising=False)
        fill(database)
        with TestClient(create_app(database, Settings(max_body_mb=1, max_batch=50))) as client:
            wait_ready(client)
            yield client
        assert [info.name for info in database.collections()] == ["docs"]
        held = database.collection("docs").scroll(limit=100)
        assert [(record.id, record.payload) for record in held] == [(f"r{i}", {"n": i}) for i in range(20)]


@pytest.fixture
def served() -> Callable[[FastAPI], AbstractContextManager[str]]:
    """Serves an application over a real socket, in a thread; gives its address."""
    return serve_in_thread


@contextmanager
def serve_in_thread(app: FastAPI) -> Iterator[str]:
    settings = app.state.service.settings.model_copy(update={"port": 0})
    server = uvicorn.Server(configuration(app, settings))
    with listen(settings) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def wait_ready(client: TestClient) -> None:
    """Return when every collection is warm."""
    deadline = time.monotonic() + 30
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline, client.get("/readyz").json()
        time.sleep(0.001)
