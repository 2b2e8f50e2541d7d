"""F1, F2: kill -9 of a writer, at random moments and at every named crash point, and nothing acknowledged is lost."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from faultlib import SEED, ClientLog, Model, amount, check_tidy, match, record_of
from writers import crash, ingest, start

import nestvec
from nestvec.engine.database import Database

ROUNDS = amount(4, 60)
KILLS_A_ROUND = 5
TIMES = amount(1, 6)


@pytest.mark.timeout(3000)
def test_kills_at_random_moments_of_ingest_lose_nothing(tmp_path: Path) -> None:
    rng, model, kills = np.random.default_rng(SEED), Model(), 0
    for number in range(ROUNDS):
        path = tmp_path / f"db{number}"
        model = {}
        with nestvec.open(path) as database:
            database.create_collection("c", dims=8, metric="dot", bm25=True)
        for kill in range(KILLS_A_ROUND):
            seed = SEED * 1000 + number * KILLS_A_ROUND + kill
            log = tmp_path / f"log{seed}"
            process = start(ingest, path, log, seed)
            until(log.exists, 60)
            time.sleep(rng.exponential(0.08))
            process.kill()
            process.join()
            assert process.exitcode == -9
            with nestvec.open(path) as database:
                model = match(database.collection("c"), ClientLog(log).outcomes(model))
                if kill == KILLS_A_ROUND - 1:
                    assert all(report.ok for report in database.verify()), (seed, database.verify())
            check_tidy(path)
            kills += 1
        shutil.rmtree(path)
    print(f"F1: {kills} kills, seed {SEED}")


def until(done: object, seconds: float) -> None:
    """Wait for something that becomes true."""
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.002)


VERBS = {  # crash point, or the word that it begins with -> the verbs that pass it
    "upsert": ["upsert"],
    "erase": ["erase"],
    "segment": ["seal", "build", "compact"],
    "segment-vectors-written": ["seal", "compact"],
    "generation": ["seal", "build", "compact"],
    "postings": ["seal", "build", "compact"],
    "seal": ["seal"],
    "compact": ["compact"],
    "build": ["build"],
    "snapshot": ["snapshot"],
    "restore": ["restore"],
    "create": ["create"],
    "delete": ["delete"],
}


def crash_points() -> list[str]:
    """Every point that the engine's source names."""
    source = Path(nestvec.__file__).parent / "engine"
    return sorted(
        {
            point
            for file in source.rglob("*.py")
            for point in re.findall(r'crash_point\("([a-z-]+)"\)', file.read_text())
        }
    )


CASES = [
    (point, verb)
    for point in crash_points()
    for verb in VERBS.get(point, VERBS.get(point.partition("-")[0], ["no verb passes it"]))
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Model]]:
    """Databases to copy: `grown` has nothing sealed, `sealed` a generation and dead rows, `empty` no row."""
    made = {}
    for kind in ("empty", "grown", "sealed"):
        path, model = tmp_path_factory.mktemp("prepared") / kind, {}
        with nestvec.open(path) as database:
            fill(database, kind, model)
        made[kind] = path, model
    return made


def fill(database: Database, kind: str, model: Model) -> None:
    collection = database.create_collection("c", dims=8, metric="dot", bm25=True)
    database.create_collection("doomed", dims=2)
    if kind == "empty":
        return
    for start_ in range(0, 1200, 400):
        records = [record_of(f"r{i}", 10_000 + i) for i in range(start_, start_ + 400)]
        collection.upsert(records)
        model |= {record.id: (record.payload or {})["version"] for record in records}
        if kind == "sealed" and start_ < 800:
            collection.seal()
    collection.delete([f"r{i}" for i in range(40, 60)])
    for i in range(40, 60):
        del model[f"r{i}"]
    database.snapshot("c")


@pytest.mark.parametrize(("point", "verb"), CASES)
def test_a_kill_at_a_crash_point_leaves_old_or_new(
    point: str, verb: str, prepared: dict[str, tuple[Path, Model]], tmp_path: Path
) -> None:
    for number in range(TIMES):
        kind = "sealed" if verb == "compact" else ("grown", "sealed")[number % 2]
        if verb == "build" and (point.startswith("generation") or "rotated" in point):
            kind = "empty"
        if point.startswith("generation") and verb == "seal":
            kind = "grown"
        source, model = prepared[kind]
        path, log = tmp_path / f"db{number}", tmp_path / f"log{number}"
        shutil.copytree(source, path)
        process = start(crash, path, log, verb, point, SEED * 10_000 + number * 17 + 20_000)
        process.join(120)
        assert process.exitcode == -9
        before = {file.name for file in path.glob("snapshots/*.nvs")}
        with nestvec.open(path, create=False) as database:
            match(database.collection("c"), ClientLog(log).outcomes(model))
            assert all(report.ok for report in database.verify())
            assert {f"{one.name}.nvs" for one in database.snapshots() if one.damage is None} == before
            assert {one.name for one in database.collections()} - {"c", "doomed", "other", "made"} == set()
            if "other" in {one.name for one in database.collections()}:
                match(database.collection("other"), [model])
            database.collection("c").upsert([record_of("r1", 77)])
            database.collection("c").seal()
            assert database.collection("c").get(["r1"])[0].payload == {"version": 77, "third": 2}
        check_tidy(path)
