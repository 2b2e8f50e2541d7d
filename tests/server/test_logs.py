"""Logs: one JSON line per request, and nothing in them that belongs to the users."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.logs import RequestLog
from nestvec.server.settings import Settings

START = """
import sys
from nestvec.server.start import serve
from nestvec.server.settings import Settings
serve(sys.argv[1], Settings())
"""
NUMBER = 0.123456789  # the canary among the vectors


def lines_of(database: Database, level: str, *requests: tuple[str, str, object]) -> list[dict[str, object]]:
    stream = io.BytesIO()
    client = TestClient(create_app(database, Settings(), RequestLog(level, stream)))
    for method, path, body in requests:
        client.request(method, path, json=body)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line(database: Database) -> None:
    query = {"vector": [1.0] * 8, "k": 1}
    lines = lines_of(database, "info", ("POST", "/v1/collections/docs/query", query), ("GET", "/healthz", None))
    assert len(lines) == 2
    line = lines[0]
    assert set(line) == {"event", "level", "logger", "timestamp", "request_id", "method", "route", "status", "ms",
                         "bytes_in", "bytes_out", "collection"}  # fmt: skip
    assert (line["event"], line["level"], line["route"]) == ("request", "info", "/v1/collections/{name}/query")
    assert (line["status"], line["collection"], line["method"]) == (200, "docs", "POST")
    assert line["bytes_in"] == len(json.dumps(query, separators=(",", ":")))
    assert isinstance(line["ms"], float)


def test_the_level_is_a_setting(database: Database) -> None:
    assert lines_of(database, "warning", ("GET", "/healthz", None)) == []
    (line,) = lines_of(database, "warning", ("GET", "/readyz", None))  # never warmed: 503
    assert (line["level"], line["status"]) == ("warning", 503)


def test_a_real_service_logs_no_keys_vectors_payloads_texts_or_ids(tmp_path: Path) -> None:
    key = "canary-key-5309"
    environment = {**os.environ, "NESTVEC_PORT": "0", "NESTVEC_API_KEY": key, "NESTVEC_LOG_LEVEL": "debug"}
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path / "db")], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    url = json.loads(process.stderr.readline())["event"].split(" on ")[1].split(" ")[0]
    try:
        with httpx.Client(base_url=url, headers={"X-API-Key": key}) as client:
            _visit(client)
    finally:
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    every = [json.loads(line) for line in log.splitlines()]
    assert {line["route"] for line in every if line["event"] == "request"} >= {"/v1/keys", "/v1/embeddings", "none"}
    assert "canary" not in log
    assert str(NUMBER) not in log
    assert base64.b64encode(b"canary")[:6].decode() not in log
    assert "nestvec_" not in log  # how every secret begins


def _visit(client: httpx.Client) -> None:
    """Every kind of request, good and bad, each with a canary in what belongs to the user."""
    deadline = time.monotonic() + 30
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
    base = "/v1/collections/c"
    client.put(base, json={"encoder": "static"})
    record = {"id": "canary-id", "text": "canary text", "payload": {"canary-field": "canary-value"}}
    assert client.put(base + "/records", json={"records": [record]}).status_code == 200
    assert client.post(base + "/query", json={"text": "canary question"}).status_code == 200
    client.post(base + "/query", json={"vector": [NUMBER] * 256})
    client.post(base + "/query", json={"vector": [NUMBER] * 3})
    client.post(base + "/query", json={"vector": [NUMBER] * 256, "filter": {"field": "canary-field", "eq": "canary"}})
    client.put(base + "/records", json={"records": [{"id": "canary-id", "canary": 1}]})
    client.put(
        base + "/records", content=b'{"records": [{"id": "canary-id"', headers={"Content-Type": "application/json"}
    )
    bad = json.dumps({"id": "canary-id", "vector": [NUMBER], "payload": {"canary-field": "canary-value"}})
    job = client.post(base + "/import", content=bad, headers={"Content-Type": "application/jsonl"}).json()["id"]
    while (ended := client.get(f"/v1/jobs/{job}").json())["state"] != "failed":
        assert time.monotonic() < deadline
    assert "canary-id" in ended["error"]
    client.post(base + "/records/get", json={"ids": ["canary-id"]})
    client.post(base + "/records/delete", json={"ids": ["canary-id"]})
    client.post("/v1/embeddings", json={"model": "canary-model", "input": "canary input"})
    client.post("/v1/embeddings", json={"model": "static", "input": ["canary input", ""]})
    made = client.post("/v1/keys", json={"name": "other", "scope": "read"}).json()
    client.get("/v1/info", headers={"X-API-Key": made["secret"]})
    client.get("/v1/info", headers={"X-API-Key": "canary-wrong"})
    client.get("/canary-path?canary=1", headers={"User-Agent": "canary-agent"})
    client.get("/v1/collections/canary!")
