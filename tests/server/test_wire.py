"""Every encoding says the same: vectors in and out, rows and columns, JSON, msgpack and Arrow; and refuses the same."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from nestvec.engine.database import Database
from nestvec.engine.record import Record
from nestvec.server import wire
from tests.server.conftest import DIMS, vectors

BASE = "/v1/collections/docs"
QUERY, RECORDS = f"{BASE}/query", f"{BASE}/records"
JSON, MSGPACK = "application/json", "application/msgpack"
ARROW = "application/vnd.apache.arrow.stream"
VECTOR = vectors(1)[0]
PACKED = VECTOR.astype("<f4").tobytes()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def send(
    client: TestClient, path: str, body: object, kind: str = MSGPACK, *, accept: str = JSON, method: str = "POST"
) -> Any:  # noqa: ANN401 - whatever was sent
    """The decoded reply to a body in a format, bytes as they are; a problem is returned too."""
    encode: Callable[[object], bytes] = msgspec.msgpack.encode if kind == MSGPACK else msgspec.json.encode
    content = body if isinstance(body, bytes) else encode(body)
    reply = client.request(method, path, content=content, headers={"Content-Type": kind, "Accept": accept})
    named = reply.headers["content-type"]
    if reply.status_code != 200:
        assert named == "application/problem+json"
        return reply.json()
    assert named == (MSGPACK if accept == MSGPACK else JSON)
    return msgspec.msgpack.decode(reply.content) if named == MSGPACK else reply.json()


def stripped(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply to a query without what differs from run to run."""
    return {key: reply[key] for key in ("hits", "plan", "generation")}


def put_arrow(client: TestClient, table: pa.Table, options: object = None) -> Any:  # noqa: ANN401
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return send(client, RECORDS, sink.getvalue().to_pybytes(), ARROW, method="PUT")


def table(rows: int = 3, kind: pa.DataType | None = None, **columns: object) -> pa.Table:
    matrix = np.asarray(vectors(rows), np.float64).tolist()
    kind = kind or pa.list_(pa.float32(), DIMS)
    fields = {"id": [f"a{i}" for i in range(rows)], "vector": pa.array(matrix, kind), **columns}
    return pa.table({name: column for name, column in fields.items() if column is not None})


@pytest.mark.parametrize(
    ("kind", "vector"),
    [(JSON, VECTOR.tolist()), (JSON, b64(PACKED)), (MSGPACK, PACKED), (MSGPACK, VECTOR.tolist())],
    ids=["list", "base64", "bin", "msgpack list"],
)
def test_a_vector_is_the_same_in_every_encoding(client: TestClient, kind: str, vector: object) -> None:
    body = {"vector": vector, "k": 3, "with_vector": True}
    as_list = send(client, QUERY, {"vector": VECTOR.tolist(), "k": 3, "with_vector": True}, JSON)
    assert stripped(send(client, QUERY, body, kind)) == stripped(as_list)
    binary = send(client, QUERY, body, kind, accept=MSGPACK)
    assert [hit["id"] for hit in binary["hits"]] == [hit["id"] for hit in as_list["hits"]]
    for packed, listed in zip(binary["hits"], as_list["hits"], strict=True):
        assert np.frombuffer(packed["vector"], "<f4").tolist() == listed["vector"]
        assert (packed["score"], packed["payload"], packed["text"]) == (
            listed["score"], listed["payload"], listed["text"])  # fmt: skip
    in_base64 = send(client, QUERY, {**body, "vector_encoding": "base64"}, kind)
    for packed, hit in zip(binary["hits"], in_base64["hits"], strict=True):
        assert base64.b64decode(hit["vector"]) == packed["vector"]


def test_columns_hold_what_the_rows_hold(client: TestClient) -> None:
    body = {"vector": VECTOR.tolist(), "k": 4, "with_vector": True}
    rows = send(client, QUERY, body, JSON)["hits"]
    columns = send(client, QUERY, {**body, "layout": "columns"}, JSON)["hits"]
    names = {"id": "ids", "score": "scores", "payload": "payloads", "text": "texts", "vector": "vectors"}
    assert {names[key]: [row[key] for row in rows] for key in names} == columns
    packed = send(client, QUERY, {**body, "layout": "columns"}, JSON, accept=MSGPACK)["hits"]
    assert np.frombuffer(packed["vectors"], "<f4").reshape(4, DIMS).tolist() == columns["vectors"]
    bare = send(client, QUERY, {"vector": PACKED, "k": 4, "layout": "columns", "with_payload": False})["hits"]
    assert bare == {"ids": columns["ids"], "scores": columns["scores"]}


