"""What the fault suites share: requests whose outcome can be told, a model of them, and the oracle.

A client writes each request to a log before it sends it and another line after it was acknowledged. Whatever happened
to the store, it must hold every acknowledged request, and the last one, if it was not acknowledged, wholly or not at
all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nestvec
from nestvec import Record

LONG = os.environ.get("NESTVEC_FAULTS") == "long"
SEED = int(os.environ.get("NESTVEC_SEED", "1"))
DIMS = 8

Request = list[tuple[str, int]]
"""(id, version) of each record; version 0 deletes the id."""
Model = dict[str, int]
"""id -> version, in the order of writing."""


def amount(short: int, long: int) -> int:
    """How much of a suite is run: a slice, or all of it."""
    return long if LONG else short


@lru_cache(maxsize=1 << 17)
def patience(seconds: float) -> float:
    """So many seconds on a machine of our own; more of them where others use it too."""
    return seconds * max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1))


def vector_of(id: str, version: int) -> NDArray[np.float32]:
    """The vector of one version of a record: small whole numbers, so that scores are exact."""
    seed = int.from_bytes(f"{id}/{version}".encode(), "little")
    vector = np.random.default_rng(seed).integers(-8, 9, DIMS).astype(np.float32)
    vector.flags.writeable = False
    return vector


def payload_of(version: int) -> dict[str, Any]:
    """Its payload."""
    return {"version": version, "third": version % 3}


def record_of(id: str, version: int) -> Record:
    """The record itself."""
    return Record(id, vector_of(id, version), payload_of(version), f"text of {id} {version}")


def apply(model: Model, request: Request) -> Model:
    """The model after a request."""
    after = dict(model)
    for id, version in request:
        after.pop(id, None)
        if version:
            after[id] = version
    return after


def send(collection: nestvec.Collection, request: Request) -> None:
    """Carry a request out: it only writes, or only deletes."""
    if request[0][1]:
        collection.upsert([record_of(id, version) for id, version in request])
    else:
        collection.delete([id for id, _ in request])


class ClientLog:
    """The log of one client: whoever is killed leaves what was sent and what was acknowledged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sent(self, request: Request) -> None:
        self._append(json.dumps(request))

    def acknowledged(self) -> None:
        self._append("acknowledged")

    def _append(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")

    def outcomes(self, model: Model) -> list[Model]:
        """The models that the log allows, from `model` on: one, or two where the last request has no answer."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for place, line in enumerate(lines):
            if line == "acknowledged":
                continue
            after = apply(model, [(id, version) for id, version in json.loads(line)])
            if place + 1 == len(lines):
                return [model, after]
            model = after if lines[place + 1] == "acknowledged" else model
        return [model]


def random_request(rng: np.random.Generator, version: int, ids: int = 80) -> Request:
    """An upsert of 1 to 20 records, or one time in four a delete of up to 8."""
    chosen = rng.permutation(ids)
    if rng.random() < 0.25:
        return [(f"r{i}", 0) for i in chosen[: rng.integers(1, 9)]]
    return [(f"r{i}", version + place) for place, i in enumerate(chosen[: rng.integers(1, 21)])]


def stored(collection: nestvec.Collection, filter: dict[str, Any] | None = None) -> list[Record]:
    """All records, page by page."""
    page = collection.scroll(limit=1000, with_vector=True, filter=filter)
    records = list(page)
    while page.cursor is not None:
        page = collection.scroll(limit=1000, with_vector=True, filter=filter, cursor=page.cursor)
        records += page
    return records


def match(collection: nestvec.Collection, allowed: Sequence[Model]) -> Model:
    """The one of the allowed models that the collection holds, in every way that it can be asked."""
    records = stored(collection)
    found = {record.id: (record.payload or {})["version"] for record in records}
    assert found in allowed, explain(found, allowed)
    model = next(model for model in allowed if model == found)
    check(collection, model, records)
    return model


def explain(found: Model, allowed: Sequence[Model]) -> str:
    """What is lost, what came back."""
    differences = [
        f"lost {sorted(set(model.items()) - set(found.items()))[:5]}, not written or deleted "
        f"{sorted(set(found.items()) - set(model.items()))[:5]}"
        for model in allowed
    ]
    return " | ".join(differences)


def check(collection: nestvec.Collection, model: Model, records: Iterable[Record] | None = None) -> None:
    """The collection holds exactly the model: get, scroll, count, filters and search agree."""
    same_records(list(stored(collection) if records is None else records), model)
    assert collection.count() == len(model)
    assert {record.id for record in collection.get(list(model))} == set(model)
    absent = [f"r{i}" for i in range(80) if f"r{i}" not in model]
    assert collection.get(absent) == []
    for third in range(3):
        filter = {"field": "third", "eq": third}
        wanted = {id for id, version in model.items() if version % 3 == third}
        assert collection.count(filter=filter) == len(wanted)
        assert {record.id for record in stored(collection, filter)} == wanted
    check_search(collection, model)


def same_records(records: Sequence[Record], model: Model) -> None:
    """The records' content is that of the model's version of them."""
    for record in records:
        version = model[record.id]
        assert record.payload == payload_of(version)
        assert record.text == f"text of {record.id} {version}"
        assert record.vector is not None
    if records:
        wanted = np.stack([vector_of(record.id, model[record.id]) for record in records])
        held = np.stack([record.vector for record in records if record.vector is not None])
        np.testing.assert_allclose(held, wanted, atol=1e-4)


def check_search(collection: nestvec.Collection, model: Model) -> None:
    """Exact search is brute force, and any search finds min(k, count) records that are alive."""
    query = np.random.default_rng(len(model)).integers(-8, 9, DIMS).astype(np.float32)
    vectors = np.stack([vector_of(id, version) for id, version in model.items()]) if model else np.empty((0, DIMS))
    scores = dict(zip(model, (vectors @ query).tolist(), strict=True))
    best = sorted(scores.values(), reverse=True)[:50]
    exact = collection.search(query, k=50, exact=True)
    np.testing.assert_allclose([hit.score for hit in exact], best, atol=1e-2)
    for hits in (exact, collection.search(query, k=50)):
        assert len({hit.id for hit in hits}) == min(50, len(model))
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.id] for hit in hits], atol=1e-2)


def check_tidy(path: Path) -> None:
    """Nothing temporary outlived the opening, and no directory that no catalog lists."""
    assert not list(path.rglob("tmp-*"))
    for home in (path / "collections").iterdir():
        if home.name.isdigit():
            known = listed(home)
            for kind in ("segments", "generations", "postings"):
                assert {entry.name for entry in (home / kind).iterdir()} <= known[kind], kind


def listed(home: Path) -> dict[str, set[str]]:
    """Names of the directories that a collection's catalog lists."""
    import apsw

    connection = apsw.Connection(str(home / "catalog.sqlite"))
    try:
        rows = {
            "segments": connection.execute("SELECT segment FROM segment"),
            "generations": connection.execute("SELECT generation FROM generation"),
            "postings": connection.execute("SELECT generation || '-' || segment FROM postings"),
        }
        return {kind: {str(row[0]) for row in found} for kind, found in rows.items()}
    finally:
        connection.close()
