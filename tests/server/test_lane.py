"""The lane: quick queries get what they get the ordinary way, in order, and nothing is left over."""

from __future__ import annotations

import base64
import io
import json
import math
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from fastapi import FastAPI

import nestvec
from nestvec.engine.database import Database
from nestvec.engine.record import Record
from nestvec.server import lane
from nestvec.server.app import create_app
from nestvec.server.lane import MOST_BYTES
from nestvec.server.logs import RequestLog
from nestvec.server.settings import Settings
from tests.server.conftest import DIMS, vectors
from tests.server.test_door import Served, answer
from tests.server.test_gate import QUERY, connect, head

pytest.importorskip("httptools", reason="without it there is no lane")

ROWS = vectors(400)


class Quick(dict[object, float]):
    """Every query is known to be quick."""

    def get(self, key: object, default: Any = None) -> float:  # noqa: ANN401 - as in the base class
        return 1e-5


@pytest.fixture
def log() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def app(database: Database, log: io.BytesIO) -> FastAPI:
    collection = database.create_collection("built", dims=DIMS, granularities=(4, DIMS))
    collection.build([nestvec.Batch(0, vectors=ROWS, payloads=[{"n": i} for i in range(len(ROWS))])])
    collection.warm()
    return create_app(database, Settings(max_body_mb=1, read_seconds=0.5, recall_share=0.0), RequestLog("info", log))


class Spy:
    """What the lane said to each request that it was offered."""

    def __init__(self, app: FastAPI) -> None:
        self.taken: list[bool] = []
        lane = app.state.lane
        self._take = lane.take
        lane.take = self.take

    def take(self, *arguments: object) -> bool:
        self.taken.append(self._take(*arguments))
        return self.taken[-1]


@pytest.fixture
def spy(app: FastAPI) -> Iterator[Spy]:
    app.state.service.batcher.seconds = Quick()
    yield Spy(app)
    admission = app.state.service.admission
    assert (admission.working, admission.coming, admission.uploading, admission.bytes) == (0, 0, 0, 0)


def asking(body: bytes, *lines: str, path: str = QUERY, kind: str = "json") -> bytes:
    typed = f"Content-Type: application/{kind}", f"Accept: application/{kind}"
    return head(path, *typed, f"Content-Length: {len(body)}", *lines) + body


