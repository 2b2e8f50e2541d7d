"""Whatever is sent, the answer is a short problem with the right status, and never repeats the body."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

QUERY = "/v1/collections/docs/query"
RECORDS = "/v1/collections/docs/records"
COLLECTION = "/v1/collections/new"
ZEROS = "[0,0,0,0,0,0,0,1]"


def vector(n: int = 8, one: str = "0.5") -> str:
    return "[" + ",".join([one] + ["0.5"] * (n - 1)) + "]"


def nested(depth: int) -> str:
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


def send(client: TestClient, path: str, body: str | bytes, method: str | None = None) -> dict[str, object]:
    method = method or ("PUT" if path in (RECORDS, COLLECTION) else "POST")
    response = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "instance", "errors"}
    assert problem["status"] == response.status_code
    assert problem["instance"] == response.headers["x-request-id"]
    assert len(response.content) <= 2048
    return problem


def plan(more: str) -> str:
    return '{"vector":' + vector() + ',"plan":{"route":"soar","probes":1,' + more + "}}"


def stage(**fields: str) -> str:
    fields = {"dims": "4", "keep": "20", **fields}
    return plan('"stages":[{' + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}]")


QUERIES = {
    "nan": ('{"vector":' + vector(one="NaN") + "}", 400, None, "NaN"),
    "infinity": ('{"vector":' + vector(one="-Infinity") + "}", 400, None, "Infinity"),
    "1e999": ('{"vector":' + vector(one="1e999") + "}", 422, "/vector/0", "range"),
    "1e39": ('{"vector":' + vector(one="-1e39") + "}", 422, "/vector", "float32"),
    "nan as text": ('{"vector":' + vector(one='"NaN"') + "}", 422, "/vector/0", "float"),
    "true in vector": ('{"vector":' + vector(one="true") + "}", 422, "/vector/0", "float"),
    "too short": ('{"vector":' + vector(7) + "}", 422, "/vector", "expected a vector of 8 numbers, got 7"),
    "too long": ('{"vector":' + vector(9) + "}", 422, "/vector", "expected a vector of 8 numbers, got 9"),
    "empty vector": ('{"vector":[]}', 422, "/vector", "got 0"),
    "neither": ("{}", 422, "", "exactly one of vector and text"),
    "both": ('{"text":"a","vector":' + vector() + "}", 422, "", "exactly one of vector and text"),
    "empty text": ('{"text":""}', 422, "/text", "length"),
    "plan and exact": ('{"exact":true,"plan":{"route":"exact"},"vector":' + vector() + "}", 422, "", "plan and exact"),
    "unknown key": ('{"limit":3,"vector":' + vector() + "}", 422, "", "limit"),
    "unknown key in plan": ('{"vector":' + vector() + ',"plan":{"route":"soar","nprobe":3}}', 422, "/plan", "nprobe"),
    "unknown route": ('{"vector":' + vector() + ',"plan":{"route":"hnsw"}}', 422, "/plan/route", "hnsw"),
    "soar without probes": ('{"vector":' + vector() + ',"plan":{"route":"soar"}}', 422, None, "probes"),
    "descending stages": (
        '{"vector":' + vector() + ',"plan":{"route":"soar","probes":1,"stages":'
        '[{"dims":8,"keep":20},{"dims":4,"keep":10}]}}',
        422,
        None,
        "ascend",
    ),
    "negative margin": (stage(margin="-1"), 422, "/plan/stages/0/margin", ">= 0"),
    "null margin": (stage(margin="null"), 422, "/plan/stages/0/margin", "null"),
    "margin 1e999": (stage(margin="1e999"), 422, "/plan/stages/0/margin", "range"),
    "unknown rows": (stage(rows='"float8"'), 422, "/plan/stages/0/rows", "float8"),
    "int8 dims": (stage(dims="8", rows='"int8"'), 422, None, "multiple of 64"),
    "keep below k": (stage(keep="9"), 422, None, "at least k=10"),
    "probe margin": (plan('"probe_margin":"far"'), 422, "/plan/probe_margin", "float"),
    "shortlist without keep": (plan('"shortlist":{"margin":1}'), 422, "/plan/shortlist", "keep"),
    "shortlist 0": (plan('"shortlist":{"keep":0}'), 422, "/plan/shortlist/keep", ">= 1"),
    "shortlist below k": (plan('"shortlist":{"keep":9}'), 422, None, "at least k=10"),
    "k 0": ('{"k":0,"vector":' + vector() + "}", 422, "/k", ">= 1"),
    "k -1": ('{"k":-1,"vector":' + vector() + "}", 422, "/k", ">= 1"),
    "k 1001": ('{"k":1001,"vector":' + vector() + "}", 422, "/k", "<= 1000"),
    "k 2^64": ('{"k":18446744073709551616,"vector":' + vector() + "}", 422, "/k", ""),
    "k of 400 digits": ('{"k":' + "9" * 400 + ',"vector":' + vector() + "}", 422, "/k", ""),
    "k true": ('{"k":true,"vector":' + vector() + "}", 422, "/k", "bool"),
    "k 2.5": ('{"k":2.5,"vector":' + vector() + "}", 422, "/k", "float"),
    "k text": ('{"k":"3","vector":' + vector() + "}", 422, "/k", "str"),
    "array": ("[]", 422, "", "array"),
    "string": ('"x"', 422, "", "str"),
    "null": ("null", 422, "", "null"),
    "nothing": ("", 400, None, "empty"),
    "half": ('{"vector":[1,', 400, None, "not valid JSON"),
    "trailing": ('{"vector":' + vector() + "}}", 400, None, "not valid JSON"),
    "bad utf-8": (b'{"text":"\xff"}', 400, None, "UTF-8"),
    "bad utf-8 key": (b'{"\xff":1}', 400, None, "UTF-8"),
    "lone surrogate": ('{"text":"\\ud800"}', 400, None, "UTF-8"),
    "deep array": ("[" * 100_000, 422, "", ""),
    "deep vector": ('{"vector":' + "[" * 100_000, 422, "/vector/0", ""),
}


@pytest.mark.parametrize("case", QUERIES)
def test_a_bad_query_is_refused_where_it_is_wrong(refusing: TestClient, case: str) -> None:
    body, status, pointer, words = QUERIES[case]
    problem = send(refusing, QUERY, body)
    assert problem["status"] == status, problem
    assert words in str(problem["detail"])
    if pointer is not None:
        assert [e["pointer"] for e in problem["errors"]] == [pointer]  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", [c for c in QUERIES if QUERIES[c][1] == 422 and "{" in str(QUERIES[c][0])[:1]])
def test_a_bad_query_in_a_batch_is_refused_with_its_place(refusing: TestClient, case: str) -> None:
    body, _, pointer, _ = QUERIES[case]
    assert isinstance(body, str)
    good = '{"vector":' + vector() + "}"
    problem = send(refusing, QUERY + "/batch", '{"queries":[' + good + "," + body + "]}")
    assert problem["status"] == 422
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == "/queries/1" + pointer  # type: ignore[index]


def record(**fields: str) -> str:
    fields = {"id": '"a"', "vector": vector(), **fields}
    second = ",".join(f'"{k}":{v}' for k, v in fields.items())
    return '{"records":[{"id":"ok","vector":' + vector() + "},{" + second + "}]}"


RECORD_CASES = {
    "wrong length": (record(vector=vector(3)), 422, "/records/1/vector", "expected a vector of 8 numbers, got 3"),
    "1e39": (record(vector=vector(one="1e39")), 422, "/records/1/vector", "float32"),
    "neither": (record(vector="null"), 422, "/records/1", "a vector or a text"),
    "zero vector under cosine": (record(vector="[0,0,0,0,0,0,0,0]"), 422, "/records/1", ""),
    "surrogate id": (record(id='"\\ud800"'), 400, None, "UTF-8"),
    "surrogate payload key": (record(payload='{"\\udfff":1}'), 400, None, "UTF-8"),
    "empty id": (record(id='""'), 422, "/records/1", "1 to 256 bytes"),
    "long id": (record(id='"' + "x" * 257 + '"'), 422, "/records/1", "257"),
    "control character in id": (record(id='"a\\u0000b"'), 422, "/records/1", "control"),
    "number id": (record(id="7"), 422, "/records/1/id", "int"),
    "no id": ('{"records":[{"vector":' + vector() + "}]}", 422, "/records/0", "id"),
    "unknown key": (record(vectors="[]"), 422, "/records/1", "vectors"),
    "payload not an object": (record(payload="[1]"), 422, "/records/1/payload", "object"),
    "payload too deep": (record(payload=nested(33)), 422, "/records/1/payload", "32"),
    "payload far too deep": (record(payload=nested(50_000)), 422, None, "32"),
    "payload too large": (record(payload='{"a":"' + "x" * 65_536 + '"}'), 422, "/records/1", "65536"),
    "payload of a huge integer": (record(payload='{"a":' + "9" * 5000 + "}"), 422, None, ""),
    "payload of nan": (record(payload='{"a":NaN}'), 400, None, "NaN"),
    "no records": ('{"records":[]}', 422, "/records", ">= 1"),
    "too many records": (
        json.dumps({"records": [{"id": "a", "vector": [1.0]}] * 51}), 422, "/records", "at most 50 records, got 51"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORD_CASES)
def test_a_bad_record_is_refused_where_it_is_wrong_and_nothing_is_written(refusing: TestClient, case: str) -> None:
    body, status, pointer, words = RECORD_CASES[case]
    problem = send(refusing, RECORDS, body)
    assert problem["status"] == status, problem
    assert words in str(problem["detail"])
    if pointer is not None:
        assert [e["pointer"] for e in problem["errors"]] == [pointer]  # type: ignore[attr-defined]
    assert refusing.get(RECORDS + "/count").json() == {"count": 20}


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ('{"dims":0}', 422, "/dims"),
        ('{"dims":4097}', 422, "/dims"),
        ('{"dims":true}', 422, "/dims"),
        ('{"dims":"8"}', 422, "/dims"),
        ('{"dims":8.0}', 422, "/dims"),
        ('{"dims":NaN}', 422, "/dims"),
        ('{"dims":' + "9" * 400 + "}", 422, "/dims"),
        ('{"dims":' + "9" * 5000 + "}", 400, None),
        ('{"dims":8,"metric":"euclid"}', 422, "/metric"),
        ('{"dims":8,"granularities":[4]}', 422, None),
        ('{"dims":8,"granularities":[8,4]}', 422, None),
        ('{"dims":8,"granularities":[true,8]}', 422, "/granularities/0"),
        ('{"dims":8,"dim":8}', 422, "/dim"),
        ('{"dims":8,"\\ud800":8}', 422, None),
        ('{"dims":8,"encoder":"\\ud800"}', 422, None),
        ('{"encoder":"no-such-encoder"}', None, None),
        ("{}", 422, None),
        ("[]", 422, ""),
        ("null", 422, ""),
        ("", 422, ""),
        ('{"dims":', 400, None),
        ('{"dims":' * 100_000, 400, None),
        (b'{"\xff":8}', 400, None),
    ],
)
def test_a_bad_collection_is_refused_and_not_created(
    refusing: TestClient, body: str | bytes, status: int | None, pointer: str | None
) -> None:
    problem = send(refusing, COLLECTION, body)
    assert 400 <= int(str(problem["status"])) <= 501
    if status is not None:
        assert problem["status"] == status, problem
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer  # type: ignore[index]
    assert refusing.get(COLLECTION).status_code == 404


@pytest.mark.parametrize("name", ["Docs", "_docs", "a" * 64, "é", "..%5cdb", "a%20b", "%00", "a%0a"])
def test_a_bad_collection_name_is_422_on_every_route(refusing: TestClient, name: str) -> None:
    base = f"/v1/collections/{name}"
    for method, path, body in [
        ("GET", base, ""),
        ("DELETE", base, ""),
        ("PUT", base, '{"dims":8}'),
        ("POST", base + "/query", '{"vector":' + vector() + "}"),
        ("GET", base + "/records/count", ""),
    ]:
        assert send(refusing, path, body, method)["status"] == 422


def test_an_absent_collection_is_404_on_every_route(refusing: TestClient) -> None:
    base = "/v1/collections/absent"
    for method, path, body in [
        ("GET", base, ""),
        ("DELETE", base, ""),
        ("PUT", base + "/records", '{"records":[{"id":"a","vector":' + vector() + "}]}"),
        ("POST", base + "/records/get", '{"ids":["a"]}'),
        ("POST", base + "/records/delete", '{"ids":["a"]}'),
        ("GET", base + "/records/count", ""),
        ("POST", base + "/query", '{"vector":' + vector() + "}"),
        ("POST", base + "/query/batch", '{"queries":[{"vector":' + vector() + "}]}"),
        ("POST", base + "/seal", ""),
        ("POST", base + "/compact", ""),
    ]:
        problem = send(refusing, path, body, method)
        assert (problem["status"], problem["code"]) == (404, "not_found"), path


def test_the_router_speaks_in_problems_too(refusing: TestClient) -> None:
    assert send(refusing, "/v1/nothing", "", "GET")["code"] == "route_not_found"
    assert send(refusing, "/v1/collections/", "", "GET")["status"] == 404
    assert send(refusing, "/v1/collections", "{}", "PATCH")["code"] == "method_not_allowed"
    assert "allow" in refusing.delete("/v1/collections").headers


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=utf-16"}, "unsupported_media_type"),
        ({}, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "unsupported_encoding"),
    ],
)
def test_other_content_is_415(refusing: TestClient, headers: dict[str, str], code: str) -> None:
    for method, path in (("POST", QUERY), ("PUT", COLLECTION)):
        response = refusing.request(method, path, content=b'{"dims":8}', headers=headers)
        assert (response.status_code, response.json()["code"]) == (415, code)


def test_json_with_a_charset_is_json(refusing: TestClient) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert refusing.post(QUERY, content='{"vector":' + vector() + "}", headers=headers).status_code == 200


def test_a_body_over_the_bound_is_413_with_and_without_a_length(refusing: TestClient) -> None:
    big = b'{"text":"' + b"x" * (1 << 20) + b'"}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for content in (big, pieces()):
        response = refusing.post(QUERY, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert str(1 << 20) in response.json()["detail"]


def test_a_refusal_never_repeats_the_body(refusing: TestClient) -> None:
    canary = "canary-7f3a"
    bodies = [
        (QUERY, '{"vector":["' + canary + '"]}'),
        (RECORDS, '{"records":[{"id":"a","vector":"' + canary + '"}]}'),
        (RECORDS, record(payload='{"' + canary + '":' + nested(40) + "}")),
        (COLLECTION, '{"dims":"' + canary + '"}'),
        (COLLECTION, '{"dims":' + canary),
    ]
    for path, body in bodies:
        assert canary not in json.dumps(send(refusing, path, body))
