"""What the planner's searches rest on in an evaluation: never the queries that are measured."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import nestvec
from nestvec.engine.calibration import run
from nestvec.engine.encoders import load_encoder
from nestvec.engine.progress import silent
from nestvec.engine.stdlib_docs import passages
from nestvec.evaluation import evaluate
from nestvec.evaluation.files import OTHERS, read_set

DOCUMENTS, ASKED, OTHER = 4400, 20, 130
PREFIX = 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set large enough for plans to be calibrated, with queries of two splits."""
    folder = tmp_path_factory.mktemp("large") / "set"
    folder.mkdir()
    documents = list(islice(passages(), DOCUMENTS))
    chosen = documents[:: DOCUMENTS // (ASKED + OTHER)][: ASKED + OTHER]
    queries = [{"_id": f"q{i}", "text": each["text"][:60], "split": "test" if i < ASKED else "train"}
               for i, each in enumerate(chosen)]  # fmt: skip
    corpus = [{"_id": each["id"], "title": each["title"], "text": each["text"]} for each in documents]
    for name, items in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in items))
    (folder / "qrels.tsv").write_text("".join(f"q{i}\t{each['id']}\t1\n" for i, each in enumerate(chosen)))
    return folder


def test_the_others_are_the_queries_that_are_not_measured(large: Path) -> None:
    whole, few = read_set(large), read_set(large, most=5)
    assert len(whole.queries) == ASKED
    assert len(few.others) == len(set(few.others)) > len(whole.others) > OTHER * 0.9
    for each in (whole, few, read_set(large, "train")):
        assert not {text for _, text in each.queries} & set(each.others)
        assert len(each.others) <= OTHERS
    assert few == read_set(large, most=5)


@pytest.mark.skipif(find_spec("ir_measures") is None, reason="needs nestvec's extra eval")
def test_plans_rest_on_other_queries_and_without_them_on_pieces_of_the_texts(large: Path, tmp_path: Path) -> None:
    kept = tmp_path / "db"
    found = evaluate(large, dims=[PREFIX], database=kept)
    exact, planned = found.rows
    assert exact.basis is None
    assert planned.basis is not None
    count, source = planned.basis.split()
    assert source == "queries"
    assert OTHER / 2 < int(count) <= len(read_set(large).others)  # a calibration measures on a part of its queries
    alone = shutil.copytree(large, tmp_path / "alone" / "set")
    lines = (alone / "queries.jsonl").read_text().splitlines(keepends=True)[:ASKED]
    (alone / "queries.jsonl").write_text("".join(lines))
    stages: set[str] = set()
    again = evaluate(alone, dims=[PREFIX], database=kept, progress=lambda stage, *_: stages.add(stage))
    assert again.rows[1].basis is not None
    assert again.rows[1].basis.endswith(" texts")
    assert not [stage for stage in stages if "assign" in stage], "what is kept was built again"
    assert again.rows[0].ndcg == found.rows[0].ndcg


def test_a_collection_without_an_encoder_is_calibrated_by_pieces_of_its_texts(tmp_path: Path) -> None:
    """With what encodes them; without it, by documents."""
    encoder = load_encoder("static")
    texts = [each["text"] for each in islice(passages(), DOCUMENTS)]
    vectors = encoder.encode_documents(texts)[:, :PREFIX]
    with nestvec.open(tmp_path) as database:
        made = database.create_collection("plain", dims=PREFIX, bm25=True)
        made.build([nestvec.engine.intake.Batch(0, [str(i) for i in range(len(texts))], vectors, texts)])
        before = made.calibration()
        assert before is not None
        assert before.source == "documents"
        asked: list[str] = []

        def encode(pieces: list[str]) -> np.ndarray:
            asked.extend(pieces)
            return encoder.encode_queries(pieces)[:, :PREFIX]

        after = run.calibrate(made.part, None, encode, silent)
    assert after is not None
    assert after.source == "texts"
    words = " ".join(texts)
    assert all(piece.split()[0] in words for piece in asked[:50])
