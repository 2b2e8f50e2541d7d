"""A real training on the standard library's documentation: it beats the k-means that it starts from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nestvec
from nestvec.cli.app import app
from nestvec.engine.stdlib_docs import passages
from nestvec.errors import Conflict, InvalidInput

torch = pytest.importorskip("torch")

from nestvec.train.ehi import command  # noqa: E402
from nestvec.train.ehi.command import learn, train_tree  # noqa: E402
from nestvec.train.ehi.config import TreeSettings, Weights  # noqa: E402
from nestvec.train.ehi.examples import split  # noqa: E402
from nestvec.train.ehi.fit import fit  # noqa: E402
from nestvec.train.ehi.start import unit  # noqa: E402
from nestvec.train.ehi.stored import read_stored, titled_pairs  # noqa: E402

ROWS = 3000
SETTINGS = TreeSettings(branches=(128,), mode="frozen", epochs=6, batch=256, threads=1)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nestvec.Database]:
    with nestvec.open(tmp_path_factory.mktemp("tree")) as opened:
        for name in ("plain", "adapted"):
            collection = opened.create_collection(name, encoder="static")
            docs = list(islice(passages(), ROWS))
            titles = [{"title": doc["title"].replace(".", " ").replace("_", " ")} for doc in docs]
            batch = nestvec.Batch(0, [doc["id"] for doc in docs], None, [doc["text"] for doc in docs], titles)
            collection.build([batch], calibrate=False)
        yield opened


def test_a_trained_router_beats_its_start_and_serves(database: nestvec.Database) -> None:
    collection = database.collection("plain")
    report = train_tree(collection, titled_pairs(collection, "title"), SETTINGS)
    scores = [each["score"] for each in report.history]
    assert max(scores) > scores[0] + 0.03  # the first is of k-means
    assert report.exact == report.exact_before
    assert report.balance.max_over_mean <= 2.0
    assert report.generation == collection.info().generation
    plan = nestvec.Plan("ehi", probes=32, shortlist=nestvec.Cut(keep=400))
    hits = collection.search(text="remove a directory tree", k=10, plan=plan)
    exact = collection.search(text="remove a directory tree", k=10, exact=True)
    assert hits.work.codes < ROWS / 2
    assert len({hit.id for hit in hits.hits} & {hit.id for hit in exact.hits}) >= 5


def test_a_guide_gives_a_better_start_than_kmeans() -> None:
    """Where vectors lie together by what nobody asks for: a query has its document's topic and a place of its own."""
    random = np.random.default_rng(0)
    count, topic = 1600, random.integers(16, size=1600)
    places, own = random.standard_normal((12, 24)), 0.5 * random.standard_normal((count, 24))

    def drawn() -> np.ndarray:
        parts = (0.7 * places[random.integers(12, size=count)], 2.0 * np.eye(16)[topic], own)
        return unit(np.concatenate(parts, axis=1).astype(np.float32))

    pairs = np.stack((np.arange(count), np.arange(count)), axis=1)
    examples = split(
        drawn(), drawn(), pairs, np.ones(count, np.float32), unit=True, prefixes=(64,), held_out=0.2, seed=0
    )
    settings = TreeSettings(branches=(16,), mode="frozen", epochs=1, batch=256, threads=1)
    guided, plain = (fit(examples, replace(settings, guide=guide)).history for guide in (60, 0))
    start = {each["phase"]: each["score"] for each in guided if each["epoch"] == 0}
    assert start["guide"] == next(each["score"] for each in plain)  # a guide that changes nothing yet is k-means
    assert start["router"] > start["guide"] + 0.03


def test_an_adapter_makes_exact_search_better(database: nestvec.Database) -> None:
    collection = database.collection("adapted")
    pairs = titled_pairs(collection, "title")
    settings = TreeSettings(branches=(128,), mode="adapter", epochs=3, adapter_epochs=6, batch=256, threads=1)
    report = train_tree(collection, pairs, settings)
    assert report.exact > report.exact_before + 0.02
    assert report.generation is not None
    with pytest.raises(InvalidInput, match="an adapter already"):
        learn(collection, pairs, settings)