def test_named_fields_are_all_of_the_payload_that_comes(client: TestClient) -> None:
    record = {"id": "many", "vector": VECTOR.tolist(), "payload": {"a": 1, "b": {"c": [2]}, "d": None}, "text": "t"}
    send(client, RECORDS, {"records": [record]}, JSON, method="PUT")
    for accept in (JSON, MSGPACK):
        body = {"vector": VECTOR.tolist(), "k": 2, "with_payload": ["b", "absent"]}
        first, second = send(client, QUERY, body, JSON, accept=accept)["hits"]
        assert {hit["id"]: (hit["payload"], hit["text"]) for hit in (first, second)} == {
            "many": ({"b": {"c": [2]}}, "t"),
            "r0": ({}, "text 0"),
        }


def test_payloads_come_back_as_they_went_in(client: TestClient) -> None:
    payload = {"ü🙂": '\u2028"\\', "big": [2**63, -(2**63), 2**64 - 1], "tiny": 5e-324, "deep": {"a": [{}, [], None]}}
    body = {"records": [{"id": "p", "vector": PACKED, "payload": payload}, {"id": "n", "vector": PACKED}]}
    assert send(client, RECORDS, body, method="PUT")["count"] == 2
    for accept in (JSON, MSGPACK):
        hits = send(client, QUERY, {"vector": PACKED, "k": 3}, accept=accept)["hits"]
        assert {hit["id"]: hit["payload"] for hit in hits} == {"p": payload, "n": None, "r0": {"n": 0}}
        got = send(client, RECORDS + "/get", {"ids": ["p", "n"]}, accept=accept)["records"]
        assert [record["payload"] for record in got] == [payload, None]


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
@pytest.mark.parametrize("packed", ["no", "each", "all"])
def test_columns_are_written_as_rows_are(client: TestClient, kind: str, packed: str) -> None:
    matrix = vectors(24)[20:].astype("<f4")
    raw = [row.tobytes() for row in matrix]
    written: Any = {
        "no": matrix.tolist(),
        "each": raw if kind == MSGPACK else [b64(row) for row in raw],
        "all": b"".join(raw) if kind == MSGPACK else b64(b"".join(raw)),
    }[packed]
    body = {
        "ids": list("abcd"),
        "vectors": written,
        "texts": ["1", None, "3", ""],
        "payloads": [{"x": 1}, None, {}, None],
    }
    assert send(client, RECORDS, body, kind, method="PUT")["count"] == 4
    got = send(client, RECORDS + "/get", {"ids": list("abcd"), "with_vector": True}, JSON)["records"]
    assert [record["payload"] for record in got] == [{"x": 1}, None, {}, None]
    assert [record["text"] for record in got] == ["1", None, "3", ""]
    np.testing.assert_allclose([record["vector"] for record in got], matrix, rtol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32(), DIMS), pa.list_(pa.float16(), DIMS), pa.list_(pa.float64(), DIMS), pa.list_(pa.float32()),
     pa.large_list(pa.float32())],
    ids=str,
)  # fmt: skip
def test_an_arrow_stream_is_written_as_json_is(client: TestClient, kind: pa.DataType) -> None:
    payloads = ['{"n":1}', None, '{"n":[true]}']
    assert put_arrow(client, table(3, kind, text=["x", None, "z"], payload=payloads))["count"] == 3
    got = send(client, RECORDS + "/get", {"ids": ["a0", "a1", "a2"], "with_vector": True}, JSON)["records"]
    assert [record["payload"] for record in got] == [{"n": 1}, None, {"n": [True]}]
    assert [record["text"] for record in got] == ["x", None, "z"]
    half = kind.value_type == pa.float16()
    np.testing.assert_allclose([r["vector"] for r in got], vectors(3), rtol=2e-3 if half else 1e-6)


