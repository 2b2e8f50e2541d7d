"""Every limit holds: at the bound a request is taken, one past it is refused, and the bound is told where it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from nestvec.engine import keys
from nestvec.engine.database import Database
from nestvec.errors import InvalidInput
from nestvec.server.limits import FIXED
from nestvec.server.settings import LIMITS, Settings

C = "/v1/collections/docs"
V = [0.5] * 8
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


class Limit(NamedTuple):
    """How to be at a bound: `make(n)` is the body of a request for n."""

    name: str
    bound: int
    method: str
    path: str
    make: Any
    refused: int = 422


def records(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"records": [{"id": "edge", "vector": V} | fields]}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def filtered(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"field": "n", "eq": 1}
    for _ in range(depth - 1):
        tree = {"not": tree}
    return {"filter": tree}


CONDITION = {"field": "n", "eq": 1}
TABLE = [
    Limit("max_dims", 4096, "PUT", "/v1/collections/wide", lambda n: {"dims": n}),
    Limit("max_id_bytes", 256, "PUT", f"{C}/records", lambda n: records(id="x" * n)),
    Limit("max_payload_bytes", 65536, "PUT", f"{C}/records", lambda n: records(payload={"a": "x" * (n - 8)})),
    Limit("max_payload_depth", 32, "PUT", f"{C}/records", lambda n: records(payload=nested(n))),
    Limit("max_text_bytes", 1 << 20, "PUT", f"{C}/records", lambda n: records(text="x" * n)),
    Limit("max_filter", 64, "POST", f"{C}/records/count", lambda n: {"filter": {"all": [CONDITION] * n}}),
    Limit("max_filter_depth", 8, "POST", f"{C}/records/count", filtered),
    Limit("max_filter_values", 1000, "POST", f"{C}/records/count", lambda n: {"filter": {"field": "n", "in": [1] * n}}),
    Limit("max_page", 1000, "POST", f"{C}/records/scroll", lambda n: {"limit": n}),
    Limit("max_k", 1000, "POST", f"{C}/query", lambda n: {"vector": V, "k": n}),
    Limit("max_batch", 50, "POST", f"{C}/query/batch", lambda n: {"queries": [{"vector": V}] * n}),
    Limit("max_batch", 50, "PUT", f"{C}/records", lambda n: {"ids": [f"b{i}" for i in range(n)], "vectors": [V] * n}),
    Limit("max_batch", 50, "POST", f"{C}/records/get", lambda n: {"ids": ["a"] * n}),
    Limit("max_batch", 50, "POST", f"{C}/records/delete", lambda n: {"ids": ["a"] * n}),
    Limit("max_fields", 64, "PATCH", C, lambda n: {"fields": {f"f{i}": "string" for i in range(n)}}),
    Limit("max_bm25_fields", 16, "PUT", "/v1/collections/words",
          lambda n: {"dims": 2, "bm25": True, "bm25_fields": [f"f{i}" for i in range(n)]}),
    Limit("max_switches", 100, "POST", "/v1/aliases",
          lambda n: {"switches": [{"alias": f"a{i}", "collection": "docs"} for i in range(n)]}),
    Limit("max_body_mb", 2, "POST", f"{C}/query", lambda n: {"vector": V, "filter": {"field": "n", "eq": "x" * (
        (n << 20) - 200)}}, 413),
]  # fmt: skip
ELSEWHERE = {
    "max_upload_mb": "tests/server/test_admin.py, tests/server/test_gate.py",
    "max_in_flight": "tests/server/test_gate.py",
    "max_in_flight_per_key": "tests/server/test_gate.py",
    "max_in_flight_mb": "tests/server/test_gate.py",
    "max_uploads": "tests/server/test_gate.py",
    "request_seconds": "tests/server/test_gate.py",
    "read_seconds": "tests/server/test_gate.py",
    "keep_alive_seconds": "uvicorn's own",
    "auth_failures_per_minute": "tests/server/test_keys.py",
    "max_keys": "below",
    "max_queued_jobs": "tests/server/test_admin.py",
}
"""Limits that one request does not reach, and where they are tested."""
SCHEMA = {  # limit -> what stands in the OpenAPI document
    "max_dims": '"maxItems": 4096',
    "max_id_bytes": "1 to 256 bytes",
    "max_payload_bytes": "at most 65536 bytes and 32 deep",
    "max_payload_depth": "at most 65536 bytes and 32 deep",
    "max_text_bytes": '"maxLength": 1048576',
    "max_filter": "At most 64 conditions, 8 deep",
    "max_filter_depth": "At most 64 conditions, 8 deep",
    "max_filter_values": "1000 values after `in`",
    "max_page": '"maximum": 1000',
    "max_k": '"maximum": 1000',
    "max_batch": '"maxItems": 50',
    "max_fields": '"maxProperties": 64',
    "max_bm25_fields": '"maxItems": 16',
    "max_switches": '"maxItems": 100',
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("NESTVEC_API_KEY", raising=False)
    return Settings(max_body_mb=2, max_batch=50)


def test_one_key_too_many_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 3)  # a thousand of them take long to make
    for number in range(3):
        database.create_key(f"k{number}", "read")
    with pytest.raises(InvalidInput, match="at most 3 keys"):
        database.create_key("more", "read")


@pytest.mark.parametrize("limit", TABLE, ids=lambda limit: f"{limit.name} {limit.path}")
def test_at_the_bound_it_is_taken_and_past_it_refused(client: TestClient, limit: Limit) -> None:
    headers = {}
    if limit.method == "PATCH":
        headers = {"If-Match": client.get(limit.path).headers["etag"]}

    def ask(n: int) -> tuple[int, str]:
        answer = client.request(limit.method, limit.path, json=limit.make(n), headers=headers)
        return answer.status_code, answer.text

    status, text = ask(limit.bound + 1)
    assert status == limit.refused, text
    status, text = ask(limit.bound)
    assert status in (200, 201), text[:300]


def test_every_limit_is_told_by_info_and_stands_in_the_docs(client: TestClient) -> None:
    told = client.get("/v1/info").json()["limits"]
    assert set(told) == set(LIMITS) | set(FIXED)
    docs = DOCS.read_text().replace("\n", " ")
    for limit in TABLE:
        assert told[limit.name] == limit.bound, limit.name
    for name, bound in FIXED.items():
        assert f"{bound:,} " in docs, name
    for name in LIMITS:
        assert f"`{name}`" in docs, name
    assert {limit.name for limit in TABLE} | set(ELSEWHERE) == set(told)


def test_every_limit_of_a_body_stands_in_the_document(client: TestClient) -> None:
    document = json.dumps(client.get("/openapi.json").json())
    for name, words in SCHEMA.items():
        assert words in document, name
    assert set(SCHEMA) == {limit.name for limit in TABLE} - {"max_body_mb"}


def test_a_setting_beyond_what_the_engine_can_is_refused() -> None:
    for name, value in (("max_k", 1001), ("max_filter", 65), ("max_body_mb", 1025), ("max_batch", 100_001)):
        with pytest.raises(ValueError, match=name):
            Settings(**{name: value})