def plain(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply without its times."""
    reply.pop("took_ms")
    reply["work"].pop("micros")
    for stage in reply["work"]["stages"]:
        stage.pop("micros")
    if reply["recall"] and reply["recall"]["basis"]:
        reply["recall"]["basis"].pop("age_seconds")
    return reply


ROW = ROWS[30].tolist()
PACKED = base64.b64encode(ROWS[31].tobytes()).decode()
BODIES: list[dict[str, Any]] = [
    {"vector": ROW},
    {"vector": PACKED, "k": 3},
    {"vector": ROW, "with_vector": True},
    {"vector": ROW, "with_vector": True, "vector_encoding": "base64", "layout": "columns"},
    {"vector": ROW, "with_payload": False},
    {"vector": ROW, "with_payload": ["n"]},
    {"vector": ROW, "layout": "columns", "k": 7},
    {"vector": ROW, "recall": 0.9},
    {"vector": ROW, "exact": True},
    {"vector": ROW, "plan": {"route": "exact"}},
    {"vector": ROW, "filter": {"field": "n", "range": {"gte": 5, "lt": 9}}},
    {"vector": ROW, "timeout_ms": 1000},
]


@pytest.mark.parametrize("path", [QUERY, "/v1/collections/built/query"])
def test_what_it_answers_is_what_the_ordinary_way_answers(app: FastAPI, spy: Spy, served: Served, path: str) -> None:
    with served(app) as url, connect(url) as wire:
        for body in BODIES:
            found = []
            for way in "", "?way=ordinary":  # the second is none for the lane
                wire.sendall(asking(json.dumps(body).encode(), path=path + way))
                status, headers, reply = answer(wire)
                assert (status, headers["content-type"]) == (200, "application/json")
                assert headers.keys() == {"date", "content-type", "content-length", "x-request-id"}
                found.append(plain(json.loads(reply)))
            assert found[0] == found[1]
            assert found[0]["hits"]
    assert spy.taken == [True] * len(BODIES)


def test_msgpack_is_answered_in_msgpack(app: FastAPI, spy: Spy, served: Served) -> None:
    body = msgspec.msgpack.encode({"vector": ROWS[3].tobytes(), "k": 2, "with_vector": True})
    with served(app) as url, connect(url) as wire:
        wire.sendall(asking(body, kind="msgpack"))
        status, headers, reply = answer(wire)
    assert (status, headers["content-type"], spy.taken) == (200, "application/msgpack", [True])
    hits = msgspec.msgpack.decode(reply)["hits"]
    assert hits[0]["id"] == "r3"
    assert np.frombuffer(hits[0]["vector"], "<f4") == pytest.approx(ROWS[3])


WRONG: list[tuple[bytes, int, str]] = [
    (b'{"vector": [1, 2]}', 422, "invalid_input"),
    (b'{"vector": [1, 2, 3, 4, 5, 6, 7, "8"]}', 422, "invalid_input"),
    (b'{"vector": "%s"}' % base64.b64encode(np.full(DIMS, math.nan, "<f4").tobytes()), 422, "invalid_input"),
    (b'{"vector": "%s"}' % base64.b64encode(bytes(4 * DIMS)), 422, "invalid_input"),  # zero has no cosine
    (b'{"vector": %s}' % json.dumps([1e300] * DIMS).encode(), 422, "invalid_input"),  # infinite as float32
    (b'{"vector": [1, 2', 400, "malformed_json"),
    (b'{"text": "\xff"}', 400, "malformed_json"),
    (b'{"vector": ' + json.dumps(ROW).encode() + b', "kk": 1}', 422, "invalid_input"),
    (b'{"vector": ' + json.dumps(ROW).encode() + b', "filter": {"n": 1}}', 422, "invalid_input"),
    (b'{"vector": ' + json.dumps(ROW).encode() + b', "plan": {"route": "ehi", "probes": 1}}', 422, "invalid_input"),
    (b'{"text": "a question"}', 422, "invalid_input"),  # there is no encoder
    (b"", 400, "malformed_json"),
]


def test_whatever_is_wrong_is_told_by_the_ordinary_way_and_hurts_no_other(
    app: FastAPI, spy: Spy, served: Served
) -> None:
    good = asking(json.dumps({"vector": ROW, "k": 1}).encode())
    with served(app) as url, connect(url) as wire, connect(url) as other:
        for body, status, code in WRONG:
            other.sendall(good)
            wire.sendall(asking(body))
            found, _, problem = answer(wire)
            assert (found, json.loads(problem)["code"]) == (status, code), body
            assert answer(other)[0] == 200
    assert True in spy.taken


def test_pipelined_requests_are_answered_in_their_order(app: FastAPI, spy: Spy, served: Served) -> None:
    sent = [asking(json.dumps({"vector": ROW, "k": k}).encode(), f"X-Request-Id: {k}") for k in (1, 2, 3, 4)]
    with served(app) as url, connect(url) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.sendall(sent[0] + sent[1] + sent[2][:90])
        wire.sendall(sent[2][90:] + sent[3])
        held = b""
        while held.count(b"took_ms") < 4:
            held += wire.recv(1 << 16)
    ids = [line for line in held.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids == [b"x-request-id: %d" % k for k in (1, 2, 3, 4)]


def test_a_body_in_pieces_goes_the_ordinary_way(app: FastAPI, spy: Spy, served: Served) -> None:
    whole = asking(json.dumps({"vector": ROW, "k": 1}).encode())
    with served(app) as url, connect(url) as wire:
        for cut in (len(whole) - 5, len(whole)):
            wire.sendall(whole[:cut])
            while cut < len(whole) and not app.state.service.admission.uploading:
                pass  # the first piece was read
            wire.sendall(whole[cut:])
            assert answer(wire)[0] == 200
    assert spy.taken == [True]


class Known:
    """How often a head had come before."""

    def __init__(self, app: FastAPI) -> None:
        self.times = 0
        lane = app.state.lane
        self._known = lane.known
        lane.known = self

    def __call__(self, head: bytes, body_bytes: int) -> Any:  # noqa: ANN401 - whatever it is
        found = self._known(head, body_bytes)
        self.times += found is not None
        return found


def test_a_head_that_came_before_means_the_same(app: FastAPI, spy: Spy, served: Served) -> None:
    known = Known(app)
    with served(app) as url, connect(url) as wire, connect(url) as other:
        for body in BODIES:
            found = []
            for way in "?way=ordinary", "", "":
                for each in wire, other:
                    each.sendall(asking(json.dumps(body).encode(), path=QUERY + way))
                    status, headers, reply = answer(each)
                    assert (status, headers["content-type"]) == (200, "application/json")
                    found.append(plain(json.loads(reply)))
            assert all(each == found[0] for each in found[1:])
    lengths = {len(json.dumps(body)) for body in BODIES}
    assert known.times == 4 * len(BODIES) - len(lengths)  # a head tells the length
    assert spy.taken == [True] * 4 * len(BODIES)


@pytest.mark.parametrize("line", ["X-Api-Key: secret", "Authorization: Bearer secret", "X-Long: " + "x" * 2000])
def test_heads_with_keys_and_long_ones_are_not_kept(app: FastAPI, spy: Spy, served: Served, line: str) -> None:
    known = Known(app)
    with served(app) as url, connect(url) as wire:
        for _ in range(3):
            wire.sendall(asking(json.dumps({"vector": ROW}).encode(), line))
            assert answer(wire)[0] == 200
    assert (known.times, spy.taken) == (0, [True] * 3)


def test_the_same_head_with_less_or_more_behind_it_is_read_as_ever(app: FastAPI, spy: Spy, served: Served) -> None:
    known = Known(app)
    whole = asking(json.dumps({"vector": ROW}).encode())
    with served(app) as url, connect(url) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.sendall(whole)
        assert answer(wire)[0] == 200
        wire.sendall(whole[:-9])
        while not app.state.service.admission.uploading:
            pass  # the first piece was read
        wire.sendall(whole[-9:])
        assert answer(wire)[0] == 200
        wire.sendall(whole + whole)
        held = b""
        while held.count(b"took_ms") < 2:
            held += wire.recv(1 << 16)
        assert known.times == 0
        wire.sendall(whole)
        assert answer(wire)[0] == 200
    assert known.times == 1


def test_a_head_that_came_before_is_refused_where_there_is_no_room(app: FastAPI, spy: Spy, served: Served) -> None:
    known, admission = Known(app), app.state.service.admission
    body = json.dumps({"vector": ROW}).encode()
    with served(app) as url, connect(url) as wire:
        for status in (200, 503, 503, 200):
            admission.working = 0 if status == 200 else 1000
            wire.sendall(asking(body))
            found, headers, _ = answer(wire)
            assert found == status
            assert ("retry-after" in headers) == (status == 503)
    assert (known.times, spy.taken) == (3, [True] * 2)


def test_what_goes_wrong_with_a_head_that_came_before_is_told_by_the_ordinary_way(
    app: FastAPI, spy: Spy, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(app)
    good = json.dumps({"vector": ROW}).encode()
    bad = b"x" + good[1:]
    with served(app) as url, connect(url) as wire:
        for body, status in ((good, 200), (bad, 400), (good, 200)):
            wire.sendall(asking(body))
            assert answer(wire)[0] == status
        monkeypatch.setattr(lane, "search_vectors", lambda *_: 1 / 0)
        for _ in range(2):
            wire.sendall(asking(good))
            assert answer(wire)[0] == 200
    assert known.times == 4
    assert spy.taken == [True, False, True, True, True]


def test_a_query_that_is_slow_or_unknown_is_not_held_on_the_loop(app: FastAPI, served: Served) -> None:
    spy = Spy(app)
    with served(app) as url, connect(url) as wire:
        for _ in range(3):
            app.state.service.batcher.seconds.clear()
            wire.sendall(asking(json.dumps({"vector": ROW}).encode()))
            assert answer(wire)[0] == 200
    assert spy.taken == [False] * 3


def test_a_write_of_another_process_is_found(app: FastAPI, spy: Spy, served: Served, database: Database) -> None:
    with served(app) as url, connect(url) as wire, nestvec.open(database.path) as elsewhere:
        for turn in range(5):
            mark = np.full(DIMS, -1.0, np.float32)
            mark[turn] = 5.0
            elsewhere.collection("docs").upsert([Record(f"new{turn}", mark)])
            wire.sendall(asking(json.dumps({"vector": mark.tolist(), "k": 1}).encode()))
            assert json.loads(answer(wire)[2])["hits"][0]["id"] == f"new{turn}"


def test_larger_and_more_hurried_requests_are_none_for_it(app: FastAPI, spy: Spy, served: Served) -> None:
    small = json.dumps({"vector": ROW}).encode()
    with served(app) as url, connect(url) as wire:
        for request in (
            asking(small + b" " * MOST_BYTES),
            asking(small, "X-Timeout-Ms: 99"),
            asking(small, path=QUERY + "?x=1"),
        ):
            wire.sendall(request)
            assert answer(wire)[0] in (200, 504)
        wire.sendall(asking(json.dumps({"vector": ROW, "timeout_ms": 50}).encode()))
        assert answer(wire)[0] in (200, 504)
    assert spy.taken == [False]


def test_each_request_is_counted_and_logged(app: FastAPI, spy: Spy, served: Served, log: io.BytesIO) -> None:
    with served(app) as url, connect(url) as wire:
        for number in range(3):
            wire.sendall(asking(json.dumps({"vector": ROW}).encode(), f"X-Request-Id: mine-{number}"))
            assert answer(wire)[1]["x-request-id"] == f"mine-{number}"
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["request_id"], line["status"], line["collection"]) for line in lines] == [
        (f"mine-{number}", 200, "docs") for number in range(3)
    ]
    counted = 'nestvec_requests_total{method="POST",route="/v1/collections/{name}/query",status="200"} 3.0'
    assert counted in app.state.service.metrics.page().decode()
    assert spy.taken == [True] * 3


def test_keys_are_asked_for_and_bound(database: Database, served: Served) -> None:
    database.create_collection("other", dims=DIMS)
    (_, reader), (_, bound) = database.create_key("reader", "read"), database.create_key("bound", "read", ["other"])
    app = create_app(database, Settings(auth_failures_per_minute=2, recall_share=0.0))
    app.state.service.batcher.seconds = Quick()
    spy = Spy(app)
    body = json.dumps({"vector": ROW}).encode()
    with served(app) as url, connect(url) as wire:
        said = []
        for secret in (reader, bound, "wrong", reader, "wrong", reader):
            wire.sendall(asking(body, f"Authorization: Bearer {secret}"))
            said.append(answer(wire)[0])
    assert said == [200, 403, 401, 200, 401, 429]  # each failure counts once
    assert spy.taken == [True, False, False, True, False, False]


def test_a_revoked_key_is_refused_at_once(database: Database, served: Served) -> None:
    app = create_app(database, Settings(recall_share=0.0))
    app.state.service.batcher.seconds = Quick()
    spy = Spy(app)
    body = json.dumps({"vector": ROW}).encode()
    database.create_key("other", "read")
    with served(app) as url, connect(url) as wire:
        for _ in range(5):
            info, secret = database.create_key("short", "read")
            said = []
            for _ in range(2):
                wire.sendall(asking(body, f"X-API-Key: {secret}"))
                said.append(answer(wire)[0])
                wire.sendall(asking(body, "X-API-Key: wrong"))  # none for the lane, which looks at it all the same
                assert answer(wire)[0] == 401
                if len(said) == 1:
                    database.revoke_key(info.name)
            assert said == [200, 401]
    assert spy.taken == [True, False, False, False] * 5


def test_what_goes_wrong_after_the_search_leaves_nobody_waiting(app: FastAPI, spy: Spy, served: Served) -> None:
    calls = []

    def searched(answers: object) -> None:
        calls.append(answers)
        raise RuntimeError("no room for numbers")

    app.state.service.searched = searched
    with served(app) as url, connect(url) as wire:
        for _ in range(3):
            wire.sendall(asking(json.dumps({"vector": ROW}).encode()))
            assert answer(wire)[0] == 200
    assert len(calls) == 3
