"""Keys, the published document, and errors that must not show insides."""

from __future__ import annotations

import hashlib
import hmac
import logging

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.errors import (
    Busy,
    Conflict,
    Damaged,
    DatabaseLocked,
    EncoderMismatch,
    InvalidInput,
    InvalidRecord,
    MissingDependency,
    NestvecError,
    NotFound,
    OutcomeUnknown,
)
from nestvec.server.app import create_app
from nestvec.server.errors import from_engine
from nestvec.server.gate import OPEN_PATHS
from nestvec.server.settings import Settings, check_bind
from nestvec.server.start import serve

KEY = "correct horse é"


@pytest.fixture
def locked(database: Database) -> FastAPI:
    return create_app(database, Settings(api_key=SecretStr(KEY), auth_failures_per_minute=0))


def routes(app: FastAPI) -> list[tuple[str, str]]:
    found = [(m, r.path) for r in app.routes if isinstance(r, APIRoute) for m in r.methods]
    assert len(found) >= 16
    return found


def test_every_route_but_health_refuses_without_the_key(locked: FastAPI) -> None:
    client = TestClient(locked)
    for method, path in routes(locked):
        path = path.replace("{name}", "docs")
        if path in OPEN_PATHS:
            assert client.request(method, path).status_code in (200, 503)
            continue
        assert path.startswith("/v1/") or path == "/metrics"
        wrong = [{}, {"X-API-Key": ""}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer"},
                 {"Authorization": "Basic " + "eA=="}, {"Authorization": "Bearer wrong"},
                 {"X-API-Key": b"\xff\xfe"}]  # fmt: skip
        for headers in wrong:
            response = client.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert (response.status_code, response.json()["code"]) == (401, "unauthorized"), (method, path)
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1//info", "/v1/info/", "//v1/info", "/v1/%69nfo", "/healthz/", "/nothing"])
def test_no_spelling_of_a_path_goes_round_the_key(locked: FastAPI, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        assert TestClient(locked).request(method, path).status_code == 401


def test_the_key_opens_in_both_headers(locked: FastAPI) -> None:
    client, key = TestClient(locked), KEY.encode()
    assert client.get("/v1/info", headers={b"X-API-Key": key}).status_code == 200
    assert client.get("/v1/info", headers={b"Authorization": b"Bearer " + key}).status_code == 200


def test_keys_are_compared_as_digests_in_constant_time(locked: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append((a, b)), real(a, b))[1])
    TestClient(locked).get("/v1/info", headers={"X-API-Key": "guess"})
    assert compared == [(hashlib.sha256(b"guess").digest(), hashlib.sha256(KEY.encode()).digest())]


def test_without_a_key_only_loopback_is_served(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTVEC_API_KEY", " ")
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(InvalidInput, match=r"refusing to bind to .* without an API key") as refused:
            serve(str(tmp_path), Settings(host=host))
        assert "\n" not in str(refused.value)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_bind(Settings(host=host))
    check_bind(Settings(host="0.0.0.0", api_key=SecretStr(KEY)))


def test_settings_come_from_the_environment_and_hide_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTVEC_PORT", "9999")
    monkeypatch.setenv("NESTVEC_API_KEY", KEY)
    settings = Settings()
    assert settings.port == 9999
    assert KEY not in repr(settings)


def test_every_route_is_in_the_document_and_the_document_in_the_routes(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    document = client.get("/openapi.json").json()
    written = {(m.upper(), p) for p, operations in document["paths"].items() for m in operations}
    assert written == set(routes(app))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            good = [s for s in answers if s.startswith("2")]
            assert good, (method, path)
            assert all(answers[s]["content"] for s in good if s != "204")
            problems = {s for s in answers if s >= "4"}
            assert all("application/problem+json" in answers[s]["content"] for s in problems)
            assert path in OPEN_PATHS or problems >= {"401", "413", "415", "500", "503"}
            assert "{name}" not in path or problems >= {"404", "422"}
            assert path.endswith(("/seal",)) or method not in ("put", "post") or "requestBody" in operation


def test_every_reference_in_the_document_resolves(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    names = set(document["components"]["schemas"])
    assert "HTTPValidationError" not in names

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(item) for item in value.values()))
        return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()

    assert {r.removeprefix("#/components/schemas/") for r in references(document)} == names
    assert document["components"]["schemas"]["UpsertBody"]["properties"]["records"]["maxItems"] == 50


def test_the_document_names_the_key_only_where_it_is_needed(locked: FastAPI, client: TestClient) -> None:
    with_key = TestClient(locked).get("/openapi.json").json()
    assert with_key["paths"]["/v1/info"]["get"]["security"] == [{"bearer": []}, {"key": []}]
    assert with_key["paths"]["/healthz"]["get"]["security"] == []
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidInput("x"), 422, "invalid_input"),
        (InvalidRecord(3, "a", "x"), 422, "invalid_record"),
        (EncoderMismatch("x"), 409, "encoder_mismatch"),
        (NotFound("x"), 404, "not_found"),
        (Conflict("x"), 409, "conflict"),
        (Busy("x"), 503, "busy"),
        (DatabaseLocked("x", 1), 503, "busy"),
        (OutcomeUnknown("x"), 503, "outcome_unknown"),
        (Damaged("/secret/path", "x"), 500, "damaged"),
        (MissingDependency("x", "parquet"), 501, "missing_dependency"),
        (NestvecError("x"), 500, "internal"),
    ],
)
def test_each_error_of_the_engine_has_one_status(error: NestvecError, status: int, code: str) -> None:
    problem = from_engine(error)
    assert (problem.status, problem.code) == (status, code)
    assert ("Retry-After" in problem.headers) == isinstance(error, Busy)
    assert "/secret" not in problem.detail
    assert [e.pointer for e in problem.errors] == (["/records/3"] if code == "invalid_record" else [])


def test_an_unexpected_error_shows_nothing_and_is_logged(
    client: TestClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(client.app, FastAPI)

    async def broken() -> None:
        raise RuntimeError("secret insides")

    client.app.add_api_route("/v1/broken", broken)
    with caplog.at_level(logging.ERROR, "nestvec.server"):
        response = client.get("/v1/broken")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    assert response.json()["instance"] in caplog.text
    assert "secret insides" in caplog.text
