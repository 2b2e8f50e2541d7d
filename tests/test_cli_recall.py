"""The commands about recall: what they print, draw and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .test_cli import Cli, assert_one_line_error, calibrated, cli, db, environment, mined, points, vectors, world

__all__ = ["calibrated", "cli", "db", "mined", "vectors", "world"]  # fixtures


def test_a_search_says_which_recall_it_has(cli: Cli, world: dict[str, str]) -> None:
    asked = ["search", "-c", "big", "--vector-file", world["QUERY"], "-k", "3"]
    done = cli(*asked, "--recall", "0.9")
    assert "(target 0.9), measured on 258 queries (queries)" in done.stderr
    found = json.loads(cli(*asked, "--recall", "0.9", "--json").stdout)
    assert (found["recall"]["target"], found["recall"]["basis"]["ks"]) == (0.9, [1, 10])
    assert "considered" not in json.dumps(found)
    for budget in (("--budget-ms", "0.000001"), ("--budget-bytes", "1")):
        cheap = json.loads(cli(*asked, *budget, "--json").stdout)["recall"]
        assert (cheap["target"], "budget" in cheap["reason"]) == (None, True)
    assert_one_line_error(cli(*asked, "--recall", "0.9", "--budget-ms", "1"), 2, "recall and budget_ms")
    assert_one_line_error(cli(*asked, "--recall", "1.5"), 2, "recall must be", "1.5")


def test_calibrate_measures_with_queries_or_without(cli: Cli, world: dict[str, str], tmp_path: Path) -> None:
    done = cli("calibrate", "-c", "big", "--queries", world["QUERIES"])
    assert done.returncode == 0, done.stderr
    assert "queries (queries) in" in done.stdout
    assert "calibrate: " in done.stderr  # progress
    own = json.loads(cli("calibrate", "-c", "big", "--json").stdout)
    assert own["source"] == "documents"
    few = tmp_path / "few.npy"
    np.save(few, points(7, 3))
    assert_one_line_error(cli("recall", "-c", "docs", "--queries", few, "--recall", "2"), 2, "recall must be")
    assert "at least 100 queries, got 7" in cli("calibrate", "-c", "big", "--queries", few).stderr
    assert "no index yet" in cli("calibrate", "-c", "docs").stdout


def test_frontier_prints_chosen_points_and_draws_them(cli: Cli, world: dict[str, str], tmp_path: Path) -> None:
    done = cli("frontier", "-c", "big", "-k", "10")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["k", "selectivity", "recall", "floor", "µs", "bytes"]
    assert {line.split()[0] for line in lines[1:]} == {"10"}
    assert "6,000 rows (queries)" in done.stderr
    picture = tmp_path / "f.png"
    assert cli("frontier", "-c", "big", "--png", picture).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert_one_line_error(cli("frontier", "-c", "big", "-k", "7"), 2, "10 at 1")
    assert_one_line_error(cli("frontier", "-c", "docs"), 2, "nestvec calibrate -c docs")


def test_a_picture_without_matplotlib_names_what_installs_it(db: Path, world: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['nestvec', 'frontier', '-c', 'big', '--png', {str(tmp_path / 'f.png')!r}]\n"
        "from nestvec.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(db), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'nestvec[bench]'" in done.stderr


def test_explain_draws_the_funnel_with_the_reason_and_the_neighbours(cli: Cli, world: dict[str, str]) -> None:
    drawn = cli("explain", "-c", "big", "--vector-file", world["QUERY"], "-k", "5", "--recall", "0.9").stdout
    for words in ("why     the cheapest plan", "(target 0.9)", "more careful: recall", "cheaper: recall", "█", "final",
                  "µs in all"):  # fmt: skip
        assert words in drawn
    data = json.loads(
        cli("explain", "-c", "big", "--vector-file", world["QUERY"], "-k", "5", "--recall", "0.9", "--json").stdout
    )
    for stage in data["work"]["stages"]:
        assert f"{stage['in']:,} → {stage['out']:,}" in drawn


def test_explain_without_a_query_and_with_a_filter(cli: Cli, world: dict[str, str]) -> None:
    planned = cli("explain", "-c", "big", "--filter", '{"field": "r", "lt": 3}')
    assert planned.returncode == 2
    planned = cli("explain", "-c", "big", "--filter", '{"field": "r", "range": {"lt": 3}}')
    assert "180 of 6,000 rows match (3.00%): few enough to compare them all" in planned.stdout
    assert "█" not in planned.stdout
    beyond = cli("explain", "-c", "big", "--recall", "0.999999").stdout
    assert "no calibrated plan is sure to reach recall 0.999999" in beyond


def test_recall_is_measured_on_vectors_and_on_texts(cli: Cli, world: dict[str, str], tmp_path: Path) -> None:
    done = cli("recall", "-c", "big", "--queries", world["QUERIES"], "--recall", "0.9")
    assert done.stdout.startswith("recall@10 0.9")
    assert "150 queries" in done.stdout
    corpus, texts, bad = tmp_path / "c.jsonl", tmp_path / "q.jsonl", tmp_path / "b.jsonl"
    corpus.write_text("\n".join(json.dumps({"id": str(i), "text": f"a text about number {i}"}) for i in range(30)))
    texts.write_text('"number 3"\n{"text": "number 4"}\n\n')
    bad.write_text("[1]\n")
    assert cli("build", corpus, "-c", "prose").returncode == 0
    found = json.loads(cli("recall", "-c", "prose", "--queries", texts, "--json").stdout)
    assert (found["queries"], found["recall"]) == (2, 1.0)
    assert_one_line_error(cli("recall", "-c", "prose", "--queries", bad), 2, "b.jsonl, line 1")
    assert_one_line_error(cli("recall", "-c", "prose", "--queries", tmp_path / "x.txt"), 2, ".npy", ".jsonl")


def test_build_can_leave_calibration_for_later(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    np.save(path, points(6000, 4))
    report = json.loads(cli("build", path, "-c", "later", "--metric", "dot", "--no-calibrate", "--json").stdout)
    assert not {"open", "calibrate"} & set(report["seconds"])
    whole = json.loads(cli("build", path, "-c", "now", "--metric", "dot", "--json").stdout)
    assert {"open", "calibrate"} <= set(whole["seconds"])
    assert cli("frontier", "-c", "later").returncode == 2


@pytest.mark.parametrize("option", [["--recall-share", "1.5"], ["--recall-share", "-1"]])
def test_serve_refuses_a_share_that_is_none(cli: Cli, option: list[str]) -> None:
    assert cli("serve", *option).returncode == 2
