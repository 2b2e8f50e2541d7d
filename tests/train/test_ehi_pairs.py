"""Pairs from files, how even leaves are, and quality by share of documents: what needs no torch."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nestvec.engine.stdlib_docs import passages
from nestvec.errors import InvalidInput
from nestvec.index.ehi.assign import Filing, file_rows
from nestvec.index.ehi.router import Layer, Router
from nestvec.train.ehi.balance import Balance
from nestvec.train.ehi.config import SCALE, TreeSettings, Weights, default_branches
from nestvec.train.ehi.examples import split
from nestvec.train.ehi.measure import curve
from nestvec.train.ehi.pairs import read_pairs
from nestvec.train.ehi.start import nearest_centre, spherical_kmeans, starting_heads, unit


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"query": "how to sort", "document": "list.sort", "grade": 2},
        {"query": "how to sort", "document": "sorted", "grade": 1},
        {"query": "open a file", "document": "open", "grade": 1},
        {"query": "open a file", "document": "os.remove", "grade": 0},
    ]
    read = [
        read_pairs(_write(tmp_path / "pairs.jsonl", [json.dumps(row) for row in rows])),
        read_pairs(_write(tmp_path / "pairs.tsv", ["\t".join(map(str, row.values())) for row in rows])),
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    read.append(read_pairs(tmp_path / "pairs.parquet"))
    for pairs in read:
        assert pairs.texts == ["how to sort", "open a file"]
        assert pairs.documents == ["list.sort", "sorted", "open"]  # a grade of 0 is no pair
        assert pairs.query.tolist() == [0, 0, 1]
        assert pairs.grades.tolist() == [2, 1, 1]


def test_queries_may_be_vectors(tmp_path: Path) -> None:
    rows = [{"vector": [1, 0], "doc_id": "a"}, {"vector": [0, 1], "doc_id": "b"}, {"vector": [1, 0], "doc_id": "c"}]
    pairs = read_pairs(_write(tmp_path / "pairs.jsonl", [json.dumps(row) for row in rows]))
    assert pairs.texts is None
    assert pairs.vectors is not None
    assert pairs.vectors.tolist() == [[1, 0], [0, 1]]
    assert pairs.query.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"query": "q"}', "line 2: expected a document id"),
        ('{"query": "", "document": "d"}', "line 2: expected a query text"),
        ('{"query": "q", "document": "d", "grade": "high"}', "line 2: expected a number as grade"),
        ('{"vector": [1, 2], "document": "d"}', "line 2: expected a query text in every line"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = _write(tmp_path / "pairs.jsonl", ['{"query": "q", "document": "d"}', line])
    with pytest.raises(InvalidInput, match=expected):
        read_pairs(path)


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no pair"):
        read_pairs(_write(tmp_path / "pairs.tsv", ["q\td\t0"]))
    with pytest.raises(InvalidInput, match=r"\.jsonl, \.parquet or \.tsv"):
        read_pairs(_write(tmp_path / "pairs.csv", ["q,d"]))


def test_balance_measures_what_it_says() -> None:
    even = Balance.of(np.array([0, 1, 2, 3]), 4)
    assert (even.max_over_mean, even.imbalance, even.empty) == (1.0, 1.0, 0.0)
    assert even.problem() is None
    skewed = Balance.of(np.repeat([[0, 1], [0, 2], [0, -1], [0, 3]], 40, axis=0), 4)  # sizes 160, 40, 40, 40
    assert skewed.max_over_mean == skewed.cost_over_mean == pytest.approx(4 * 4 / 7)
    assert skewed.imbalance == skewed.cost_imbalance == pytest.approx(4 * 19 / 49)
    assert "2.29 times the mean" in str(skewed.problem())
    assert "imbalance of 1.55" in str(skewed.problem(max_over_mean=3))
    assert "collapsed" in str(Balance.of(np.zeros(9, np.int64), 4).problem())


def test_leaves_of_a_few_rows_are_told_and_judged_by_what_visits_cost() -> None:
    few = Balance.of(np.repeat(np.arange(4), [32, 2, 1, 1]), 4)
    assert few.max_over_mean == pytest.approx(32 * 4 / 36)
    assert few.imbalance > 3
    assert (few.cost_over_mean, few.cost_imbalance) == (1.0, 1.0)
    assert few.problem() is None
    over = Balance.of(np.repeat(np.arange(4), [200, 2, 1, 1]), 4)
    assert over.cost_over_mean == pytest.approx(200 * 4 / 296)
    assert "2.70 times the mean" in str(over.problem())


def _vectors(count: int) -> np.ndarray:
    from nestvec.engine.encoders import load_encoder

    texts = [each["text"] for _, each in zip(range(count), passages(), strict=False)]
    return np.asarray(load_encoder("static").encode_documents(texts), np.float32)


def test_spherical_kmeans_finds_nearer_centres_than_it_started_with() -> None:
    rows = _vectors(2000)
    few, many = (spherical_kmeans(rows, 16, 0, iterations) for iterations in (0, 10))
    reached = [float((rows * centres[nearest_centre(rows, centres)]).sum(1).mean()) for centres in (few, many)]
    assert reached[1] > reached[0] + 0.01
    assert np.allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)


def test_heads_of_two_levels_divide_each_node() -> None:
    rows = _vectors(1500)
    heads = starting_heads(rows, rows, (4, 8), 0, warm=True)
    assert [head.shape for head in heads] == [(4, 512), (32, 512)]
    cold = starting_heads(rows, rows, (4, 8), 0, warm=False)
    assert [head.shape for head in cold] == [(4, 512), (32, 512)]


def test_a_beam_costs_under_a_quarter_of_one_level_where_that_is_enough_for_eight_nodes() -> None:
    kept = {branches: TreeSettings(branches).kept for branches in ((256,), (16, 16), (64, 64), (128, 32), (256, 16))}
    assert kept == {(256,): 8, (16, 16): 8, (64, 64): 14, (128, 32): 26, (256, 16): 45}
    assert 128 + 26 * 32 < 0.25 * 128 * 32
    assert TreeSettings((64, 64), beam=30).kept == 30


def test_parents_learn_what_lies_below_them() -> None:
    torch = pytest.importorskip("torch")
    from nestvec.train.ehi.losses import below

    leaves = torch.from_numpy(3 * np.random.default_rng(0).standard_normal((5, 12)))
    mass = torch.softmax(leaves, -1).reshape(5, 4, 3).sum(-1)
    least = below(mass.log(), leaves)
    assert float(least) == pytest.approx(float(-(mass * mass.log()).sum(-1).mean()))
    other = torch.log_softmax(mass.log() + 0.5 * torch.arange(4), -1)
    assert float(below(other, leaves)) > float(least)


def test_heads_are_means_of_the_clusters_that_a_guide_sees() -> None:
    rows, seen = _vectors(400), np.eye(4, dtype=np.float32)[np.arange(400) % 4]
    (heads,) = starting_heads(seen, rows, (4,), 0, warm=True)
    means = unit(np.stack([unit(rows[start::4]).sum(axis=0) for start in range(4)]))
    cosines = heads @ means.T
    assert len(set(cosines.argmax(axis=1).tolist())) >= 3  # k-means may start with two centres in one cluster
    assert np.sort(cosines.max(axis=1))[-3:] == pytest.approx(1, abs=1e-5)


def test_rows_are_filed_under_the_cap_where_most_want_one_leaf() -> None:
    rows = _vectors(2000)
    centres = unit(np.concatenate([rows.mean(0, keepdims=True), rows[:15]]))
    router = Router((16,), (Layer(np.float32(SCALE) * centres, np.zeros(16, np.float32)),))
    wanted = Balance.of(nearest_centre(rows, centres), 16)
    filed = Balance.of(file_rows(router, rows, Filing(cap=1.5)), 16)
    assert wanted.max_over_mean > 4
    assert filed.max_over_mean <= 1.5


def test_a_curve_ends_at_exact_search_and_counts_rows_filed_twice() -> None:
    rows = _vectors(1000)
    centres = spherical_kmeans(rows, 20, 0)
    asked, relevant = unit(rows[:50] + 0.02), [{row: 1.0} for row in range(50)]
    once = curve(rows, asked, relevant, nearest_centre(rows, centres), asked @ centres.T)
    assert once.ndcg[-1] == pytest.approx(once.exact)
    assert once.share[-1] == pytest.approx(1.0)
    assert once.recall[-1] == pytest.approx(1.0)
    assert all(before <= after for before, after in pairwise(once.recall))
    assert once.at(1.0)[0] == pytest.approx(once.exact)
    best = np.argsort(-(rows @ centres.T), axis=1)[:, :2]
    twice = curve(rows, asked, relevant, best, asked @ centres.T)
    assert twice.share[-1] == pytest.approx(2.0)
    assert twice.recall[0] > once.recall[0]


def test_queries_held_out_are_not_learned_from() -> None:
    rows = _vectors(600)
    queries = np.repeat(rows[:300], 2, axis=0)  # each twice
    pairs = np.stack([np.arange(600), np.arange(600) // 2], axis=1)
    grades = np.ones(600, np.float32)
    made = split(rows, queries, pairs, grades, unit=True, prefixes=(512,), held_out=0.2, seed=1)
    assert 100 <= len(made.held) <= 140  # a few passages have the same words, so the same vector
    assert len(made.held) % 2 == 0  # a query goes with its twin
    assert not set(made.pairs[:, 1].tolist()) & {row for judged in made.relevant for row in judged}
    with pytest.raises(InvalidInput, match="200 pairs or more"):
        split(rows, queries, pairs[:100], grades[:100], unit=True, prefixes=(512,), held_out=0.2, seed=1)


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidInput, match="mode"):
        TreeSettings(mode="both")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="branches"):
        TreeSettings(branches=(1,))
    with pytest.raises(InvalidInput, match="losses path and hinge"):
        Weights(path=0.0)
    with pytest.raises(InvalidInput, match="balance"):
        Weights(balance=-1.0)
    assert default_branches(16_000) == (128,)
    assert default_branches(60_000) == (256,)
    assert default_branches(1_000_000) == (256, 16)
