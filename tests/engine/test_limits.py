"""What a collection accepts, at the bound and one past it; plans and configurations survive JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec import Batch, Cut, Plan, Record, Stage
from nestvec.engine.schema import CollectionConfig, check_id, check_name, check_payload
from nestvec.errors import InvalidInput, InvalidRecord


@pytest.mark.parametrize("id", ["a", "é" * 128, "日本", "a b/c", "x" * 256, "\U0001f600" * 64])
def test_ids_up_to_256_bytes_of_unicode_round_trip(tmp_path: Path, id: str) -> None:
    assert check_id(id) == id
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2)
        collection.upsert([Record(id, vector=np.array([1.0, 2.0]))])
        assert collection.search([1.0, 2.0], k=1).hits[0].id == id
        assert [record.id for record in collection.get([id])] == [id]


@pytest.mark.parametrize("id", ["", "x" * 257, "é" * 129, "a\x00b", "line\nbreak", "\ud800"])
def test_other_ids_are_refused(id: str) -> None:
    with pytest.raises(InvalidInput):
        check_id(id)


def test_composed_and_decomposed_ids_are_two_records(tmp_path: Path) -> None:
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", dims=2)
        collection.upsert([Record("\u00e9", vector=np.ones(2)), Record("e\u0301", vector=np.ones(2))])
        assert collection.count() == 2


def test_payloads_end_at_64_kib() -> None:
    room = 65536 - len(json.dumps({"t": ""}, separators=(",", ":")))
    assert check_payload({"t": "x" * (room - 16)})
    for payload in ({"t": "x" * 65536}, {"t": float("nan")}, {"t": {1, 2}}):
        with pytest.raises(InvalidInput):
            check_payload(payload)


@pytest.mark.parametrize("name", ["a", "a-b_c", "0" * 63])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("dims", [0, 4097])
def test_dims_end_at_4096(dims: int) -> None:
    with pytest.raises(InvalidInput, match=str(dims)):
        CollectionConfig(dims, "dot")
    CollectionConfig(1, "dot")
    CollectionConfig(4096, "l2")


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan("soar", 7, (Stage(64, 100), Stage(128, 20)), "cosine"),
        Plan("soar", 7, (Stage(64, 90, 0.5, "int8"), Stage(32, 20, 0, "stored")), probe_margin=0.35),
        Plan("soar", 7, shortlist=Cut(400, 0.12)),
        Plan("soar", 7, (Stage(64, 100),), shortlist=Cut(400)),
    ],
)
def test_plans_survive_json_without_infinities(plan: Plan) -> None:
    text = json.dumps(plan.to_json(), allow_nan=False)
    assert Plan.from_json(json.loads(text)) == plan


def test_configurations_survive_json() -> None:
    config = CollectionConfig(256, "cosine", (64, 256), "float16")
    assert CollectionConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


_STAGE = {"dims": 2, "keep": 5}


@pytest.mark.parametrize(
    "plan",
    [
        {"route": "warp"},
        {"route": "soar", "probes": 0, "stages": [{"dims": 1, "keep": 1}]},
        {"route": "soar", "probes": 1, "stages": []},
        {"route": "soar", "probes": 1, "stages": [_STAGE, _STAGE]},
        {"route": "soar", "probes": True, "stages": [_STAGE]},
        {"route": "exact", "nprobe": 3},
        {"route": "soar", "probes": 1, "stages": [{"dims": 2}]},
        {"route": "soar", "probes": 1, "stages": [_STAGE | {"keeps": 3}]},
        {"route": "soar", "probes": 1, "stages": [_STAGE | {"margin": -1}]},
        {"route": "soar", "probes": 1, "stages": [_STAGE | {"margin": "1"}]},
        {"route": "soar", "probes": 1, "stages": [_STAGE | {"rows": "float8"}]},
        {"route": "soar", "probes": 1, "stages": [_STAGE, {"dims": 64, "keep": 4, "rows": "int8"}]},
        {"route": "soar", "probes": 1, "stages": [_STAGE], "probe_margin": float("nan")},
        {"route": "soar", "probes": 1, "stages": [_STAGE], "shortlist": {"keep": 4}},
        {"route": "soar", "probes": 1, "stages": [_STAGE], "shortlist": {"margin": 4}},
        {"route": "soar", "probes": 1, "stages": [_STAGE], "shortlist": 4},
        {"route": "soar", "probes": 1, "stages": 5},
    ],
)
def test_plans_that_make_no_sense_are_refused(plan: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Plan.from_json(plan)


def test_a_row_that_could_not_be_read_stops_the_build_or_goes_to_the_rejects(tmp_path: Path) -> None:
    batch = Batch(10, ids=["a", "b", "c", "d"], texts=["tea", "", "coffee", "milk"], bad={3: "text: expected a string"})
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder="static")
        with pytest.raises(InvalidRecord, match=r"row 11 \(id 'b'\): the text is empty"):
            collection.build([batch])
        assert collection.count() == 0
        report = collection.build([batch], rejects=tmp_path / "bad.jsonl")
        assert (report.rows, report.rejected) == (2, 2)
        rejects = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        assert [(line["row"], line["id"]) for line in rejects] == [(11, "b"), (13, "d")]
        assert rejects[1]["reason"] == "text: expected a string"
        assert {hit.id for hit in collection.search(text="hot tea", k=10).hits} == {"a", "c"}