def test_an_arrow_struct_is_a_payload_and_a_row_may_lack_its_vector(client: TestClient) -> None:
    client.put("/v1/collections/prose", json={"encoder": "static"})
    rows = pa.table({"id": ["a", "b"], "text": ["one", "two"], "payload": [{"n": 1, "s": "x"}, {"n": None, "s": "y"}]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    path = "/v1/collections/prose/records"
    assert send(client, path, sink.getvalue().to_pybytes(), ARROW, method="PUT")["count"] == 2
    got = send(client, path + "/get", {"ids": ["a", "b"]}, JSON)["records"]
    assert [record["payload"] for record in got] == [{"n": 1, "s": "x"}, {"n": None, "s": "y"}]


ARROW_FAULTS: dict[str, tuple[Callable[[], pa.Table], str, str]] = {
    "no id": (lambda: table().drop_columns(["id"]), "", "expected the columns id"),
    "unknown column": (lambda: table(extra=[1, 2, 3]), "", "extra"),
    "ids of numbers": (lambda: table(id=[1, 2, 3]), "/ids", "strings"),
    "null id": (lambda: table(id=["a", None, "c"]), "/ids/1", "null"),
    "dictionary": (lambda: table(text=pa.array(["a", "b", "a"]).dictionary_encode()), "/texts", "dictionary"),
    "integer vectors": (lambda: table(vector=pa.array([[1] * DIMS] * 3)), "/vectors", "floats"),
    "wrong dims": (lambda: table(vector=pa.array([[1.0] * 5] * 3, pa.list_(pa.float32(), 5))), "/vectors", "60 bytes"),
    "one wrong length": (lambda: table(vector=pa.array([[1.0] * 8, [1.0] * 7, None])), "/vectors/1", "28 bytes"),
    "null number": (lambda: table(vector=pa.array([[None] * 8] * 3, pa.list_(pa.float32(), 8))), "/vectors", "null"),
    "nan": (lambda: table(vector=pa.array([[math.nan] * 8] * 3, pa.list_(pa.float32(), 8))), "/vectors", "finite"),
    "beyond float32": (lambda: table(vector=pa.array([[1e39] * 8] * 3, pa.list_(pa.float64(), 8))), "/vectors",
                       "finite"),
    "neither": (lambda: table(vector=pa.array([None, None, None], pa.list_(pa.float32(), 8))), "/ids/0", "vector"),
    "payload no object": (lambda: table(payload=["{}", "[1]", None]), "/payloads/1", "JSON object"),
    "payload no json": (lambda: table(payload=["{}", "{", None]), "/payloads/1", "JSON object"),
    "twice the same id": (lambda: table(id=["a", "b", "a"]), "/ids/2", "same id"),
    "too many": (lambda: table(51), "/ids", "at most 50 rows"),
    "none": (lambda: table().slice(0, 0), "/ids", "at least one row"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARROW_FAULTS)
def test_a_bad_arrow_stream_is_refused_where_it_is_wrong(refusing: TestClient, case: str) -> None:
    made, pointer, words = ARROW_FAULTS[case]
    problem = put_arrow(refusing, made())
    assert problem["status"] == 422, problem
    assert words in problem["detail"]
    assert problem["errors"][0]["pointer"] == pointer
    assert refusing.get(RECORDS + "/count").json() == {"count": 20}


def test_what_is_no_arrow_stream_is_400_and_compression_is_refused(client: TestClient) -> None:
    whole = pa.BufferOutputStream()
    with pa.ipc.new_stream(whole, table().schema) as writer:
        writer.write_table(table())
    stream = whole.getvalue().to_pybytes()
    for bad in (b"x", b"\xff" * 100, stream[: len(stream) // 2], b"", b"\xff\xff\xff\xff" + b"\xff" * 8):
        problem = send(client, RECORDS, bad, ARROW, method="PUT")
        assert (problem["status"], problem["code"]) == (400, "malformed_arrow"), bad
    for at in range(0, len(stream), 7):  # whatever is flipped, the answer is an answer
        answer = send(client, RECORDS, stream[:at] + bytes([stream[at] ^ 0x5A]) + stream[at + 1 :], ARROW, method="PUT")
        assert answer.get("status", 200) < 500, (at, answer)
    # zeros, so that compression makes the buffers smaller and is therefore kept
    zeros = table(40, vector=pa.array([[1.0] + [0.0] * 7] * 40, pa.list_(pa.float32(), 8)))
    problem = put_arrow(client, zeros, pa.ipc.IpcWriteOptions(compression="zstd"))
    assert (problem["status"], "compression" in problem["detail"]) == (422, True)


def test_without_pyarrow_the_answer_says_what_to_install(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    problem = send(client, RECORDS, b"any", ARROW, method="PUT")
    assert (problem["status"], problem["code"]) == (501, "missing_dependency")
    assert "pip install 'nestvec[parquet]'" in problem["detail"]


def with_number(value: float) -> bytes:
    vector = VECTOR.copy()
    vector[3] = value
    return vector.astype("<f4").tobytes()


QUERY_FAULTS: dict[str, tuple[str, object, str, str]] = {
    "base64 of 31 bytes": (JSON, {"vector": b64(PACKED[:-1])}, "/vector", "32 bytes, a vector of 8"),
    "base64 of 9 numbers": (JSON, {"vector": b64(PACKED + b"\0\0\0\0")}, "/vector", "got 36 bytes, 9 numbers"),
    "empty base64": (JSON, {"vector": ""}, "/vector", "got 0 bytes"),
    "no base64": (JSON, {"vector": "@@@@"}, "/vector", "base64"),
    "base64 cut short": (JSON, {"vector": b64(PACKED)[:-1]}, "/vector", "base64"),
    "base64 nan": (JSON, {"vector": b64(with_number(math.nan))}, "/vector", "number 3 is nan"),
    "base64 infinity": (JSON, {"vector": b64(with_number(-math.inf))}, "/vector", "number 3 is -inf"),
    "bin of 31 bytes": (MSGPACK, {"vector": PACKED[:-1]}, "/vector", "no multiple of 4"),
    "bin nan": (MSGPACK, {"vector": with_number(math.nan)}, "/vector", "number 3 is nan"),
    "msgpack list nan": (MSGPACK, {"vector": [math.nan] * 8}, "/vector", "number 0 is nan"),
    "msgpack list infinity": (MSGPACK, {"vector": [1.0] * 7 + [math.inf]}, "/vector", "number 7 is inf"),
    "msgpack list 1e39": (MSGPACK, {"vector": [1.0] * 7 + [1e39]}, "/vector", "at most 3.4028235e38"),
    "msgpack list too long": (MSGPACK, {"vector": [1.0] * 9}, "/vector", "8 numbers, got 9"),
    "msgpack text as vector": (MSGPACK, {"vector": b64(PACKED)}, "/vector", "bytes"),
    "msgpack unknown key": (MSGPACK, {"vector": PACKED, "limit": 3}, "", "limit"),
    "msgpack k": (MSGPACK, {"vector": PACKED, "k": 1001}, "/k", "<= 1000"),
    "vector_encoding": (JSON, {"vector": [0.5] * 8, "vector_encoding": "hex"}, "/vector_encoding", "hex"),
    "layout": (JSON, {"vector": [0.5] * 8, "layout": "table"}, "/layout", "table"),
    "with_payload": (JSON, {"vector": [0.5] * 8, "with_payload": "title"}, "/with_payload", "array"),
    "with_payload of numbers": (JSON, {"vector": [0.5] * 8, "with_payload": [1]}, "/with_payload/0", "str"),
    "timeout_ms": (JSON, {"vector": [0.5] * 8, "timeout_ms": 0}, "/timeout_ms", ">= 1"),
    "filter": (JSON, {"vector": [0.5] * 8, "filter": {"all": [{"field": "a", "range": {"gt": "x"}}]}},
               "/filter/all/0/range/gt", "datetimes"),
    "filter of a list": (JSON, {"vector": [0.5] * 8, "filter": []}, "/filter", "object"),
    "filter of bytes": (MSGPACK, {"vector": PACKED, "filter": {"field": "a", "eq": b"x"}}, "/filter/eq", "string"),
    "rank": (JSON, {"vector": [0.5] * 8, "rank": "sparse"}, "/rank", "sparse"),
    "fusion weight": (JSON, {"vector": [0.5] * 8, "fusion": {"weight": 2}}, "/fusion/weight", "<= 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", QUERY_FAULTS)
def test_a_bad_query_is_refused_where_it_is_wrong_alone_and_in_a_batch(refusing: TestClient, case: str) -> None:
    kind, body, pointer, words = QUERY_FAULTS[case]
    good: dict[str, object] = {"vector": PACKED if kind == MSGPACK else b64(PACKED)}
    for path, whole, place in (
        (QUERY, body, pointer),
        (QUERY + "/batch", {"queries": [good, body]}, "/queries/1" + pointer),
    ):
        problem = send(refusing, path, whole, kind)
        assert problem["status"] == 422, problem
        assert words in problem["detail"]
        assert [error["pointer"] for error in problem["errors"]] == [place]


WRITE_FAULTS: dict[str, tuple[str, object, str, str]] = {
    "rows and columns": (MSGPACK, {"records": [{"id": "a", "vector": PACKED}], "ids": ["a"]}, "", "exactly one"),
    "neither": (MSGPACK, {}, "", "exactly one"),
    "columns beside rows": (MSGPACK, {"records": [{"id": "a", "vector": PACKED}], "texts": ["a"]}, "/texts", "beside"),
    "columns without content": (MSGPACK, {"ids": ["a"]}, "", "vectors or texts"),
    "unequal vectors": (MSGPACK, {"ids": ["a", "b"], "vectors": [PACKED]}, "/vectors", "2 vectors, one for each id"),
    "unequal payloads": (MSGPACK, {"ids": ["a"], "vectors": [PACKED], "payloads": []}, "/payloads", "got 0"),
    "unequal texts": (MSGPACK, {"ids": ["a"], "texts": ["a", "b"]}, "/texts", "got 2"),
    "packed too short": (MSGPACK, {"ids": ["a", "b"], "vectors": PACKED}, "/vectors", "64 bytes, 2 vectors of 8"),
    "packed nan": (MSGPACK, {"ids": ["a", "b"], "vectors": PACKED + with_number(math.nan)}, "/vectors", "vector 1"),
    "one nan": (MSGPACK, {"ids": ["a", "b"], "vectors": [PACKED, with_number(math.inf)]}, "/vectors/1", "number 3"),
    "same id": (MSGPACK, {"ids": ["a", "a"], "vectors": PACKED * 2}, "/ids/1", "same id"),
    "empty id": (MSGPACK, {"ids": ["a", ""], "vectors": PACKED * 2}, "/ids/1", "1 to 256 bytes"),
    "no vector in a row": (MSGPACK, {"ids": ["a", "b"], "vectors": [PACKED, None]}, "/ids/1", "no vector"),
    "too many ids": (JSON, {"ids": ["a"] * 51, "vectors": ""}, "/ids", "at most 50 ids, got 51"),
    "deep payload": (JSON, {"ids": ["a"], "vectors": b64(PACKED),
                            "payloads": [json.loads('{"a":' * 33 + "{}" + "}" * 33)]}, "/payloads/0", "32"),
    "bytes in a payload": (MSGPACK, {"records": [{"id": "a", "vector": PACKED, "payload": {"x": b"1"}}]},
                           "/records/0", "JSON values only"),
    "nan in a payload": (MSGPACK, {"records": [{"id": "a", "vector": PACKED, "payload": {"x": math.nan}}]},
                         "/records/0", "no NaN"),
    "keys of numbers": (MSGPACK, {"records": [{"id": "a", "vector": PACKED, "payload": {"x": {1: 2}}}]},
                        "/records/0", "keys are strings"),
    "bin in rows": (MSGPACK, {"records": [{"id": "a", "vector": PACKED[1:]}]}, "/records/0/vector", "got 31 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITE_FAULTS)
def test_a_bad_write_is_refused_where_it_is_wrong_and_nothing_is_written(refusing: TestClient, case: str) -> None:
    kind, body, pointer, words = WRITE_FAULTS[case]
    problem = send(refusing, RECORDS, body, kind, method="PUT")
    assert problem["status"] == 422, problem
    assert words in problem["detail"]
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert refusing.get(RECORDS + "/count").json() == {"count": 20}


def test_what_is_no_msgpack_is_400(client: TestClient) -> None:
    for body in (b"", b"\xc1", b"\x81\xa1k", msgspec.msgpack.encode({"vector": PACKED}) + b"\x00"):
        problem = send(client, QUERY, body)
        assert (problem["status"], problem["code"]) == (400, "malformed_msgpack"), body


def test_content_types_and_accept_choose_the_formats(client: TestClient) -> None:
    body = {"vector": PACKED, "k": 1}
    for name in ("application/x-msgpack", "Application/Msgpack", "application/vnd.msgpack; x=y"):
        content = msgspec.msgpack.encode(body)
        assert client.post(QUERY, content=content, headers={"Content-Type": name}).status_code == 200
    for accept, wanted in {
        "*/*": JSON,
        "text/html": JSON,
        "application/msgpack": MSGPACK,
        "application/json, application/msgpack;q=0.5": JSON,
        "application/json;q=0.5, application/x-msgpack": MSGPACK,
        "application/msgpack;q=0": JSON,
        "application/msgpack;q=x, */*": JSON,
    }.items():
        reply = client.post(QUERY, json={"vector": [0.5] * 8}, headers={"Accept": accept})
        assert reply.headers["content-type"] == wanted, accept
    for path, method in ((QUERY, "POST"), (RECORDS, "PUT")):
        for kind in ("text/plain", "application/json; charset=latin-1", "application/octet-stream", ""):
            reply = client.request(method, path, content=b"{}", headers={"Content-Type": kind})
            assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type"), kind
            assert "application/msgpack" in reply.json()["detail"]
    assert send(client, QUERY, b"", ARROW)["status"] == 415


def test_an_integer_beyond_msgpack_is_406_there_and_whole_in_json(client: TestClient, database: Database) -> None:
    database.collection("docs").upsert([Record("huge", VECTOR, {"n": 2**70})])
    assert send(client, RECORDS + "/get", {"ids": ["huge"]}, accept=MSGPACK)["status"] == 406
    assert send(client, QUERY, {"vector": PACKED, "k": 2}, accept=MSGPACK)["status"] == 406
    hits = send(client, QUERY, {"vector": PACKED, "k": 2})["hits"]
    assert {hit["id"]: hit["payload"] for hit in hits}["huge"] == {"n": 2**70}


def test_scroll_count_and_delete_by_filter(client: TestClient) -> None:
    wanted = {"field": "n", "range": {"gte": 5}}
    seen: list[int] = []
    cursor = None
    for _ in range(10):
        body = {"limit": 4, "filter": wanted, "cursor": cursor, "with_vector": True, "vector_encoding": "base64"}
        page = send(client, RECORDS + "/scroll", body, JSON)
        seen += [record["payload"]["n"] for record in page["records"]]
        assert all(len(base64.b64decode(record["vector"])) == 4 * DIMS for record in page["records"])
        cursor = page["cursor"]
        if cursor is None:
            break
    assert seen == list(range(5, 20))
    only = send(client, RECORDS + "/scroll", {"limit": 1, "with_payload": ["absent"]}, JSON, accept=MSGPACK)["records"]
    assert only == [{"id": "r0", "payload": {}, "text": "text 0"}]
    assert send(client, RECORDS + "/count", {"filter": wanted}) == {"count": 15}
    assert send(client, RECORDS + "/count", {}) == {"count": 20}
    reply = send(client, QUERY, {"vector": PACKED, "k": 50, "filter": {"field": "n", "in": [3, 4]}})
    assert sorted(hit["id"] for hit in reply["hits"]) == ["r3", "r4"]
    assert reply["filter"] == {"mode": "exact", "matching": 2, "selectivity": 0.1}
    assert send(client, RECORDS + "/delete", {"filter": wanted}) == {"deleted": 15}
    assert client.get(RECORDS + "/count").json() == {"count": 5}


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/delete", {}, ""),
        ("/delete", {"ids": ["a"], "filter": {"field": "n", "eq": 1}}, ""),
        ("/delete", {"filter": {}}, "/filter"),
        ("/count", {"filter": {"field": "n"}}, "/filter"),
        ("/count", {"filters": {}}, ""),
        ("/scroll", {"limit": 0}, "/limit"),
        ("/scroll", {"limit": 1001}, "/limit"),
        ("/scroll", {"cursor": 3}, "/cursor"),
        ("/scroll", {"filter": {"field": "n", "eq": [1]}}, "/filter/eq"),
    ],
)
def test_what_scroll_count_and_delete_refuse(
    refusing: TestClient, path: str, body: dict[str, object], pointer: str
) -> None:
    for kind in (JSON, MSGPACK):
        problem = send(refusing, RECORDS + path, body, kind)
        assert problem["status"] == 422, problem
        assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert refusing.get(RECORDS + "/count").json() == {"count": 20}


def test_a_foreign_cursor_is_refused(client: TestClient) -> None:
    for cursor in ("", "x", "AAAA", "☃"):
        assert send(client, RECORDS + "/scroll", {"cursor": cursor}, JSON)["status"] == 422


def test_a_reply_decodes_as_the_struct_that_the_document_shows(client: TestClient) -> None:
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    for layout in ("rows", "columns"):
        body = {"vector": PACKED, "layout": layout, "with_vector": True, "filter": {"field": "n", "exists": True}}
        reply = client.post(QUERY, content=msgspec.msgpack.encode(body), headers=headers)
        found = msgspec.msgpack.decode(reply.content, type=wire.QueryReply)
        assert isinstance(found.hits, list if layout == "rows" else wire.HitColumns)
    page = client.post(RECORDS + "/scroll", content=msgspec.msgpack.encode({}), headers=headers)
    assert len(msgspec.msgpack.decode(page.content, type=wire.ScrollReply).records) == 20
