"""API keys: made, shown once, compared in constant time, revoked at once; and what is open while there are none."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.aliases import AliasSwitch
from nestvec.engine.database import Database
from nestvec.engine.keys import key_digests
from nestvec.errors import Conflict, InvalidInput, NotFound
from nestvec.server import auth
from nestvec.server.app import create_app
from nestvec.server.settings import Settings
from nestvec.server.start import serve


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_secret_is_long_random_and_stored_only_as_its_digest(database: Database) -> None:
    made = [database.create_key(name, "read") for name in ("a", "b")]
    secrets = [secret for _, secret in made]
    assert len(set(secrets)) == 2
    for secret in secrets:
        assert re.fullmatch(r"nestvec_[A-Za-z0-9_-]{43}", secret)  # 43 characters of 6 bits: 256 bits and more
    stored = {info.name: digest for info, digest in key_digests(database.ledger)}
    assert stored == {info.name: hashlib.sha256(secret.encode()).digest() for info, secret in made}
    database.ledger.close()
    held = b"".join(path.read_bytes() for path in database.path.glob("database.sqlite*"))
    assert not any(secret.encode() in held for secret in secrets)


def test_keys_are_listed_without_secrets_and_revoked(database: Database) -> None:
    info, secret = database.create_key("a", "write", ["docs", "docs"])
    assert (info.name, info.scope, info.collections) == ("a", "write", ("docs",))
    assert database.keys() == [info]
    assert secret not in repr(database.keys())
    with pytest.raises(Conflict, match="revoke it first"):
        database.create_key("a", "read")
    database.revoke_key("a")
    assert database.keys() == []
    with pytest.raises(NotFound):
        database.revoke_key("a")


@pytest.mark.parametrize(
    ("name", "scope", "collections"),
    [("Bad Name", "read", None), ("a", "root", None), ("a", "read", []), ("a", "read", "docs"), ("a", "read", ["X!"])],
)
def test_a_key_that_makes_no_sense_is_refused(
    database: Database, name: str, scope: str, collections: list[str] | None
) -> None:
    with pytest.raises(InvalidInput):
        database.create_key(name, scope, collections)
    assert database.keys() == []


def test_an_alias_in_a_new_key_is_the_collection_that_it_names(database: Database) -> None:
    database.switch_aliases([AliasSwitch("live", "docs")])
    assert database.create_key("a", "read", ["live"])[0].collections == ("docs",)


def test_over_rest_a_key_is_made_used_listed_and_revoked(client: TestClient) -> None:
    assert client.get("/v1/keys").json() == {"keys": []}
    made = client.post("/v1/keys", json={"name": "boss", "scope": "admin"})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = bearer(made.json()["secret"])
    assert client.get("/v1/info").status_code == 401  # from the first key on
    assert client.post("/v1/keys", json={"name": "boss", "scope": "read"}, headers=key).status_code == 409
    assert client.post("/v1/keys", json={"name": "x", "scope": "all"}, headers=key).status_code == 422
    (listed,) = client.get("/v1/keys", headers=key).json()["keys"]
    assert listed == {name: value for name, value in made.json().items() if name != "secret"}
    assert client.delete("/v1/keys/nobody", headers=key).status_code == 404
    assert client.delete("/v1/keys/boss", headers=key).status_code == 204
    # the last key is gone, and the door stays shut: nobody asked for an open one
    assert client.get("/v1/info", headers=key).status_code == 401
    assert client.get("/v1/info").status_code == 401


def test_a_key_made_or_revoked_by_another_process_counts_at_once(client: TestClient, database: Database) -> None:
    with nestvec.open(database.path) as other:
        _, secret = other.create_key("theirs", "read")
        assert client.get("/v1/info", headers=bearer(secret)).status_code == 200
        other.revoke_key("theirs")
        assert client.get("/v1/info", headers=bearer(secret)).status_code == 401


def test_every_key_is_compared_found_or_not(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [database.create_key(name, "read")[1] for name in ("a", "b", "c")]
    client = TestClient(create_app(database, Settings(api_key=SecretStr("env"))))
    compared: list[bytes] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append(b), real(a, b))[1])
    for secret, status in ((secrets[0], 200), ("wrong", 401)):
        compared.clear()
        assert client.get("/v1/info", headers=bearer(secret)).status_code == status
        assert set(compared) == {hashlib.sha256(one.encode()).digest() for one in [*secrets, "env"]}


def test_a_header_outside_ascii_is_a_wrong_key(database: Database) -> None:
    client = TestClient(create_app(database, Settings(api_key=SecretStr("env"))))
    for value in (b"\xff\xfe", "ключ".encode(), b"Bearer \xff"):
        for header in (b"X-API-Key", b"Authorization"):
            assert client.get("/v1/info", headers={header: value}).status_code == 401


def test_failures_of_an_address_are_limited_and_forgotten(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
    client = TestClient(create_app(database, Settings(api_key=SecretStr("env"))))
    other = TestClient(client.app, client=("10.0.0.9", 1))
    for _ in range(20):
        assert client.get("/v1/info", headers=bearer("guess")).status_code == 401
        now[0] += 1
    refused = client.get("/v1/info", headers=bearer("env"))  # the right one: a guesser must not learn that
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_failures")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert other.get("/v1/info", headers=bearer("env")).status_code == 200
    assert client.get("/healthz").status_code == 200
    now[0] += 41
    assert client.get("/v1/info", headers=bearer("env")).status_code == 200


def test_a_stored_key_lets_the_service_bind_anywhere(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NESTVEC_API_KEY", raising=False)
    ran: list[object] = []
    monkeypatch.setattr("nestvec.server.process.run", lambda *given: ran.append(given))
    with pytest.raises(InvalidInput, match="without an API key"):
        serve(database.path, Settings(host="0.0.0.0", port=0))
    database.create_key("a", "read")
    serve(database.path, Settings(host="0.0.0.0", port=0))
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8765"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8765"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_without_a_key_foreign_names_and_pages_are_refused(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/v1/collections", headers=headers).status_code == status


def test_the_document_asks_for_a_key_as_soon_as_one_is_needed(client: TestClient, database: Database) -> None:
    assert "security" not in client.get("/openapi.json").json()["paths"]["/v1/info"]["get"]
    database.create_key("a", "read")
    assert client.get("/v1/info").status_code == 401
    assert client.get("/openapi.json").json()["paths"]["/v1/info"]["get"]["security"] == [{"bearer": []}, {"key": []}]


def test_with_a_key_any_name_will_do(client: TestClient, database: Database) -> None:
    _, secret = database.create_key("a", "read")
    assert client.get("/v1/info", headers={"Host": "search.example", **bearer(secret)}).status_code == 200