def test_a_stopped_training_goes_on_to_the_same_tree(
    database: nestvec.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = database.collection("plain")
    stored = read_stored(collection, titled_pairs(collection, "title"), SETTINGS.rows, 0)
    examples = command.examples_of(collection, stored, SETTINGS)
    whole = fit(examples, SETTINGS)

    def stop(stage: str, done: int, total: int | None) -> None:
        if total is not None and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(examples, SETTINGS, tmp_path, stop)
    resumed = fit(examples, SETTINGS, tmp_path)
    assert set(resumed.arrays) == set(whole.arrays)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], array)
    other = TreeSettings(branches=(64,), mode="frozen", epochs=6, batch=256, threads=1)
    with pytest.raises(InvalidInput, match="other settings"):
        fit(examples, other, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        TreeSettings(branches=(8, 16), mode="joint", epochs=2, batch=256, threads=1, negatives=3, refile=1),
        TreeSettings(
            branches=(128,),
            mode="frozen",
            epochs=2,
            batch=256,
            threads=1,
            weights=Weights(path=0.0, hinge=1.0, intra=0.2),
        ),
        TreeSettings(branches=(128,), mode="frozen", epochs=2, batch=256, threads=1, features=64, leaves_per_row=2),
    ],
    ids=["joint, two levels, mined", "the paper's terms", "features, two leaves"],
)
def test_every_way_of_training_learns(database: nestvec.Database, settings: TreeSettings) -> None:
    collection = database.collection("plain")
    stored = read_stored(collection, titled_pairs(collection, "title"), settings.rows, 0)
    fitted = fit(command.examples_of(collection, stored, settings), settings)
    assert fitted.history[-1]["score"] > fitted.history[0]["score"]


def test_levels_are_learned_one_after_the_other_and_measured_through_the_beam(database: nestvec.Database) -> None:
    collection = database.collection("plain")
    stored = read_stored(collection, titled_pairs(collection, "title"), SETTINGS.rows, 0)
    settings = TreeSettings((8, 16), "frozen", epochs=2, batch=256, guide=10, refile=1, threads=1)
    examples = command.examples_of(collection, stored, settings)
    wide, narrow = (fit(examples, replace(settings, beam=beam)) for beam in (8, 1))
    phases = list(dict.fromkeys(each["phase"] for each in wide.history))
    assert phases == ["guide", "router", "router, unguided", "parents, level 2", "router, level 2"]
    assert wide.arrays["head1.weights"].shape[0] == 128
    assert wide.curve.recall[-1] == pytest.approx(1)  # every node is kept
    assert narrow.curve.recall[-1] < 0.9  # one of eight


def test_a_collapsed_tree_is_not_published(database: nestvec.Database) -> None:
    collection = database.collection("plain")
    before = collection.info().generation
    with pytest.raises(Conflict, match="not published"):
        train_tree(collection, titled_pairs(collection, "title"), SETTINGS, max_imbalance=1.0)
    assert collection.info().generation == before


def test_the_command(database: nestvec.Database, tmp_path: Path) -> None:
    collection = database.collection("plain")
    pairs = tmp_path / "pairs.jsonl"
    records = collection.scroll(limit=1000).records
    lines = [{"query": (each.payload or {})["title"], "document": each.id} for each in records]
    pairs.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    arguments = ["train", "ehi", "-c", "plain", "--db", str(database.path)]
    runner = CliRunner()
    asked = runner.invoke(app, arguments)
    assert isinstance(asked.exception, InvalidInput)
    assert "--titles title" in str(asked.exception)
    assert "nestvec train encoder generate" in str(asked.exception)
    more = ["--pairs", str(pairs), "--branches", "16", "--epochs", "2", "--mode", "frozen", "--threads", "1"]
    done = runner.invoke(app, [*arguments, *more, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["pairs"] + report["held"] >= 900
    assert report["generation"] == collection.info().generation
    said = runner.invoke(app, [*arguments, *more, "--dry-run"], catch_exceptions=False).stdout
    assert "not published" in said
    assert "largest leaf" in said


def test_a_build_keeps_the_better_route(tmp_path: Path) -> None:
    docs = list(islice(passages(), ROWS))
    source, pairs = tmp_path / "docs.jsonl", tmp_path / "pairs.tsv"
    source.write_text("\n".join(json.dumps({"id": doc["id"], "text": doc["text"]}) for doc in docs), "utf-8")
    pairs.write_text("\n".join(f"{doc['title'].replace('.', ' ')}\t{doc['id']}" for doc in docs), "utf-8")
    arguments = ["build", str(source), "-c", "docs", "--db", str(tmp_path / "db"), "--route", "auto", "--no-calibrate"]
    runner = CliRunner()
    assert "needs --pairs" in str(runner.invoke(app, arguments).exception)
    done = runner.invoke(app, [*arguments, "--pairs", str(pairs), "--json"], catch_exceptions=False)
    choice = json.loads(done.stdout)["choice"]
    assert choice["route"] == ("ehi" if choice["ehi"] > choice["soar"] else "soar")
    with nestvec.open(tmp_path / "db") as database:
        plan = database.collection("docs").search(text="sort a list", k=5).plan
        assert plan.route in (choice["route"], "exact")
