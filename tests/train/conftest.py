"""What the tests of training share: an LLM to talk to, and texts."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from llm_stand_in import StandIn

from nestvec.engine.encoders import openai_http
from nestvec.train.encoder.sources import read_source
from nestvec.train.encoder.tables import Passage


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("NESTVEC_OPENAI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai_http, "_FIRST_PAUSE", 0.01)
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def stdlib() -> list[Passage]:
    return list(read_source(["stdlib"]))


@pytest.fixture(scope="session")
def few(stdlib: list[Passage]) -> list[Passage]:
    """The documentation of a few modules."""
    return [each for each in stdlib if each.title.partition(".")[0] in ("zipfile", "json", "shutil")]
