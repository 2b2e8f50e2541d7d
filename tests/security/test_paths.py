"""S5, S7, S9: no name leads out of the database, nothing calls out, and what is stored is its owner's alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from starlette.testclient import TestClient

import nestvec
from nestvec import Record
from nestvec.engine.database import Database
from nestvec.server.app import create_app
from nestvec.server.settings import Settings
from tests.server.conftest import wait_ready

UP = [
    "..", "../", "../..", "../../etc/passwd", "..\\", "..\\..\\windows", ".", "./", "./.", "/", "//",
    "/etc/passwd", "\\\\host\\share", "C:\\", "file:///etc/passwd", "~", "~root", "$HOME", "${HOME}", "%HOME%",
    "a/../..", "a/../b", "docs/../../x", "docs/", "docs/.", "docs//records/../..", "docs\x00", "\x00", "docs\n",
    "docs\r\nX: y", "docs\t", " docs", "docs ", "DOCS", "docs.", "docs.sqlite", "docs;ls", "docs|ls", "docs&ls",
    "`ls`", "$(ls)", "'", "\"", "docs'--", "*", "?", "[a-z]", "..;/", "....//", "..%2f", "%2e%2e", "%2e%2e%2f",
    "%252e%252e%252f", "..%c0%af", "..%ef%bc%8f", "\u2025", "\uff0e\uff0e", "\u202edocs", "d\xf6cs", "\U0001f600",
    "a" * 64, "a" * 5000, "-rf", "_x", "con:", "1" * 64, "",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paths")


@pytest.fixture(scope="module")
def database(home: Path) -> Iterator[Database]:
    (home / "secret").write_text("secret")
    with nestvec.open(home / "in" / "db") as database:
        database.create_collection("docs", dims=2).upsert([Record("a", [1, 2], {"n": 1}, "a text")])
        database.snapshot("docs")
        yield database


@pytest.fixture(scope="module")
def client(database: Database) -> Iterator[TestClient]:
    with TestClient(create_app(database, Settings()), raise_server_exceptions=False) as client:
        wait_ready(client)
        yield client


def outside(home: Path) -> set[str]:
    """Everything that is there, but for what a database keeps while it is open."""
    return {str(path.relative_to(home)) for path in home.rglob("*") if not path.name.endswith(("-wal", "-shm"))}


def quoted(name: str) -> str:
    # clients take dots away before they send a path
    return name if name.isascii() and "%" in name else quote(name, safe="").replace(".", "%2e")


@pytest.mark.parametrize("name", UP, ids=range(len(UP)))
def test_no_name_leads_out(name: str, client: TestClient, database: Database, home: Path) -> None:
    before = outside(home)
    for method, path, body in [
        ("PUT", "/v1/collections/{}", {"dims": 2}),
        ("GET", "/v1/collections/{}", None),
        ("DELETE", "/v1/collections/{}", None),
        ("POST", "/v1/collections/{}/jobs", {"kind": "snapshot"}),
        ("GET", "/v1/snapshots/{}", None),
        ("DELETE", "/v1/snapshots/{}", None),
        ("POST", "/v1/snapshots/{}/restore", {"name": "copy"}),
        ("DELETE", "/v1/keys/{}", None),
    ]:
        answer = client.request(method, path.format(quoted(name)), json=body)
        if name or path.endswith("jobs"):
            assert answer.status_code in (404, 405, 422), (method, path, answer.text)
        assert "secret" not in answer.text
        assert str(home) not in answer.text
    for refused in (
        client.post("/v1/aliases", json={"switches": [{"alias": name, "collection": "docs"}]}),
        client.post(f"/v1/snapshots/{database.snapshots()[0].name}/restore", json={"name": name}),
        client.post("/v1/keys", json={"name": name, "scope": "read"}),
        client.put("/v1/collections/new", json={"encoder": f"sentence-transformers:{name}"}),
    ):
        assert refused.status_code in (400, 404, 422, 501), refused.text
    for verb in (database.create_collection, database.collection, database.delete_collection):
        with pytest.raises((nestvec.InvalidInput, nestvec.NotFound)):
            verb(name, dims=2) if verb == database.create_collection else verb(name)  # type: ignore[call-arg, operator]
    assert outside(home) == before


def test_there_are_sixty_names() -> None:
    assert len(set(UP)) >= 60


def test_a_link_in_the_data_directory_is_not_followed(tmp_path: Path) -> None:
    """A segment's file that is a link, or a device, is damage, and what it points to is neither read nor written."""
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2)
        collection.upsert([Record(f"r{i}", [1.0, i]) for i in range(20)])
        collection.seal()
    vectors = next((tmp_path / "db").glob("collections/*/segments/*/vectors.bin"))
    copy = tmp_path / "elsewhere"
    copy.write_bytes(vectors.read_bytes())
    for target in (copy, Path("/dev/zero")):
        vectors.unlink()
        vectors.symlink_to(target)
        with nestvec.open(tmp_path / "db") as database, pytest.raises(nestvec.Damaged, match="not a regular file"):
            database.collection("c").search([1.0, 2.0])


def test_everything_stored_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)  # as open as a careless machine can be
    try:
        with nestvec.open(tmp_path / "db") as database:
            collection = database.create_collection("c", dims=4, bm25=True)
            rows = np.random.default_rng(1).normal(size=(1100, 4))
            collection.upsert([Record(f"r{i}", row, {"n": i}, "text") for i, row in enumerate(rows[:100])])
            collection.build([nestvec.Batch(0, None, rows.astype(np.float32))])
            collection.seal()
            database.snapshot("c")
            database.create_key("k", "read")
            open_now = modes(tmp_path / "db")
        closed = modes(tmp_path / "db")
    finally:
        os.umask(before)
    assert len(closed) > 15
    for found in (open_now, closed):
        assert not {path: oct(mode) for path, mode in found.items() if mode & 0o077}


def modes(root: Path) -> dict[str, int]:
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}


def test_nothing_calls_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S7: the whole life of a database, over the library and over REST, with a socket that refuses to connect."""
    called: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            called.append(address)
            raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: called.append(given) or [])
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder="static", bm25=True)
        collection.upsert([Record(f"r{i}", None, {"n": i}, f"text number {i}") for i in range(50)])
        collection.seal()
        collection.compact()
        with TestClient(create_app(database, Settings())) as client:
            wait_ready(client)
            assert client.post("/v1/collections/c/query", json={"text": "number 3"}).status_code == 200
            assert client.get("/v1/info").status_code == 200
            assert client.get("/metrics").status_code == 200
            for encoder in ("sentence-transformers:a/b", "openai:http://10.255.255.1/v1", "http://x/", "static:/etc"):
                answer = client.put("/v1/collections/new", json={"encoder": encoder})
                assert answer.status_code in (404, 422, 501), answer.text
        database.restore(database.snapshot("c").name, "copy")
    assert not called
