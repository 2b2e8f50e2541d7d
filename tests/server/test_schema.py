"""The published document is true: requests made from it get the answers that it says, and nothing else.

Schemathesis makes them: every example, and every boundary of every schema, valid and not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
import schemathesis
from fastapi import FastAPI
from pydantic import SecretStr
from schemathesis.checks import CHECKS
from schemathesis.schemas import BaseSchema
from starlette.testclient import TestClient

import nestvec
from nestvec.engine.record import Record
from nestvec.server.app import create_app
from nestvec.server.formats import ARROW
from nestvec.server.settings import Settings
from tests.server.conftest import vectors, wait_ready

# With a key of its own the service stays open to the test when an operation makes the first key.
KEY = "a key for the test"
SETTINGS = Settings(max_body_mb=1, max_batch=50, api_key=SecretStr(KEY), auth_failures_per_minute=0)
CONFIG = schemathesis.Config.from_dict(
    {
        "phases": {
            "examples": {"enabled": True},
            "coverage": {"enabled": True},
            "fuzzing": {"enabled": False},
            "stateful": {"enabled": False},
        },
        "headers": {"Authorization": f"Bearer {KEY}"},
        "parameters": {"path.name": "docs"},
        "operations": [{"include-name": "DELETE /v1/collections/{name}", "parameters": {"path.name": "doomed"}}],
        "checks": {
            # A schema cannot say how many dims a collection has, which ids exist, or what was written meanwhile.
            "positive_data_acceptance": {"expected-statuses": ["2xx", 404, 409, 412, 422, 428, 504]},
            # A timeout_ms of 1 passes before anything is done.
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504]},
            # It sends requests of its own, over a network that is not there; tests/server/test_doors.py tries every
            # route without a key.
            "ignored_auth": {"enabled": False},
        },
    }
)


@schemathesis.serializer("application/msgpack")
def _to_msgpack(_: schemathesis.SerializationContext, value: object) -> bytes:
    return msgspec.msgpack.encode(value)


@schemathesis.serializer(
    "application/jsonl", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet", "application/x-ndjson"
)
def _to_file(_: schemathesis.SerializationContext, value: object) -> bytes:
    data = getattr(value, "data", value)  # schemathesis wraps bytes in a string
    return data if isinstance(data, bytes) else msgspec.json.encode(data)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    with nestvec.open(tmp_path_factory.mktemp("schema")) as database:
        collection = database.create_collection("docs", dims=4)  # as in the document's examples
        collection.upsert([Record(f"r{i}", row[:4], {"n": i}, f"text {i}") for i, row in enumerate(vectors(20))])
        yield create_app(database, SETTINGS)


@pytest.fixture(scope="module")
def service(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_ready(client)
        yield client


@pytest.fixture(autouse=True)
def _named(request: pytest.FixtureRequest) -> None:
    """Schemathesis 4.32 reads and sets this name of a test, which pytest 9.2 does not keep any more."""
    request.node._nodeid = request.node.nodeid


@pytest.fixture(scope="module")
def document(app: FastAPI) -> BaseSchema:
    return schemathesis.openapi.from_dict(app.openapi(), config=CONFIG)


# From the fixture: thousands of requests are made when the test runs, not whenever tests are collected.
schema = schemathesis.pytest.from_fixture("document")
answered: Counter[tuple[str, int]] = Counter()


@schema.parametrize()
def test_every_answer_is_one_that_the_document_promises(case: schemathesis.Case, service: TestClient) -> None:
    sent = case.as_transport_kwargs(base_url="http://testserver")
    assert not sent.pop("cookies", None)
    if "data" in sent:
        sent["content"] = sent.pop("data")
    response = service.request(**sent)
    answered[case.operation.label, response.status_code] += 1
    # To the document an Arrow stream is any bytes.
    excluded = [CHECKS.get_one("positive_data_acceptance")] if case.media_type == ARROW else []
    case.validate_response(response, excluded_checks=excluded)


def test_every_operation_was_tried_and_every_hot_one_answered_with_success(document: BaseSchema) -> None:
    """The test above would pass as well if nothing ever succeeded."""
    labels = {operation.ok().label for operation in document.get_all_operations()}
    if not answered:
        pytest.skip("the requests above were not sent")
    assert labels == {label for label, _ in answered}
    hot = {label for label in labels if label.startswith("POST /v1/collections/{name}/query") or "/records" in label}
    assert hot <= {label for label, status in answered if status == 200}
