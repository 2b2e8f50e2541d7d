"""What calibration promises is true: its truth, its replays, and the recall of the plans chosen from it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import nestvec
from nestvec import Batch, Collection, InvalidInput
from nestvec.engine.calibration.points import Calibration, Frontier, OperatingPoint
from nestvec.engine.calibration.queries import MOST, wanted
from nestvec.engine.calibration.trial import CostModel, Outcome, Recordings, Trial, nested_filters
from nestvec.engine.calibration.truth import find_truth
from nestvec.engine.explain import neighbours
from nestvec.engine.plan import Plan
from nestvec.engine.planner import Goal, Scope, choose
from nestvec.index.funnel import Cut, Stage
from nestvec.index.metric import Metric
from nestvec.index.scan import exact_search_batch

F32 = NDArray[np.float32]
DIMS = 32


def clustered(rows: int, seed: int) -> F32:
    """Vectors around common centres, with most of their energy in front, as nested embeddings have it."""
    centres = np.random.default_rng(99).normal(size=(60, DIMS))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 60, rows)] + 0.7 * rng.normal(size=(rows, DIMS))
    return (vectors * np.linspace(1, 0.2, DIMS)).astype(np.float32)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_one_pass_knows_the_kth_score_behind_each_of_nested_filters(metric: Metric) -> None:
    vectors, queries = clustered(9000, 1), clustered(40, 2)
    allowed = np.random.default_rng(3).random(9000) < 0.9
    parts = [vectors[:4000].astype(np.float16), vectors[4000:].astype(np.float16)]
    levels = nested_filters(allowed, [1.0, 0.3, 0.1])
    assert ((levels > 0) == allowed).all()
    depths = np.array([[500] * 10 + [10] * 30, [20] * 40, [5] * 20 + [50] * 20])
    truths = find_truth(parts, levels, queries, depths, metric, lambda rows: None)
    every = np.concatenate(parts)
    for number, (truth, depth) in enumerate(zip(truths, depths, strict=True)):
        for k in np.unique(depth).tolist():
            found = exact_search_batch(every, queries, k, metric=metric, allowed=levels > number)
            expected = np.array([scores[-1] for _, scores in found])[depth >= k]
            np.testing.assert_allclose(truth.kth(k)[depth >= k], expected, rtol=1e-4, atol=1e-4)
        assert (levels[truth.rows] > number).all()


def test_truth_that_is_too_short_understates_recall() -> None:
    vectors, queries = clustered(5000, 1), clustered(10, 2)
    depths = np.full((1, 10), 20)
    (truth,) = find_truth([vectors], np.ones(5000, np.uint8), queries, depths, "dot", lambda rows: None)
    (_, scores) = exact_search_batch(vectors, queries[:1], 4000, metric="dot")[0]
    assert truth.kth(4000)[0] > scores[-1]


def a_plan(margin: float) -> Plan:
    return Plan("soar", 64, (Stage(DIMS, 100, margin),), probe_margin=margin, shortlist=Cut(1000, margin))


def a_calibration() -> Calibration:
    """Frontiers whose floors are known: recall .9, .95, .99 at margins .1, .2, .3 for k = 10, wider for k = 100."""

    def points(widened: float) -> tuple[OperatingPoint, ...]:
        return tuple(
            OperatingPoint(a_plan(margin + widened), floor + 0.005, floor, 1000 * margin, 5000 * margin, 10)
            for margin, floor in ((0.3, 0.99), (0.2, 0.95), (0.1, 0.9))
        )

    frontiers = (
        Frontier(10, 1.0, 700, points(0)),
        Frontier(10, 0.1, 700, points(0.05)),
        Frontier(100, 1.0, 700, points(0.2)),
    )
    return Calibration("2026-01-01T00:00:00+00:00", 1, 100_000, "queries", 0.05, 0.2, 1.0, frontiers)


def test_the_planner_takes_the_cheapest_plan_that_is_sure() -> None:
    calibration = a_calibration()
    scope = Scope(10, 100_000, 100_000, 128)
    assert choose(calibration, Goal(recall=0.9), scope).plan == a_plan(0.1)
    chosen = choose(calibration, Goal(recall=0.91), scope)
    assert chosen.plan == a_plan(0.2)
    assert (chosen.estimate, chosen.target) == (0.955, 0.91)
    assert choose(calibration, Goal(), scope).plan == a_plan(0.2)
    beyond = choose(calibration, Goal(recall=0.995), scope)
    assert beyond.plan.route == "exact"
    assert "0.995" in beyond.reason


def test_a_lucky_point_below_an_unsure_one_is_not_taken() -> None:
    """Fixed-sequence testing: the walk ends at the first point whose floor misses."""
    calibration = a_calibration()
    points = calibration.frontiers[0].points
    lucky = replace(points[2], floor=0.999)
    frontier = replace(calibration.frontiers[0], points=(points[0], points[1], lucky))
    calibration = replace(calibration, frontiers=(frontier,))
    assert choose(calibration, Goal(recall=0.96), Scope(10, 100_000, 100_000, 128)).plan == a_plan(0.3)


def test_between_measured_ks_and_selectivities_the_careful_side_is_taken() -> None:
    calibration = a_calibration()
    chosen = choose(calibration, Goal(recall=0.95), Scope(30, 100_000, 100_000, 128))
    assert chosen.plan == a_plan(0.2 + 0.2)
    assert chosen.basis is not None
    assert chosen.basis.ks == (10, 100)
    filtered = choose(calibration, Goal(recall=0.95), Scope(10, 40_000, 100_000, 128))
    assert filtered.plan == a_plan(0.2 + 0.05)
    assert choose(calibration, Goal(recall=0.95), Scope(10, 9_900, 100_000, 128)).plan == a_plan(0.2 + 0.05)
    assert choose(calibration, Goal(recall=0.95), Scope(10, 500, 100_000, 128)).plan.route == "exact"


def test_few_matching_rows_are_scanned_where_that_is_cheaper() -> None:
    calibration = replace(a_calibration(), exact_micros=0.001)
    chosen = choose(calibration, Goal(recall=0.95), Scope(10, 100_000, 100_000, 128))
    assert (chosen.plan.route, chosen.estimate) == ("exact", 1.0)


def test_a_budget_buys_the_most_careful_plan_within_it() -> None:
    calibration, scope = a_calibration(), Scope(10, 100_000, 100_000, 128)
    assert choose(calibration, Goal(budget_ms=0.25), scope).plan == a_plan(0.2)
    assert choose(calibration, Goal(budget_bytes=1600), scope).plan == a_plan(0.3)
    poor = choose(calibration, Goal(budget_ms=0.01), scope)
    assert poor.plan == a_plan(0.1)
    assert "no plan keeps within" in poor.reason


def test_a_budget_that_pays_for_the_exact_scan_buys_it() -> None:
    calibration, scope = a_calibration(), Scope(10, 100_000, 100_000, 128)
    chosen = choose(calibration, Goal(budget_ms=20), scope)
    assert (chosen.plan.route, chosen.estimate, chosen.target) == ("exact", 1.0, None)
    assert choose(calibration, Goal(budget_ms=19), scope).plan == a_plan(0.3)


def test_the_cheapest_of_the_sure_points_is_taken_and_its_neighbours_are_told() -> None:
    calibration = a_calibration()
    points = calibration.frontiers[0].points
    dear = replace(points[1], micros=400.0)
    frontier = replace(calibration.frontiers[0], points=(points[0], dear, points[2]))
    calibration = replace(calibration, frontiers=(frontier,))
    scope = Scope(10, 100_000, 100_000, 128)
    chosen = choose(calibration, Goal(recall=0.94), scope)
    assert (chosen.plan, chosen.at, chosen.k) == (a_plan(0.3), 0, 10)
    assert neighbours(chosen) == (None, dear)
    beyond = choose(calibration, Goal(recall=0.995), scope)
    assert (beyond.at, neighbours(beyond)) == (None, (None, points[0]))


def test_between_measured_ks_the_dearer_side_tells_the_neighbours() -> None:
    calibration = a_calibration()
    chosen = choose(calibration, Goal(recall=0.95), Scope(30, 100_000, 100_000, 128))
    wide = calibration.frontiers[2].points
    assert neighbours(chosen) in {(wide[0], wide[2]), tuple(calibration.frontiers[0].points[::2])}
    assert chosen.at is not None
    assert chosen.considered[chosen.at].micros == chosen.micros


@pytest.mark.parametrize(("rows", "stale"), [(149_000, False), (151_000, True), (67_000, False), (66_000, True)])
def test_a_collection_that_outgrew_its_calibration_says_so(rows: int, stale: bool) -> None:
    chosen = choose(a_calibration(), Goal(recall=0.9), Scope(10, rows, rows, 128))
    assert (chosen.stale is not None) is stale
    assert not stale or f"{rows:,} now" in str(chosen.stale)


@pytest.mark.parametrize(
    "goal",
    [{"recall": 0}, {"recall": 1.1}, {"recall": True}, {"budget_ms": 0}, {"recall": 0.9, "budget_ms": 1}],
)
def test_goals_that_mean_nothing_are_refused(goal: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Goal(**goal)


def test_a_calibration_survives_its_json() -> None:
    calibration = a_calibration()
    assert Calibration.from_json(calibration.to_json()) == calibration
    with pytest.raises(InvalidInput, match="version"):
        Calibration.from_json({**calibration.to_json(), "version": 99})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    path = tmp_path_factory.mktemp("calibrated")
    collection = nestvec.open(path / "db").create_collection("c", dims=DIMS, metric="dot", granularities=(8, DIMS))
    payloads = [{"r": i % 10} for i in range(20_000)]
    collection.build([Batch(0, vectors=clustered(20_000, 1), payloads=payloads)], rotate="none", calibrate=False)
    return collection


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 6,000 vectors, calibrated by its build; to be copied."""
    path = tmp_path_factory.mktemp("stored") / "db"
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=DIMS, metric="dot", granularities=(8, DIMS))
        collection.build([Batch(0, vectors=clustered(6000, 1))], rotate="none")
    return path


