"""A real database of one small collection behind the real application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.database import Database
from nestvec.engine.record import Record
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

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
        collection = database.create_collection("docs", dims=DIMS, granularities=(4, DIMS))
        rows = vectors(20)
        collection.upsert([Record(f"r{i}", rows[i], {"n": i}, f"text {i}") for i in range(20)])
        yield database


@pytest.fixture
def client(database: Database, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(database, settings)) as client:
        yield client
