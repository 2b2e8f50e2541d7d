"""Whole runs of `nestvec bench` on small vectors, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from nestvec import cli
from nestvec.benchmarks.baseline import Baseline, by_system
from nestvec.benchmarks.choose import Choice, Task, choose
from nestvec.benchmarks.data import DataSet
from nestvec.benchmarks.final import Candidate, groups, in_turn
from nestvec.benchmarks.results import Measured, Results
from nestvec.benchmarks.systems import SYSTEMS, Context
from nestvec.benchmarks.worker import BuildInfo, Pass
from nestvec.errors import InvalidInput

SINGLE, BATCH = Context("single", 1), Context("batch", 2)
LISTS = "faiss-prefix-ivfpqfs"
FIELDS = {"phase", "system", "build", "setting", "mode", "threads", "k", "recall", "qps", "p50_us", "p99_us"}
FIELDS |= {"rows_scored", "bytes_read", "build_s", "index_bytes", "peak_rss", "rounds", "n", "dims"}
GRID = {
    "exact": [{"build": {}, "search": [{"route": "exact"}]}],
    LISTS: [
        {
            "build": {"lists": 16, "prefix": prefix, "dims_per_block": 2, "residual": False},
            "search": [{"probes": probes, "factor": factor} for probes in (1, 4, 16) for factor in (2, 32)],
        }
        for prefix in (16, None)
    ],
}


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nestvec.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def figures(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def task(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that say what is measured: small vectors, a small grid, short passes."""
    grid = tmp_path_factory.mktemp("grid") / "grid.json"
    grid.write_text(json.dumps(GRID))
    options = {"base": data.base, "queries": data.queries, "grids": grid, "envs": grid.parent, "suite": "smoke"}
    options |= {"systems": f"{LISTS},exact", "seconds": 0.002, "build-threads": 1}
    return ["--json", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def out(task: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("bench") / "out"
    done = bench(*task, "--k", "5,20", "--modes", "single,batch:1", "--repeats", "3", "--builds", "1", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, figures(done)


def test_every_setting_has_every_figure(out: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = out
    sweep, final = ([one for one in found if one["phase"] == phase] for phase in ("sweep", "final"))
    assert len(sweep) == 2 * 2 * (12 + 1)
    assert {(one["mode"], one["threads"], one["k"]) for one in sweep if one["system"] == LISTS} == {
        (mode, threads, k) for mode, threads in (("single", 1), ("batch", 1)) for k in (5, 20)
    }
    assert {one["rounds"] for one in final} == {3}
    assert len({json.dumps(one["build"]) for one in final if one["system"] == LISTS}) == 1
    for one in found:
        assert set(one) == FIELDS
        assert all(one[key] > 0 for key in ("recall", "qps", "build_s", "index_bytes", "peak_rss"))
        assert (one["p50_us"] is None) == (one["mode"] == "batch")


def test_exact_finds_everything_and_counts_its_work(out: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = out
    for one in found:
        if one["system"] == "exact":
            assert (one["recall"], one["rows_scored"]) == (1.0, 3_000)
            assert one["bytes_read"] >= 3_000 * 32 * 4
        else:
            assert one["rows_scored"] is None
    assert max(one["recall"] for one in found if one["system"] == LISTS) > 0.9


def test_raw_answers_tables_and_plots_are_left_behind(out: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = out
    pictures = {f"recall-qps-{way}-k{k}.png" for way in ("single-1", "batch-1") for k in (5, 20)}
    assert {path.name for path in folder.iterdir()} == {*pictures, "results.md", "results.sqlite"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    report = (folder / "results.md").read_text()
    for words in ("3 rounds, systems in turn", f"{LISTS}: times the speed", "| exact 1 |", "## Builds", "## Machine"):
        assert words in report
    assert "read by one core" in report
    connection = apsw.Connection(str(folder / "results.sqlite"))
    points = "SELECT count(*), count(DISTINCT answers) FROM point JOIN build ON build = build.id WHERE system = 'exact'"
    assert connection.execute(points).fetchone() == (2 * 2 * 2, 2)
    assert connection.execute("SELECT min(n), max(n) FROM (SELECT count(*) n FROM answers GROUP BY sha256)").fetchone()
    blob, k = connection.execute("SELECT neighbours, k FROM answers ORDER BY id LIMIT 1").fetchone()
    assert len(blob) == 4 * 40 * k
    rounds = (
        "SELECT DISTINCT round FROM pass JOIN point ON point = point.id JOIN build ON build = build.id WHERE run = 2"
    )
    assert [row for (row,) in connection.execute(rounds)] == [0, 1, 2]
    connection.close()


def test_a_later_run_is_compared_with_a_baseline(
    task: list[str], out: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    arguments = [*task, "--k", "5", "--modes", "single", "--systems", LISTS, "--baseline", out[0], "--out", tmp_path]
    swept = bench(*arguments, "--phase", "sweep")
    assert swept.returncode == 0, swept.stderr
    report = (tmp_path / "results.md").read_text()
    assert "## Against the baseline" in report
    assert report.count("| single:1, k 5 |") == 12
    final = bench(*arguments, "--phase", "final", "--modes", "batch:2", "--hold", "2")
    assert final.returncode == 0, final.stderr
    assert {one["mode"] for one in figures(final)} == {"batch"}
    again = bench(*arguments, "--phase", "report")
    assert again.returncode == 0, again.stderr
    assert again.stdout == ""
    assert (tmp_path / "results.md").read_text().startswith("# 3,000 × 32, dot")


def test_both_ways_into_the_soar_index_find_the_same(task: list[str], tmp_path: Path) -> None:
    arguments = [*task, "--systems", "soar-reader,soar", "--phase", "sweep", "--modes", "single,batch:2"]
    done = bench(*arguments, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = figures(done)
    assert {one["mode"] for one in found if one["system"] == "soar"} == {"single"}
    recalls: dict[str, set[float]] = {}
    for one in found:
        recalls.setdefault(json.dumps(one["setting"]), set()).add(one["recall"])
        assert 0 < one["rows_scored"] < 3_000
        assert one["bytes_read"] > 0
    assert all(len(each) == 1 for each in recalls.values())
    assert max(one["recall"] for one in found) > 0.9


def test_one_failing_system_stops_no_other(task: list[str], tmp_path: Path) -> None:
    grid = GRID | {LISTS: [{"build": {"lists": 16, "prefix": 16, "residual": False}, "search": [{"probes": 1}]}]}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    done = bench(*task, "--grids", tmp_path / "grid.json", "--modes", "single", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"nestvec: {LISTS} could not build ")
    assert "KeyError: 'dims_per_block'" in done.stderr
    assert {one["system"] for one in figures(done)} == {"exact"}
    assert "Did not get through:" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--systems", "exact,nothing"), "nothing"),
        (("--metric", "manhattan"), "cosine, dot or l2"),
        (("--k", "5000"), "k=5000"),
        (("--k", "0"), "at least 1"),
        (("--modes", "fast"), "batch:2"),
        (("--suite", "huge"), "smoke, medium, full"),
        (("--phase", "half"), "sweep, final, both, report"),
        (("--phase", "final"), "--phase sweep first"),
        (("--phase", "report"), "no run"),
        (("--baseline", "nowhere"), "nowhere"),
        (("--grids", "nowhere.json"), "nowhere.json"),
        (("--smoke",), "leave out --base"),
    ],
)
def test_a_request_that_cannot_be_measured_is_refused(
    data: DataSet,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = ("--systems", "exact", "--base", str(data.base), "--queries", str(data.queries), "--out", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["nestvec", "bench", *chosen, *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


def measured(point: int, build: int, probes: int, recall: float, seconds: float, how: Context = SINGLE) -> Measured:
    info = BuildInfo(1.0, 1, 1, 1, {})
    rounds = {0: [Pass(seconds)]}
    return Measured(point, LISTS, {"build": build}, {"probes": probes}, how, 10, recall, None, None, info, rounds)


def test_the_final_takes_the_best_builds_and_the_newest_times() -> None:
    points = [measured(i, 1, i, recall, 1 + i) for i, recall in enumerate((0.85, 0.92, 0.96, 0.98, 0.995))]
    points += [measured(9, 2, i, 0.91, 50.0) for i in range(3)]
    points += [measured(10, 1, 1, 0.92, 100.0)]
    (choice,) = choose(points, [(SINGLE, 10), (BATCH, 10), (SINGLE, 100)], 100, 1)
    assert choice.build == {"build": 1}
    probes = {way: [task.setting["probes"] for task in choice.tasks if task.context == way] for way in (SINGLE, BATCH)}
    assert probes[SINGLE] == probes[BATCH] == [0, 2, 3, 4]
    assert {task.k for task in choice.tasks} == {10}
    assert choose([], [(SINGLE, 10)], 100, 1) == []


def candidates(name: str, builds: int, tasks: int) -> list[Candidate]:
    chosen = Choice({}, tuple(Task({"probes": place}, SINGLE, 10) for place in range(tasks)))
    return [Candidate(SYSTEMS[name], chosen.build, chosen.tasks) for _ in range(builds)]


def test_groups_keep_systems_whole_beside_the_subject() -> None:
    scann, faiss, graph = candidates("scann", 2, 1), candidates(LISTS, 2, 1), candidates("hnswlib", 1, 1)
    assert list(groups(1, [scann, faiss, graph], 9)) == [[*scann, *faiss, *graph]]
    assert list(groups(1, [scann, faiss, graph], 4)) == [scann, [*faiss, *graph]]
    assert list(groups(2, [], 2)) == [[]]
    with pytest.raises(InvalidInput, match="--hold 2"):
        list(groups(1, [scann, faiss], 2))


def test_systems_take_turns() -> None:
    first, second = candidates("scann", 1, 2)[0], candidates("hnswlib", 1, 3)[0]
    turns = [(candidate.system.name, place) for candidate, place in in_turn([first, second])]
    assert turns == [("scann", 0), ("hnswlib", 0), ("scann", 1), ("hnswlib", 1), ("hnswlib", 2)]


def test_a_baseline_gives_ratios_of_medians(tmp_path: Path) -> None:
    facts = {"started": "now", "phase": "final", "suite": "smoke", "base": "b", "queries": "q", "fingerprint": "f"}
    numbers = {"n": 3, "dims": 2, "n_queries": 4, "repeats": 2, "min_seconds": 0.1, "build_threads": 1}
    with Results(tmp_path / "results.sqlite") as results:
        run = results.add_run(facts | numbers | {"metric": "dot", "machine": "{}"}, {2: np.zeros(4)})
        build = results.add_build(run, "exact", {}, BuildInfo(1.0, 2, 3, 4, {"numpy": "2"}))
        rows = np.array([[0, 1], [2, -1], [1, 0], [0, 2]])
        work = np.array([[3, 30], [3, 30], [3, 30], [3, 30]])
        point = results.add_point(build, {"route": "exact"}, 2, SINGLE, rows, 0.75, work)
        results.add_passes(point, 0, [Pass(4.0, 1.0, 2.0), Pass(2.0, 1.0, 2.0)])
        results.add_passes(point, 1, [Pass(1.0, 1.0, 2.0)])
        np.testing.assert_array_equal(results.answers_of(point), rows)
        (one,) = results.measured(run)
    assert (one.rows_scored, one.bytes_read, one.recall) == (3.0, 30.0, 0.75)
    baseline = Baseline(tmp_path, "f", 4)
    twice = Measured(**{**vars(one), "rounds": {0: [Pass(1.0)]}})
    elsewhere = Measured(**{**vars(one), "settings": {"route": "soar"}})
    (compared,) = baseline.compare([twice, elsewhere], "final")
    assert compared.ratio == 2.0
    assert by_system([compared])["exact"].median == 2.0  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="no run over these"):
        Baseline(tmp_path, "other", 4)


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "results.sqlite"))
    connection.execute("CREATE TABLE run(id)")
    connection.close()
    with pytest.raises(InvalidInput, match="version 0 of the results, expected 2"):
        Results(tmp_path / "results.sqlite")