@pytest.fixture
def path(stored: Path, tmp_path: Path) -> Path:
    """One's own copy of it."""
    return shutil.copytree(stored, tmp_path / "db")


def recall_of(collection: Collection, queries: F32, **asked: object) -> tuple[float, str, float | None]:
    found = collection.search_batch(queries, with_payload=False, **asked)  # type: ignore[arg-type]
    asked = {key: value for key, value in asked.items() if key != "recall"}
    truth = collection.search_batch(queries, exact=True, with_payload=False, **asked)  # type: ignore[arg-type]
    shares = [
        sum(hit.score >= true[-1].score for hit in hits) / len(true) for hits, true in zip(found, truth, strict=True)
    ]
    choice = found[0].choice
    assert choice is not None
    return float(np.mean(shares)), choice.plan.route, choice.estimate


def test_the_promised_recall_is_true_of_queries_that_calibration_never_saw(built: Collection) -> None:
    made = built.calibrate(clustered(800, 5))
    assert made is not None
    assert built.calibration() == made
    assert {each.k for each in made.frontiers} >= {1, 10, 100}
    fresh, approximate = clustered(500, 6), 0
    for k in (1, 10, 100):
        for target in (0.8, 0.9, 0.95):
            for filter in (None, {"field": "r", "range": {"lt": 3}}):
                recall, route, estimate = recall_of(built, fresh, k=k, recall=target, filter=filter)
                assert recall >= target - 0.005, (k, target, filter)
                assert estimate is not None
                assert estimate >= target
                approximate += route == "soar"
    assert approximate >= 6


