"""Aliases, jobs and snapshots over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.engine.jobs import MAX_QUEUED
from nestvec.engine.progress import Progress
from nestvec.engine.record import Record
from nestvec.server.app import create_app
from nestvec.server.settings import Settings
from tests.server.test_process import free_port, start
from tests.server.test_process import wait_ready as wait_until_ready

DIMS = 8
JSONL, PARQUET, OCTETS = "application/jsonl", "application/vnd.apache.parquet", "application/octet-stream"
SNAPSHOT = "docs-20200101T000000000Z"
Http = TestClient | httpx.Client


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code, body
    assert len(response.content) < 2048
    return body


def ended(client: Http, response: httpx.Response) -> dict[str, Any]:
    """The job that a 202 told of, once it has ended."""
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    deadline = time.monotonic() + 60
    while job["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.01)
        job = client.get(response.headers["location"]).json()
    return dict(job)


def done(client: Http, response: httpx.Response) -> dict[str, Any]:
    job = ended(client, response)
    assert (job["state"], job["error"]) == ("done", None), job
    assert job["finished"] >= job["created"]
    return dict(job["result"])


def post_job(client: Http, body: dict[str, Any], name: str = "docs", **headers: str) -> httpx.Response:
    return client.post(f"/v1/collections/{name}/jobs", json=body, headers=headers)


def scrolled(client: Http, name: str) -> list[dict[str, Any]]:
    reply = client.post(f"/v1/collections/{name}/records/scroll", json={"limit": 50, "with_vector": True})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["records"])


class Blocked:
    """A job in the way of others, until it is let go."""

    def __init__(self, database: Database) -> None:
        self._go = threading.Event()
        self.id = database.jobs.submit("seal", "docs", self._work).id

    def _work(self, progress: Progress) -> dict[str, Any]:
        while not self._go.wait(0.005):
            progress("wait", 1, 2)
        return {}

    def __enter__(self) -> Blocked:
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()


# aliases


def test_aliases_are_switched_listed_and_followed(client: TestClient) -> None:
    client.put("/v1/collections/other", json={"dims": 2})
    assert client.get("/v1/aliases").json() == {"aliases": {}}
    body = {"switches": [{"alias": "live", "collection": "docs"}, {"alias": "b", "collection": "other"}]}
    assert client.post("/v1/aliases", json=body).json() == {"aliases": {"live": "docs", "b": "other"}}
    query = {"vector": [1.0] * DIMS, "k": 3}
    one, two = (client.post(f"/v1/collections/{name}/query", json=query).json() for name in ("live", "docs"))
    assert one["hits"] == two["hits"]
    assert client.get("/v1/collections/live").json()["name"] == "docs"
    body = {"switches": [{"alias": "live", "collection": "other"}, {"alias": "b", "collection": None}]}
    assert client.post("/v1/aliases", json=body).json() == {"aliases": {"live": "other"}}
    assert client.get("/v1/collections/live/records/count").json() == {"count": 0}
    problem(client.get("/v1/collections/b"), 404, "not_found")


def test_a_bad_switch_is_refused_and_nothing_is_made(client: TestClient) -> None:
    good = {"alias": "good", "collection": "docs"}

    def refused(switch: dict[str, Any], status: int, code: str) -> str:
        content = json.dumps({"switches": [good, switch]})  # httpx refuses a lone surrogate
        reply = client.post("/v1/aliases", content=content, headers={"Content-Type": "application/json"})
        return str(problem(reply, status, code)["detail"])

    assert "docs" in refused({"alias": "docs", "collection": "docs"}, 409, "conflict")
    refused({"alias": "x", "collection": "absent"}, 404, "not_found")
    refused({"alias": "x", "collection": None}, 404, "not_found")
    assert "twice" in refused(good, 422, "invalid_input")
    for bad in ("../x", "", "X", "a" * 64, 3, None, "\ud800"):
        refused({"alias": bad, "collection": "docs"}, 422, "invalid_input")
    refused({"alias": "x"}, 422, "invalid_input")
    refused({"alias": "x", "collection": "docs", "more": 1}, 422, "invalid_input")
    for body in ({}, {"switches": []}, {"switches": [good] * 101}, []):
        problem(client.post("/v1/aliases", json=body), 422, "invalid_input")
    problem(
        client.post("/v1/aliases", content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed_json"
    )
    assert client.get("/v1/aliases").json() == {"aliases": {}}


def test_names_and_aliases_share_one_namespace(client: TestClient) -> None:
    client.post("/v1/aliases", json={"switches": [{"alias": "live", "collection": "docs"}]})
    problem(client.put("/v1/collections/live", json={"dims": 2}), 409, "conflict")
    detail = problem(client.delete("/v1/collections/docs"), 409, "conflict")["detail"]
    assert "'live'" in detail


# jobs


def test_every_kind_of_job_runs_and_says_what_it_did(client: TestClient) -> None:
    assert done(client, post_job(client, {"kind": "seal"})) == {"rows": 20, "segment": 1, "generation": None}
    built = done(client, post_job(client, {"kind": "build"}))
    assert built == {"sealed": 0, "rows": 20, "generation": 1}
    assert client.get("/v1/collections/docs").json()["generation"] == 1
    client.post("/v1/collections/docs/records/delete", json={"ids": ["r1"]})
    compacted = done(client, post_job(client, {"kind": "compact", "retrain": False}))
    assert compacted == {"segments_before": 1, "rows": 19, "dropped": 1}
    made = done(client, post_job(client, {"kind": "snapshot"}))
    assert (made["collection"], made["rows"]) == ("docs", 19)
    jobs = client.get("/v1/jobs").json()["jobs"]
    assert [job["kind"] for job in jobs] == ["snapshot", "compact", "build", "seal"]
    assert {job["collection"] for job in jobs} == {"docs"}
    assert client.get("/v1/jobs?limit=1").json()["jobs"] == jobs[:1]


def test_a_job_on_an_alias_is_one_on_its_collection(client: TestClient) -> None:
    client.post("/v1/aliases", json={"switches": [{"alias": "live", "collection": "docs"}]})
    job = ended(client, post_job(client, {"kind": "seal"}, name="live"))
    assert (job["state"], job["collection"]) == ("done", "docs")


@pytest.mark.parametrize("body", [{}, {"kind": "reindex"}, {"kind": "seal", "retrain": True}, {"kind": "compact",
                         "retrain": "yes"}, {"kind": "export", "format": "csv"}, {"kind": "export", "filter": {"x": 1}},
                         {"kind": "export", "filter": {"field": "a", "eq": "\ud800"}}, {"kind": ["seal"]},
                         {"kind": "export", "path": "/etc/passwd"}, [], None, 3])  # fmt: skip
def test_jobs_that_cannot_be_are_refused_at_once(client: TestClient, body: object) -> None:
    reply = client.post("/v1/collections/docs/jobs", content=json.dumps(body),
                        headers={"Content-Type": "application/json"})  # fmt: skip
    problem(reply, 422, "invalid_input")
    assert client.get("/v1/jobs").json() == {"jobs": []}


def test_unknown_things_are_not_found(client: TestClient) -> None:
    problem(post_job(client, {"kind": "seal"}, name="absent"), 404, "not_found")
    for path in ("/v1/jobs/1", "/v1/jobs/1/result", f"/v1/snapshots/{SNAPSHOT}"):
        problem(client.get(path), 404, "not_found")
    problem(client.delete("/v1/jobs/1"), 404, "not_found")
    problem(client.delete(f"/v1/snapshots/{SNAPSHOT}"), 404, "not_found")
    problem(client.post(f"/v1/snapshots/{SNAPSHOT}/restore", json={"name": "x"}), 404, "not_found")
    problem(
        client.post("/v1/collections/absent/import", content=b"", headers={"Content-Type": JSONL}), 404, "not_found"
    )
    for id in ("0", "-1", "x", "1.5", str(2**63), "9" * 400, "%00"):
        problem(client.get(f"/v1/jobs/{id}"), 422, "invalid_input")
    for limit in ("0", "1001", "x"):
        problem(client.get(f"/v1/jobs?limit={limit}"), 422, "invalid_input")


def test_the_same_key_and_request_find_the_same_job(client: TestClient) -> None:
    key = {"Idempotency-Key": "once"}
    first = post_job(client, {"kind": "seal"}, **key)
    assert done(client, first)["rows"] == 20
    again = post_job(client, {"kind": "seal"}, **key)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.json()["state"] == "done"
    assert again.headers["location"] == first.headers["location"]
    problem(post_job(client, {"kind": "compact"}, **key), 409, "conflict")
    client.put("/v1/collections/other", json={"dims": 2})
    problem(post_job(client, {"kind": "seal"}, name="other", **key), 409, "conflict")
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1
    for bad in ("", "x" * 129):
        problem(post_job(client, {"kind": "seal"}, **{"Idempotency-Key": bad}), 422, "invalid_input")


def test_a_running_job_tells_its_progress_and_is_cancelled(client: TestClient, database: Database) -> None:
    with Blocked(database) as blocked:
        waiting = post_job(client, {"kind": "compact"}).json()
        deadline = time.monotonic() + 10
        while (job := client.get(f"/v1/jobs/{blocked.id}").json())["progress"] is None:
            assert time.monotonic() < deadline
        assert job["progress"] == {"stage": "wait", "done": 1, "total": 2}
        assert client.delete(f"/v1/jobs/{waiting['id']}").json()["state"] == "cancelled"
        assert client.delete(f"/v1/jobs/{blocked.id}").json()["cancel"] is True
        while (job := client.get(f"/v1/jobs/{blocked.id}").json())["state"] == "running":
            assert time.monotonic() < deadline
        assert job["state"] == "cancelled"
        assert client.delete(f"/v1/jobs/{blocked.id}").json()["state"] == "cancelled"


def test_a_full_queue_is_busy_and_says_when_to_come_again(client: TestClient, database: Database) -> None:
    with Blocked(database):
        deadline = time.monotonic() + 10
        while database.jobs.list(1)[0].state == "queued":
            assert time.monotonic() < deadline
        for _ in range(MAX_QUEUED):
            assert post_job(client, {"kind": "seal"}).status_code == 202
        reply = post_job(client, {"kind": "seal"})
        problem(reply, 503, "busy")
        assert reply.headers["retry-after"] == "1"
        reply = client.post("/v1/collections/docs/import", content=b"{}", headers={"Content-Type": JSONL})
        problem(reply, 503, "busy")
        assert not list(database.path.glob("jobs/tmp-*"))


# export and import


@pytest.mark.parametrize(("format", "kind"), [("jsonl", JSONL), ("parquet", PARQUET)])
def test_an_export_is_downloaded_and_imported_again(client: TestClient, format: str, kind: str) -> None:
    job = post_job(client, {"kind": "export", "format": format})
    result = done(client, job)
    assert (result["rows"], result["format"]) == (20, format)
    reply = client.get(f"/v1/jobs/{job.json()['id']}/result")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith(kind)
    assert f'filename="docs.{format}"' in reply.headers["content-disposition"]
    assert len(reply.content) == result["bytes"] == int(reply.headers["content-length"])
    client.put("/v1/collections/again", json={"dims": DIMS, "granularities": [4, DIMS]})
    imported = client.post("/v1/collections/again/import", content=reply.content, headers={"Content-Type": kind})
    assert imported.json()["kind"] == "import"
    assert done(client, imported) == {"rows": 20}
    for one, two in zip(scrolled(client, "again"), scrolled(client, "docs"), strict=True):
        np.testing.assert_allclose(one.pop("vector"), two.pop("vector"), rtol=1e-6)
        assert one == two


def test_an_export_takes_a_filter_and_other_formats(client: TestClient) -> None:
    body = {"kind": "export", "format": "npz", "filter": {"field": "n", "range": {"gte": 15}}}
    job = post_job(client, body)
    assert done(client, job)["rows"] == 5
    content = client.get(f"/v1/jobs/{job.json()['id']}/result").content
    with np.load(BytesIO(content), allow_pickle=False) as archive:
        assert archive["ids"].tolist() == [f"r{i}" for i in range(15, 20)]


def test_only_a_done_export_has_a_file_and_only_the_newest_are_kept(client: TestClient, database: Database) -> None:
    sealed = post_job(client, {"kind": "seal"})
    done(client, sealed)
    problem(client.get(f"/v1/jobs/{sealed.json()['id']}/result"), 404, "not_found")
    with Blocked(database):
        waiting = post_job(client, {"kind": "export", "format": "jsonl"})
        problem(client.get(f"/v1/jobs/{waiting.json()['id']}/result"), 409, "conflict")
    done(client, waiting)
    for _ in range(16):
        last = post_job(client, {"kind": "export", "format": "npy"})
        done(client, last)
    problem(client.get(f"/v1/jobs/{waiting.json()['id']}/result"), 404, "not_found")
    assert client.get(f"/v1/jobs/{last.json()['id']}/result").status_code == 200
    assert len(list((database.path / "jobs").glob("*.npy"))) == 16


def test_an_import_replaces_and_names_the_bad_row(client: TestClient, database: Database) -> None:
    lines = [{"id": f"r{i}", "vector": [i] * DIMS, "payload": {"new": True}} for i in range(1, 4)]
    body = "\n".join(map(json.dumps, lines))
    reply = client.post(
        "/v1/collections/docs/import", content=body, headers={"Content-Type": f"{JSONL}; charset=utf-8"}
    )
    assert done(client, reply) == {"rows": 3}
    assert client.get("/v1/collections/docs/records/count").json() == {"count": 20}
    body += '\n{"id": "bad", "vector": [1, 2], "payload": null}'
    reply = client.post("/v1/collections/docs/import", content=body, headers={"Content-Type": JSONL})
    job = ended(client, reply)
    assert job["state"] == "failed"
    assert "row 3 (id 'bad')" in job["error"]
    for content, kind in ((b"no json", JSONL), (b"no parquet", PARQUET), (b"", JSONL), (b'{"id": 1}', JSONL)):
        reply = client.post("/v1/collections/docs/import", content=content, headers={"Content-Type": kind})
        job = ended(client, reply)
        assert job["state"] == "failed"
        assert "the body" in job["error"]
        assert str(database.path) not in job["error"]
    assert [path.name for path in (database.path / "jobs").iterdir()] == ["LOCK"]


def test_an_import_names_its_format_and_its_key_covers_its_body(client: TestClient) -> None:
    path, line = "/v1/collections/docs/import", json.dumps({"id": "a", "vector": [1] * DIMS})
    for kind in ("text/csv", "application/json", "application/octet-stream"):
        problem(client.post(path, content=line, headers={"Content-Type": kind}), 415, "unsupported_media_type")
    headers = {"Content-Type": JSONL, "Idempotency-Key": "k"}
    first = client.post(path, content=line, headers=headers)
    assert done(client, first) == {"rows": 1}
    assert client.post(path, content=line, headers=headers).json()["id"] == first.json()["id"]
    problem(client.post(path, content=line + "\n" + line, headers=headers), 409, "conflict")


# snapshots


def test_a_snapshot_is_made_listed_downloaded_restored_and_deleted(client: TestClient) -> None:
    made = done(client, post_job(client, {"kind": "snapshot"}))
    listed = client.get("/v1/snapshots").json()["snapshots"]
    name = made["name"]
    assert [(one["name"], one["rows"], one["damaged"]) for one in listed] == [(name, 20, False)]
    reply = client.get(f"/v1/snapshots/{name}")
    assert reply.headers["content-type"] == OCTETS
    assert f'filename="{name}.nvs"' in reply.headers["content-disposition"]
    assert len(reply.content) == listed[0]["bytes"]
    partly = client.get(f"/v1/snapshots/{name}", headers={"Range": "bytes=0-10"})
    assert (partly.status_code, len(partly.content)) == (200, len(reply.content))
    restored = client.post(f"/v1/snapshots/{name}/restore", json={"name": "copy"})
    assert restored.json()["kind"] == "restore"
    assert done(client, restored) == {"collection": "copy", "rows": 20}
    assert scrolled(client, "copy") == scrolled(client, "docs")
    job = ended(client, client.post(f"/v1/snapshots/{name}/restore", json={"name": "copy"}))
    assert (job["state"], job["error"]) == ("failed", "collection 'copy' exists already")
    problem(client.post(f"/v1/snapshots/{name}/restore", json={"name": "../x"}), 422, "invalid_input")
    assert client.delete(f"/v1/snapshots/{name}").status_code == 204
    problem(client.get(f"/v1/snapshots/{name}"), 404, "not_found")
    problem(client.post(f"/v1/snapshots/{name}/restore", json={"name": "x"}), 404, "not_found")


def test_an_uploaded_snapshot_is_checked_byte_by_byte(client: TestClient, database: Database) -> None:
    name = done(client, post_job(client, {"kind": "snapshot"}))["name"]
    data = client.get(f"/v1/snapshots/{name}").content
    headers = {"Content-Type": OCTETS}
    reply = client.put("/v1/snapshots", content=data, headers=headers)
    assert reply.status_code == 201
    assert reply.headers["location"] == f"/v1/snapshots/{reply.json()['name']}"
    assert reply.json()["name"] != name
    assert client.get(reply.headers["location"]).content == data
    before = set(database.path.rglob("*"))
    for place in (0, 17, 40, len(data) // 2, len(data) - 1):
        bad = bytearray(data)
        bad[place] ^= 1
        detail = problem(client.put("/v1/snapshots", content=bytes(bad), headers=headers), 422, "invalid_input")[
            "detail"
        ]
        assert str(database.path) not in detail
    for bad in (b"", b"PK\x03\x04", data[:-1], data + b"x"):
        problem(client.put("/v1/snapshots", content=bad, headers=headers), 422, "invalid_input")
    problem(client.put("/v1/snapshots", content=data, headers={"Content-Type": "application/zip"}), 415,
            "unsupported_media_type")  # fmt: skip
    assert set(database.path.rglob("*")) == before


@pytest.mark.parametrize("name", ["docs", "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", f"{SNAPSHOT}.nvs", f"{SNAPSHOT}%00",
                                  "Docs-20200101T000000000Z", "%00", "a" * 300, f"{SNAPSHOT}%0a"])  # fmt: skip
def test_names_that_we_never_give_reach_no_file(client: TestClient, database: Database, name: str) -> None:
    before = set(database.path.rglob("*"))
    for reply in (client.get(f"/v1/snapshots/{name}"), client.delete(f"/v1/snapshots/{name}"),
                  client.post(f"/v1/snapshots/{name}/restore", json={"name": "x"})):  # fmt: skip
        assert reply.status_code in (404, 405, 422), reply.text
        assert reply.headers["content-type"] == "application/problem+json"
    assert set(database.path.rglob("*")) == before


# configuration


def test_a_configuration_is_changed_only_as_it_was_read(client: TestClient) -> None:
    path, body = "/v1/collections/docs", {"fields": {"n": "number"}}
    first = client.get(path).headers["etag"]
    assert first == client.get(path).headers["etag"]
    problem(client.patch(path, json=body), 428, "precondition_required")
    for tag in ('"0000000000000000"', "W/" + first, "", "x" * 5000):
        problem(client.patch(path, json=body, headers={"If-Match": tag}), 412, "precondition_failed")
    reply = client.patch(path, json=body, headers={"If-Match": first})
    assert reply.status_code == 200, reply.text
    assert reply.json()["config"]["fields"] == {"n": "number"}
    assert reply.headers["etag"] == client.get(path).headers["etag"] != first
    problem(client.patch(path, json={"fields": {"m": "bool"}}, headers={"If-Match": first}), 412, "precondition_failed")
    bad = {"records": [{"id": "x", "vector": [1] * DIMS, "payload": {"n": "one"}}]}
    problem(client.put(path + "/records", json=bad), 422, "invalid_record")
    any_tag = {"If-Match": "*"}
    problem(client.patch(path, json={"fields": {"n": "string"}}, headers=any_tag), 409, "conflict")
    client.put(path + "/records", json={"records": [{"id": "x", "vector": [1] * DIMS, "payload": {"s": 1}}]})
    detail = problem(client.patch(path, json={"fields": {"s": "string"}}, headers=any_tag), 409, "conflict")["detail"]
    assert "record 'x'" in detail
    for wrong in ({}, {"fields": {}}, {"fields": {"s": "text"}}, {"dims": 3}, {"fields": {"a..b": "bool"}}):
        problem(client.patch(path, json=wrong, headers=any_tag), 422, "invalid_input")
    problem(client.patch("/v1/collections/absent", json=body, headers=any_tag), 404, "not_found")


# keys, a real server


def test_a_bound_key_sees_only_what_is_its_own(database: Database, settings: Settings) -> None:
    database.create_collection("secret", dims=2).upsert([Record("x", np.ones(2))])
    _, bound = database.create_key("bound", "write", ["docs"])
    _, admin = database.create_key("admin", "admin")
    with TestClient(create_app(database, settings)) as client:
        mine, all_ = {"X-API-Key": bound}, {"X-API-Key": admin}
        jobs = {}
        for name in ("docs", "secret"):
            client.post("/v1/aliases", json={"switches": [{"alias": f"a-{name}", "collection": name}]}, headers=all_)
            reply = post_job(client, {"kind": "snapshot"}, name, **all_)
            jobs[name] = reply.json()["id"]
            deadline = time.monotonic() + 10
            while client.get(f"/v1/jobs/{jobs[name]}", headers=all_).json()["state"] != "done":
                assert time.monotonic() < deadline
        names = {
            one["collection"]: one["name"] for one in client.get("/v1/snapshots", headers=all_).json()["snapshots"]
        }
        assert set(names) == {"docs", "secret"}
        assert client.get("/v1/aliases", headers=mine).json() == {"aliases": {"a-docs": "docs"}}
        assert [job["id"] for job in client.get("/v1/jobs", headers=mine).json()["jobs"]] == [jobs["docs"]]
        assert [one["name"] for one in client.get("/v1/snapshots", headers=mine).json()["snapshots"]] == [names["docs"]]
        assert client.get(f"/v1/snapshots/{names['docs']}", headers=mine).status_code == 200
        for reply in (
            client.get(f"/v1/jobs/{jobs['secret']}", headers=mine),
            client.delete(f"/v1/jobs/{jobs['secret']}", headers=mine),
            client.get(f"/v1/snapshots/{names['secret']}", headers=mine),
            post_job(client, {"kind": "seal"}, "secret", **mine),
            post_job(client, {"kind": "seal"}, "a-secret", **mine),
            client.post("/v1/aliases", json={"switches": [{"alias": "x", "collection": "docs"}]}, headers=mine),
            client.post(f"/v1/snapshots/{names['docs']}/restore", json={"name": "x"}, headers=mine),
            client.delete(f"/v1/snapshots/{names['docs']}", headers=mine),
        ):
            problem(reply, 403, "forbidden")


def test_two_callers_with_one_idempotency_key_have_two_jobs(database: Database, settings: Settings) -> None:
    secrets = [database.create_key(name, "write")[1] for name in ("one", "two")]
    with TestClient(create_app(database, settings)) as client:
        ids = [
            post_job(client, {"kind": "seal"}, **{"X-API-Key": secret, "Idempotency-Key": "k"}).json()["id"]
            for secret in secrets
        ]
    assert len(set(ids)) == 2


def test_over_a_real_socket_files_go_in_and_out_in_pieces(
    database: Database, served: Callable[[FastAPI], AbstractContextManager[str]], tmp_path: Path
) -> None:
    """A body over the bound of other routes, sent in chunks, is imported; its export is as large."""
    rows = 3000
    big = database.create_collection("big", dims=64, metric="dot")
    vectors = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float32)

    def lines() -> Any:  # noqa: ANN401
        for i in range(rows):
            yield (
                json.dumps({"id": str(i), "vector": vectors[i].tolist(), "text": None, "payload": None}).encode()
                + b"\n"
            )

    app = create_app(database, Settings(max_body_mb=1))
    with served(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        deadline = time.monotonic() + 30
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
        reply = client.post("/v1/collections/big/import", content=lines(), headers={"Content-Type": JSONL})
        assert done(client, reply) == {"rows": rows}
        job = post_job(client, {"kind": "export", "format": "jsonl"}, "big")
        result = done(client, job)
        assert result["bytes"] > 2 << 20
        with client.stream("GET", f"/v1/jobs/{job.json()['id']}/result") as answer:
            (tmp_path / "out.jsonl").write_bytes(b"".join(answer.iter_bytes()))
        assert (tmp_path / "out.jsonl").stat().st_size == result["bytes"]
        written = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        found = {line["id"]: line["vector"] for line in written}
        np.testing.assert_array_equal([found[str(i)] for i in range(rows)], vectors)
    assert big.count() == rows
    assert not list(database.path.glob("jobs/tmp-*"))


def test_a_killed_service_tells_of_the_job_that_it_was_at_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    port, root = free_port(), tmp_path / "db"
    address = f"http://127.0.0.1:{port}"
    process = start(root, port=port)
    wait_until_ready(process, address)
    body = b"".join(json.dumps({"id": str(i), "vector": [i, 1]}).encode() + b"\n" for i in range(60_000))
    with httpx.Client(base_url=address, timeout=60) as client:
        client.put("/v1/collections/c", json={"dims": 2})
        job = client.post("/v1/collections/c/import", content=body, headers={"Content-Type": JSONL}).json()
        deadline = time.monotonic() + 30
        while client.get(f"/v1/jobs/{job['id']}").json()["progress"] is None:
            assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    assert list(root.glob("jobs/tmp-*"))
    again = start(root, port=port)
    wait_until_ready(again, address)
    found = httpx.get(f"{address}/v1/jobs/{job['id']}").json()
    assert (found["state"], found["error"]) == ("failed", "interrupted by a restart")
    assert httpx.get(f"{address}/v1/collections/c/records/count").json()["count"] % 1000 == 0
    assert not list(root.glob("jobs/tmp-*"))
    again.terminate()
    again.communicate(timeout=30)
    assert again.returncode == 0
