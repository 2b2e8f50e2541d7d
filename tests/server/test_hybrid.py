"""Search by words, and by both, over HTTP: the same words and the same answers as in process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx
import pytest
from fastapi import FastAPI

import nestvec
from nestvec import Fusion, Record
from nestvec.engine.database import Database
from nestvec.errors import InvalidInput
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

TEXTS = ("a red fox", "a lazy dog", "the fox and the dog", "blue whales", "one more line", "and another line")


def test_words_are_searched_over_http_as_in_process(
    database: Database, settings: Settings, served: Callable[[FastAPI], AbstractContextManager[str]]
) -> None:
    with served(create_app(database, settings)) as url, nestvec.Client(url) as client:
        remote = client.create_collection("words", encoder="static", bm25_fields=["title"])
        remote.upsert([Record(str(i), None, {"title": f"title{i}", "n": i}, text) for i, text in enumerate(TEXTS)])
        local = database.collection("words")
        assert local.config.bm25_fields == ("title",)
        for options in (
            {"rank": "bm25"},
            {"rank": "bm25", "filter": {"field": "n", "eq": 2}},
            {"rank": "hybrid"},
            {"rank": "hybrid", "fusion": Fusion("rrf", weight=0.25, depth=3)},
        ):
            for text in ("fox", "whale or title4", '"fox" AND ('):
                there, here = remote.search(text=text, **options), local.search(text=text, **options)
                assert [(hit.id, hit.score) for hit in there] == [(hit.id, hit.score) for hit in here]
                assert there.plan == here.plan
        vector = local.get(["3"], with_vector=True)[0].vector
        assert vector is not None
        assert remote.search(vector, text="zzz", rank="hybrid", k=1)[0].id == "3"
        with pytest.raises(InvalidInput, match="bm25=True"):
            client.collection("docs").search(text="fox", rank="bm25")
        reply = httpx.get(f"{url}/v1/collections/words").json()
        assert (reply["config"]["bm25"], reply["config"]["bm25_fields"]) == (True, ["title"])
        body = {"text": "fox", "rank": "bm25", "k": 1}
        assert httpx.post(f"{url}/v1/collections/words/query", json=body).json()["plan"] is None


@pytest.mark.parametrize("body", [{"bm25_fields": ["a b"]}, {"bm25_fields": ["a", "a"]}, {"bm25": 1}])
def test_bad_choices_are_refused(
    database: Database,
    settings: Settings,
    served: Callable[[FastAPI], AbstractContextManager[str]],
    body: dict[str, object],
) -> None:
    with served(create_app(database, settings)) as url:
        reply = httpx.put(f"{url}/v1/collections/bad", json={"dims": 2, **body})
        assert reply.status_code == 422
        assert "bm25" in reply.text