def test_what_calibration_replays_is_what_searches_would_find(
    built: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, same = Trial.replay, []

    def compared(trial: Trial, recordings: Recordings, plans: list[Plan], cost: CostModel) -> list[Outcome]:
        together = replay(trial, recordings, plans, cost)
        for replayed, searched in zip(together, trial.search(plans, cost), strict=True):
            assert replayed.recalls.mean() <= searched.recalls.mean()  # a clipped retry finds less, never more
            same.append(np.array_equal(replayed.recalls, searched.recalls) and replayed.bytes == searched.bytes)
        return together

    monkeypatch.setattr(Trial, "replay", compared)
    built.calibrate(clustered(300, 5))
    assert len(same) > 200
    assert np.mean(same) > 0.9


def test_calibration_outlives_a_restart_and_is_its_generations_own(path: Path) -> None:
    collection = nestvec.open(path).collection("c")
    made = collection.calibrate(clustered(400, 5))
    assert made is not None
    assert nestvec.open(path).collection("c").calibration() == made
    collection.compact(retrain=True)
    now = collection.calibration()
    assert now is None or now.generation != made.generation


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_without_queries_held_out_documents_stand_for_them(tmp_path: Path, metric: Metric) -> None:
    collection = nestvec.open(tmp_path / "db").create_collection("c", dims=DIMS, metric=metric, granularities=(8, DIMS))
    collection.build([Batch(0, vectors=clustered(6000, 1))], rotate="none", calibrate=False)
    made = collection.calibrate()
    assert made is not None
    assert made.source == "documents"
    recall, _, _ = recall_of(collection, clustered(500, 6), k=10, recall=0.9)
    assert recall >= 0.88  # the kind of queries differs a little: nothing is promised


def test_where_no_plan_could_be_cheaper_none_is_measured(tmp_path: Path) -> None:
    collection = nestvec.open(tmp_path / "db").create_collection("c", dims=DIMS, metric="dot", granularities=(8, DIMS))
    collection.build([Batch(0, vectors=clustered(2500, 1))], rotate="none")
    made = collection.calibration()
    assert made is not None
    assert made.frontiers == ()
    choice = collection.search(clustered(1, 2)[0], k=10, recall=0.9).choice
    assert choice is not None
    assert choice.plan.route == "exact"


def test_small_collections_take_more_given_queries_than_large_ones() -> None:
    assert [wanted(rows, MOST) for rows in (60_000, 192_000, 1_000_000)] == [3000, 3000, 576]
    assert wanted(60_000) == 1000


def test_rows_that_are_all_alike_calibrate_too(tmp_path: Path) -> None:
    collection = nestvec.open(tmp_path / "db").create_collection("c", dims=DIMS, metric="dot", granularities=(8, DIMS))
    collection.build([Batch(0, vectors=np.ones((6000, DIMS), np.float32))], rotate="none", calibrate=False)
    assert collection.calibrate(np.ones((300, DIMS), np.float32)) is not None
    hits = collection.search(np.ones(DIMS, np.float32), recall=0.9)
    assert len(hits) == 10


def test_writing_half_as_much_again_makes_a_calibration_stale(path: Path) -> None:
    collection = nestvec.open(path).collection("c")
    made, query = collection.calibration(), clustered(1, 6)[0]
    assert made is not None
    assert (made.source, made.rows, made.stale) == ("documents", 6000, None)
    collection.build([Batch(0, [f"n{i}" for i in range(3100)], vectors=clustered(3100, 2))])
    hits, now = collection.search(query, recall=0.8), collection.calibration()
    assert hits.choice is not None
    assert now is not None
    assert "9,100 now" in str(now.stale)
    assert hits.choice.plan.route == "exact" or hits.choice.stale == now.stale
    collection.calibrate(clustered(300, 5))
    now = collection.calibration()
    assert now is not None
    assert now.stale is None


def test_a_damaged_calibration_stops_no_search_and_is_named(path: Path) -> None:
    database = nestvec.open(path)
    collection = database.collection("c")
    with collection.part.catalog.write() as connection:
        connection.execute("UPDATE calibration SET crc = crc + 1")
    database.close()
    database = nestvec.open(path)
    again = database.collection("c")
    assert again.calibration() is None
    choice = again.search(clustered(1, 6)[0], recall=0.9).choice
    assert choice is not None
    assert (choice.plan.route, choice.reason[:14]) == ("exact", "not calibrated")
    assert "the calibration of generation 1" in str([report.damage for report in database.verify()])


def test_a_hybrid_search_promises_what_its_vectors_side_was_asked_for(tmp_path: Path) -> None:
    collection = nestvec.open(tmp_path / "db").create_collection(
        "c", dims=DIMS, metric="dot", granularities=(8, DIMS), bm25=True
    )
    texts = [f"text {i % 50}" for i in range(6000)]
    collection.build([Batch(0, vectors=clustered(6000, 1), texts=texts)], rotate="none", calibrate=False)
    collection.calibrate(clustered(400, 5))
    query = clustered(1, 6)[0]
    hybrid = collection.search(query, text="text 7", rank="hybrid", k=5, recall=0.9).choice
    dense = collection.search(query, k=100, recall=0.9).choice
    assert hybrid is not None
    assert hybrid == dense
    assert hybrid.k == 100
    assert collection.search(text="text 7", rank="bm25", recall=0.9).choice is None


def test_explain_with_a_query_tells_what_that_search_did(built: Collection) -> None:
    if built.calibration() is None:
        built.calibrate(clustered(400, 5))
    query = clustered(1, 6)[0]
    found = built.explain(query, k=7, recall=0.9)
    assert found.hits is not None
    assert found.work is found.hits.work
    assert found.choice is found.hits.choice
    assert built.explain(k=7, recall=0.9).choice == found.choice
    stages = found.work.stages
    assert (stages[-1]["dims"], stages[-1]["out"]) == (DIMS, 7)
    assert 0 < sum(stage["bytes"] for stage in stages) <= found.work.bytes


def test_too_few_queries_and_no_index_say_so(built: Collection, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least 100 queries, got 5"):
        built.calibrate(clustered(5, 5))
    small = nestvec.open(tmp_path / "db").create_collection("c", dims=DIMS)
    assert small.calibrate() is None
    assert small.calibration() is None


def test_of_plans_that_are_sure_the_cheapest_is_taken_wherever_it_stands() -> None:
    """A plan that finds too few rows is asked again with a wider one, and so may cost more than a careful one."""
    calibration = a_calibration()
    points = calibration.frontiers[0].points
    dear = replace(points[2], micros=900.0)
    calibration = replace(calibration, frontiers=(replace(calibration.frontiers[0], points=(*points[:2], dear)),))
    assert choose(calibration, Goal(recall=0.9), Scope(10, 100_000, 100_000, 128)).plan == a_plan(0.2)
