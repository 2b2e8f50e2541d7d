"""Judged sets are read as they are, ways to search are scored as the measures are defined, and stopped work goes on."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec import Fusion, Plan
from nestvec.engine.encoders import load_encoder
from nestvec.errors import Conflict, InvalidInput, MissingDependency, NotFound
from nestvec.evaluation import Evaluation, documents, evaluate, read_set

try:
    import ir_measures  # noqa: F401
except ImportError:
    MEASURES = False
else:
    MEASURES = True
needs_measures = pytest.mark.skipif(not MEASURES, reason="needs nestvec's extra eval")

PREFIX = 64


def test_both_formats_hold_the_same_set(beir: Path, packed: Path) -> None:
    one, other = read_set(beir), read_set(packed)
    assert (one.queries, one.grades) == (other.queries, other.grades)
    assert list(documents(one.corpus)) == list(documents(other.corpus))
    assert "unjudged" not in dict(one.queries)
    assert one.grades["q0"] == {key: grade for key, grade in one.grades["q0"].items() if grade > 0}
    assert [id for id, _ in read_set(packed, "train").queries] == ["learn"]
    few = read_set(beir, most=5)
    assert len(few.queries) == len(few.grades) == 5
    assert few == read_set(beir, most=5)


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("corpus.jsonl", '{"_id": "x", "text": "cut', "no JSON"),
        ("corpus.jsonl", '["x"]', "expected a JSON object, got list"),
        ("corpus.jsonl", '{"text": "no id"}', 'expected an id in "_id" or "id"'),
        ("corpus.jsonl", '{"_id": "x", "text": 7}', "'text' must be a string, got int"),
        ("queries.jsonl", '{"_id": "q0", "text": "again"}', "a second query with the id 'q0'"),
        ("queries.jsonl", '{"_id": "q9", "text": " "}', "query 'q9' has no text"),
        ("qrels/test.tsv", "q0\tonly two", "expected query, document, whole grade"),
        ("qrels/test.tsv", "q0\tx\thigh", "expected query, document, whole grade"),
    ],
)
def test_a_bad_line_is_named(beir: Path, tmp_path: Path, file: str, line: str, words: str) -> None:
    folder = shutil.copytree(beir, tmp_path / "set")
    path = folder / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], line, *lines[1:]]) + "\n")
    with pytest.raises(InvalidInput) as caught:
        list(documents(read_set(folder).corpus))
    assert str(caught.value).startswith(f"{path}, line 2: ") or "second query" in words
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_no_set_is_refused_with_what_is_missing(beir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"corpus\.jsonl"):
        read_set(tmp_path)
    with pytest.raises(NotFound, match=r"qrels/dev\.tsv or qrels\.tsv"):
        read_set(beir, "dev")
    folder = shutil.copytree(beir, tmp_path / "set")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tx\t0\n")
    with pytest.raises(InvalidInput, match="no query of split 'test' has a relevant document"):
        read_set(folder)
    (folder / "queries.jsonl.gz").write_bytes((beir / "queries.jsonl").read_bytes())
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InvalidInput, match=r"queries\.jsonl\.gz, after line 0: cannot be read"):
        read_set(folder)


def test_the_extra_is_named_with_its_command(beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.evaluation.measure.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'nestvec\[eval\]'"):
        evaluate(beir)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "db"


@pytest.fixture(scope="module")
def found(beir: Path, kept: Path) -> Evaluation:
    if not MEASURES:
        pytest.skip("needs nestvec's extra eval")
    full = load_encoder("static").dims
    return evaluate(beir, ranks=("dense", "bm25", "hybrid"), dims=[full, PREFIX], database=kept)


def scores_by_hand(beir: Path, dims: int) -> tuple[float, float, float]:
    """nDCG@10, MRR@10 and R@100 of the exact search by a prefix, from the definitions."""
    judged, encoder = read_set(beir), load_encoder("static")
    ids, texts = zip(*documents(judged.corpus), strict=True)
    base, asked = (encoder.encode_documents(list(part))[:, :dims] for part in (texts, [q for _, q in judged.queries]))
    base = base / np.linalg.norm(base, axis=1, keepdims=True)
    ndcg, mrr, recall = [], [], []
    for (id, _), query in zip(judged.queries, asked, strict=True):
        grades = judged.grades[id]
        order = [grades.get(ids[row], 0) for row in np.argsort(-(base @ query), kind="stable")]
        gains = [sum(g / math.log2(i + 2) for i, g in enumerate(each[:10])) for each in (order, sorted(order)[::-1])]
        ndcg.append(gains[0] / gains[1])
        mrr.append(next((1 / (i + 1) for i, grade in enumerate(order[:10]) if grade), 0.0))
        recall.append(np.count_nonzero(order[:100]) / len(grades))
    return float(np.mean(ndcg)), float(np.mean(mrr)), float(np.mean(recall))


def test_exact_rows_have_the_scores_of_the_definitions(found: Evaluation, beir: Path) -> None:
    rows = {row.dims: row for row in found.rows if (row.rank, row.search) == ("dense", "exact")}
    assert list(rows) == [PREFIX, load_encoder("static").dims]
    for dims, row in rows.items():
        assert dims is not None
        np.testing.assert_allclose((row.ndcg, row.mrr, row.recall), scores_by_hand(beir, dims), atol=2e-3)
        assert 0 < row.ndcg_error < 0.2
        assert 0 < row.p50_ms <= row.p99_ms


def test_every_way_is_there_once_and_plans_lose_little(found: Evaluation) -> None:
    ways = [(row.rank, row.search, row.dims) for row in found.rows]
    full = load_encoder("static").dims
    expected = [
        *(
            (rank, search, dims)
            for rank in ("dense", "hybrid")
            for dims in (PREFIX, full)
            for search in ("exact", "planned")
        ),
        ("bm25", "words", None),
    ]
    assert sorted(ways, key=str) == sorted(expected, key=str)
    by_way = dict(zip(ways, found.rows, strict=True))
    assert (found.documents, found.empty, found.unreachable) == (1300, 0, 0)
    for dims in (PREFIX, full):
        assert by_way["dense", "planned", dims].ndcg > by_way["dense", "exact", dims].ndcg - 0.05
    assert by_way["dense", "exact", full].route == "exact"
    assert by_way["bm25", "words", None].route is None


@needs_measures
def test_a_given_plan_runs_at_the_most_dims_and_what_is_kept_is_used_again(
    found: Evaluation, beir: Path, kept: Path
) -> None:
    stages: list[str] = []
    plan = Plan.from_json({"route": "soar", "probes": 1, "shortlist": {"keep": 200}})
    full = load_encoder("static").dims
    again = evaluate(
        beir, dims=[PREFIX, full], plan=plan, most=9, database=kept, progress=lambda stage, *_: stages.append(stage)
    )
    assert [(row.search, row.dims) for row in again.rows] == [("exact", PREFIX), ("exact", full), ("plan", full)]
    assert again.rows[-1].route == "soar"
    assert again.queries == 9
    assert not [stage for stage in stages if "assign" in stage or "train" in stage]


@needs_measures
def test_stopped_work_goes_on_where_it_was(beir: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "encode" and done >= 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(beir, dims=[PREFIX], most=3, database=tmp_path / "db", progress=stop)
    with nestvec.open(tmp_path / "db") as database:
        (info,) = database.collections()
    assert info.count == 512
    first: list[int] = []
    whole = evaluate(
        beir, dims=[PREFIX], most=3, database=tmp_path / "db",
        progress=lambda stage, done, _: first.append(done) if stage == "encode" else None,
    )  # fmt: skip
    assert first[0] > 512
    assert whole.documents == 1300


@needs_measures
def test_what_cannot_be_found_counts_as_missed_and_is_told(beir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beir, tmp_path / "set")
    judged = read_set(beir)
    corpus = (beir / "corpus.jsonl").read_text().splitlines()[:200]
    (folder / "corpus.jsonl").write_text("\n".join([*corpus, '{"_id": "blank", "title": "", "text": " "}']) + "\n")
    kept = {json.loads(line)["_id"] for line in corpus}
    lost = {id for grades in judged.grades.values() for id in grades} - kept
    found = evaluate(folder, ranks=("bm25",), dims=[PREFIX])
    assert (found.documents, found.empty, found.unreachable) == (200, 1, len(lost))
    assert found.queries == len(judged.queries)
    assert 0 < found.rows[0].recall < len(kept) / 1300 + 0.1
    (folder / "corpus.jsonl").write_text('{"_id": "other", "title": "", "text": "something"}\n')
    with pytest.raises(InvalidInput, match="holds none of the documents that the qrels judge relevant"):
        evaluate(folder, dims=[PREFIX])


@needs_measures
def test_a_fusion_is_asked_for_and_bad_requests_are_refused(beir: Path, kept: Path, found: Evaluation) -> None:
    full = load_encoder("static").dims
    words = evaluate(beir, ranks=("hybrid",), fusion=Fusion(weight=0.0), dims=[full], recall=1.0, database=kept).rows[0]
    bm25 = next(row for row in found.rows if row.rank == "bm25")
    assert words.mrr == pytest.approx(bm25.mrr, abs=0.02)
    for bad in ({"dims": [full + 1]}, {"dims": []}, {"ranks": ("sparse",)}, {"ranks": ()}):
        with pytest.raises(InvalidInput, match=r"dims are from 1|ranks are some of"):
            evaluate(beir, **bad)  # type: ignore[arg-type]


@needs_measures
def test_an_encoder_that_changed_under_its_name_is_refused(
    beir: Path, kept: Path, found: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_encoder("static"), "fingerprint", "another")
    with pytest.raises(Conflict):
        evaluate(beir, dims=[PREFIX], database=kept)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NESTVEC_")}
    kept["COLUMNS"] = "160"  # a table is cut to the terminal's width
    line = [sys.executable, "-m", "nestvec.cli", "eval", *map(str, arguments)]
    return subprocess.run(line, env=kept, capture_output=True, text=True, timeout=120)


@needs_measures
def test_the_command_prints_a_table_or_json_and_draws(
    beir: Path, packed: Path, kept: Path, found: Evaluation, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    ways = ("--rank", "dense,bm25", "--dims", f"{PREFIX}", "--queries", "5", "--db", kept)
    done = command(beir, packed, *ways, "--png", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    assert "nDCG@10" in done.stdout
    assert done.stdout.count("stdlib") == 6
    assert done.stdout.count("mean") == 3
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    as_json = command(beir, *ways, "--json")
    (told,) = json.loads(as_json.stdout)
    assert [(row["rank"], row["search"]) for row in told["rows"]] == [
        ("dense", "exact"), ("dense", "planned"), ("bm25", "words"),
    ]  # fmt: skip
    assert told["fingerprint"] == found.fingerprint


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    for arguments in ((tmp_path / "nowhere",), (tmp_path, "--plan", "soar"), (tmp_path, "--fusion", '{"kind": "x"}')):
        done = command(*arguments)
        assert done.returncode in ((2,) if MEASURES else (1, 2)), done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("nestvec: ")
        assert done.stderr.count("\n") == 1
