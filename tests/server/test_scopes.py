"""Every route, every kind of key: the table of scopes is complete and holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.routing import Route
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.aliases import AliasSwitch
from nestvec.engine.database import Database
from nestvec.engine.keys import SCOPES
from nestvec.server import scopes
from nestvec.server.app import create_app
from nestvec.server.scopes import OPERATIONS, UNLISTED, Access, guard, operation
from nestvec.server.settings import Settings

OWNER = "owner"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scopes") / "db"


@pytest.fixture(scope="module")
def keys(opened: Path) -> dict[str, str]:
    with nestvec.open(opened) as database:
        for name in ("docs", "other"):
            database.create_collection(name, dims=4)
        made = {scope: database.create_key(scope, scope)[1] for scope in SCOPES}
        made |= {f"{scope} other": database.create_key(f"{scope}-other", scope, ["other"])[1] for scope in SCOPES}
        return made | {"bad": "nestvec_bad"}


def operations(app: FastAPI) -> list[tuple[str, str, Access]]:
    """(method, path, access) of every route, with names that exist nowhere but for the collection."""
    found = []
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is no route that the guard knows"
        path = route.path.replace("{name}", "docs")
        for parameter in route.param_convertors:
            path = path.replace("{" + parameter + "}", "1")
        access = OPERATIONS.get(operation(route), UNLISTED)
        found += [(method, path, access) for method in sorted(route.methods or ())]
    return found


def test_every_route_is_in_the_table_and_the_table_has_no_other(opened: Path) -> None:
    with nestvec.open(opened) as database:
        app = create_app(database, Settings())
    assert {operation(route) for route in app.routes if isinstance(route, Route)} == set(OPERATIONS)


def test_every_route_admits_the_right_keys_and_no_other(
    opened: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    async def answer(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    with nestvec.open(opened) as database:
        app = create_app(database, Settings(auth_failures_per_minute=0, api_key=SecretStr(OWNER)))
        for route in app.routes:
            assert isinstance(route, Route)
            assert isinstance(route.app, scopes._Guarded)
            monkeypatch.setattr(route.app, "_app", answer)  # what matters is who comes this far
        client = TestClient(app)
        for method, path, access in operations(app):
            for holder, secret in {"nobody": None, OWNER: OWNER, **keys}.items():
                headers = {} if secret is None else {"X-API-Key": secret}
                if method != "GET":
                    headers["Content-Type"] = "application/json"
                status = client.request(method, path, headers=headers, content=b"{}" if method != "GET" else None)
                assert status.status_code == expected(access, holder), (method, path, holder, status.text)
                reached.append(f"{method} {path}")
    assert len(reached) >= 20 * 9


def expected(access: Access, holder: str) -> int:
    if access.scope == "open":
        return 299
    if holder in ("nobody", "bad"):
        return 401
    scope, _, bound = holder.partition(" ")
    if holder != OWNER and SCOPES.index(scope) < SCOPES.index(access.scope):  # type: ignore[arg-type]
        return 403
    return 403 if bound and access.reach != "own" else 299


def test_a_route_without_an_entry_is_closed_to_all_but_admins(opened: Path, keys: dict[str, str]) -> None:
    with nestvec.open(opened) as database:
        app = create_app(database, Settings())
        app.add_api_route("/v1/new", lambda: {"ok": True}, operation_id="new")
        guard(app, database)
        client = TestClient(app)
        answers = {who: client.get("/v1/new", headers={"X-API-Key": key}).status_code for who, key in keys.items()}
    assert answers.pop("admin") == 200
    assert answers.pop("bad") == 401
    assert set(answers.values()) == {403}


@pytest.fixture(scope="module")
def locked(opened: Path, keys: dict[str, str]) -> Iterator[TestClient]:
    """A client without a key, of a service that has some."""
    with nestvec.open(opened) as database:
        yield TestClient(create_app(database, Settings(auth_failures_per_minute=0)))


@pytest.mark.parametrize("path", ["/v1//info", "/v1/info/", "//v1/info", "/v1/collections/other/../docs", "/healthz/",
                                  "/v1/collections/%2e%2e/docs", "/metrics/", "/nothing"])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "TRACE"])
def test_no_spelling_of_a_path_or_method_goes_round_the_key(
    locked: TestClient, keys: dict[str, str], path: str, method: str
) -> None:
    assert locked.request(method, path).status_code == 401
    override = {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/healthz", "X-API-Key": keys["bad"]}
    assert locked.request(method, path, headers=override).status_code == 401
    with_key = locked.request(method, path, headers={"X-API-Key": keys["read other"]})
    assert with_key.status_code in (403, 404, 405)


def test_a_bound_key_sees_its_collections_by_name_and_alias_only(database: Database) -> None:
    database.create_collection("secret", dims=4)
    database.switch_aliases([AliasSwitch("mine", "docs"), AliasSwitch("theirs", "secret")])
    _, key = database.create_key("a", "write", ["docs"])
    client = TestClient(create_app(database, Settings()), headers={"X-API-Key": key})
    assert [one["name"] for one in client.get("/v1/collections").json()["collections"]] == ["docs"]
    for name, status in (("docs", 200), ("mine", 200), ("secret", 403), ("theirs", 403), ("absent", 403)):
        assert client.get(f"/v1/collections/{name}").status_code == status, name
    # an alias that is switched away takes the key's reach with it
    database.switch_aliases([AliasSwitch("mine", "secret")])
    assert client.get("/v1/collections/mine").status_code == 403


def test_a_name_that_becomes_an_alias_of_something_else_is_not_the_keys_any_more(database: Database) -> None:
    database.create_collection("secret", dims=4)
    _, key = database.create_key("a", "read", ["docs"])
    client = TestClient(create_app(database, Settings()), headers={"X-API-Key": key})
    assert client.get("/v1/collections/docs").status_code == 200
    database.delete_collection("docs")
    database.switch_aliases([AliasSwitch("docs", "secret")])
    assert client.get("/v1/collections/docs").status_code == 403


def test_the_document_lists_every_route_that_the_table_has(client: TestClient) -> None:
    listed = {one["operationId"] for path in client.get("/openapi.json").json()["paths"].values()
              for one in path.values()}  # fmt: skip
    assert isinstance(client.app, FastAPI)
    assert listed == {operation(route) for route in client.app.routes if isinstance(route, APIRoute)}
