"""The bench on small vectors: whole runs through the command line, and the metrics against plain definitions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import apsw
import numpy as np
import pytest

from nestvec.benchmarks import metrics
from nestvec.benchmarks.data import DataSet, load
from nestvec.benchmarks.report import frontier
from nestvec.errors import InvalidInput

FIELDS = {"system", "setting", "recall", "qps", "p50_us", "p99_us", "rows_scored", "bytes_read", "build_s"}
FIELDS |= {"index_bytes", "peak_rss", "n", "dims", "k", "threads"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Clustered unit vectors, so that an index has something to find."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32))
    points = centres[rng.integers(40, size=3_040)] + 0.5 * rng.standard_normal((3_040, 32))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    np.save(folder / "base.npy", points[:3_000])
    np.save(folder / "queries.npy", points[3_000:])
    return DataSet(folder / "base.npy", folder / "queries.npy")


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nestvec.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def out(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    folder = tmp_path_factory.mktemp("bench") / "out"
    done = bench("--base", data.base, "--queries", data.queries, "--k", "5", "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_setting_has_every_field(out: tuple[Path, list[dict[str, object]]]) -> None:
    _, figures = out
    assert {one["system"] for one in figures} == {"exact", "soar"}
    for one in figures:
        assert set(one) == FIELDS
        assert all(float(one[key]) > 0 for key in FIELDS - {"system", "setting", "recall"})  # type: ignore[arg-type]


def test_exact_finds_everything_and_soar_rises_to_nearly_everything(out: tuple[Path, list[dict[str, object]]]) -> None:
    _, figures = out
    (exact,) = [one for one in figures if one["system"] == "exact"]
    soar = [one for one in figures if one["system"] == "soar"]
    assert exact["recall"] == 1.0
    recalls = [float(one["recall"]) for one in soar]  # type: ignore[arg-type]
    assert max(recalls) >= 0.95
    assert recalls[-1] > recalls[0]
    assert all(one["rows_scored"] < exact["rows_scored"] for one in soar[:1])  # type: ignore[operator]


def test_raw_answers_table_and_plot_are_left_behind(out: tuple[Path, list[dict[str, object]]]) -> None:
    folder, figures = out
    assert (folder / "recall-qps.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "results.md").read_text()
    assert table.count("| soar |") + table.count("| exact |") == len(figures)
    assert "Machine: cpu " in table
    connection = apsw.Connection(str(folder / "results.sqlite"))
    assert connection.execute("SELECT count(*), count(DISTINCT setting) FROM answer").fetchone() == (
        40 * len(figures),
        len(figures),
    )
    assert connection.execute("SELECT count(*) FROM truth").fetchone() == (40,)
    connection.close()
    assert {path.name for path in folder.iterdir()} == {"recall-qps.png", "results.md", "results.sqlite"}


def test_limits_and_given_truth_are_used(data: DataSet, tmp_path: Path) -> None:
    base, queries = np.load(data.base), np.load(data.queries)
    truth = tmp_path / "truth.npy"
    np.save(truth, metrics.exact_neighbours(base, queries, 20, "l2"))
    loaded = load(DataSet(data.base, data.queries, truth), 10, None, 7)
    assert loaded.truth is not None
    assert loaded.truth.shape == (7, 10)
    assert load(DataSet(data.base, data.queries, truth), 10, 500, None).truth is None
    with pytest.raises(InvalidInput, match=r"≥30"):
        load(DataSet(data.base, data.queries, truth), 30, None, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--systems", "exact,nothing"), "nothing"),
        (("--metric", "manhattan"), "cosine, dot or l2"),
        (("--k", "5000"), "k=5000"),
    ],
)
def test_a_request_that_cannot_be_measured_is_refused(
    data: DataSet, tmp_path: Path, arguments: tuple[str, str], words: str
) -> None:
    done = bench("--base", data.base, "--queries", data.queries, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
def test_exact_neighbours_equal_a_full_sort(metric: metrics.Metric) -> None:
    rng = np.random.default_rng(1)
    base, queries = rng.standard_normal((500, 8), dtype=np.float32), rng.standard_normal((9, 8), dtype=np.float32)
    base[100:110] = base[0]  # ties go to the lower row
    everything = np.arange(500)
    for query, rows in zip(queries, metrics.exact_neighbours(base, queries, 12, metric), strict=True):
        scores = metrics.score_rows(base, query, everything, metric)
        np.testing.assert_array_equal(rows, np.lexsort((everything, -scores))[:12])


def test_recall_counts_ties_and_ignores_repeats_and_gaps() -> None:
    base = np.array([[1.0], [1.0], [0.5], [0.1]], dtype=np.float32)
    query = np.array([[1.0]], dtype=np.float32)
    kth = metrics.kth_scores(base, query, np.array([[0]]), "dot")
    assert metrics.recall(base, query, np.array([[1]]), kth, "dot") == 1.0
    kth = metrics.kth_scores(base, query, np.array([[0, 1]]), "dot")
    assert metrics.recall(base, query, np.array([[0, 0]]), kth, "dot") == 0.5
    assert metrics.recall(base, query, np.array([[1, -1]]), kth, "dot") == 0.5
    assert metrics.recall(base, query, np.array([[3, 2]]), kth, "dot") == 0.0


def test_the_frontier_keeps_what_nothing_beats() -> None:
    figures = [{"recall": r, "qps": q} for r, q in [(0.5, 100), (0.9, 50), (0.8, 40), (0.9, 45), (1.0, 1)]]
    assert [(one["recall"], one["qps"]) for one in frontier(figures)] == [(0.5, 100), (0.9, 50), (1.0, 1)]
