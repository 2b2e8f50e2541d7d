"""Step 3, `relabel`: two ways of one LLM over real HTTP, fused; encoders and cross-encoders as teachers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import llm_stand_in
import numpy as np
import pytest
from llm_stand_in import Body, StandIn

from nestvec.engine.encoders import load_encoder
from nestvec.errors import InvalidInput, NotFound
from nestvec.train.encoder.generate import Asking, Generation, generate
from nestvec.train.encoder.llm import Estimate
from nestvec.train.encoder.mine import Mining, mine
from nestvec.train.encoder.relabel import Relabelling, fuse, ranks, relabel
from nestvec.train.encoder.tables import Passage, read_passages, rows, write
from nestvec.train.files import Row


@pytest.fixture
def mined(few: list[Passage], tmp_path: Path) -> Path:
    """A folder where generate and mine have run: 12 queries with 6 candidates each, or 7."""
    generate(tmp_path, few, Generation("extract", limit=6, each=2))
    mine(tmp_path, Mining(candidates=6, recall=1.0))
    return tmp_path


def judged(folder: Path) -> list[Row]:
    return list(rows(folder, "judged"))


def test_ranks_share_places_and_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    assert ranks([0.1, 3.0, 0.1, -1.0]) == [2.5, 1.0, 2.5, 4.0]
    assert ranks([5.0, 5.0, 5.0]) == [2.0, 2.0, 2.0]
    assert fuse([[3.0, 2.0, 1.0]]) == pytest.approx([1 / 61, 1 / 62, 1 / 63])
    both = fuse([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])
    assert both == pytest.approx([1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])


def test_an_llm_judges_in_two_ways_and_their_ranks_are_fused(llm: StandIn, mined: Path) -> None:
    summary = relabel(mined, Relabelling((llm.name,), count=2, keep_seed=False))
    found, passages = judged(mined), read_passages(mined)
    assert summary["judges"] == [f"{llm.name}:likelihood", f"{llm.name}:grade"]
    by_id = {pair["id"]: pair for pair in rows(mined, "pairs")}
    for row, candidates in zip(found, rows(mined, "candidates"), strict=True):
        query = by_id[row["id"]]["query"]
        assert sorted(row["doc_ids"]) == sorted(candidates["doc_ids"])
        likelihoods, grades = row["scores"]
        for doc_id, likelihood, grade in zip(row["doc_ids"], likelihoods, grades, strict=True):
            passage = passages[doc_id]
            shown = f"Title: {passage.title or 'none'}\nPassage: {' '.join(passage.text.split())}"
            assert grade == pytest.approx(3 * llm_stand_in.shared(query, shown), abs=1e-6), "the expected grade"
            costs = [-1.0 if word.lower() in shown.lower() else -9.0 for word in query.split()]
            assert likelihood == pytest.approx(sum(costs)), "the query's tokens and no others"
        assert row["fused"] == pytest.approx(fuse([likelihoods, grades]))
        assert row["fused"] == sorted(row["fused"], reverse=True)
        assert (row["positive"], row["negatives"]) == (row["doc_ids"][0], row["doc_ids"][:-3:-1])
        assert row["seed"] == by_id[row["id"]]["doc_id"]
    share = np.mean([row["positive"] != row["seed"] for row in found])
    assert summary["relabelled_share"] == pytest.approx(share, abs=1e-4)
    asked = sum(len(row["doc_ids"]) for row in found)
    assert len(llm.rules.bodies) == 2 * asked + 2, "and one of each way to see what the server can"


def test_triples_hold_the_texts_and_the_first_judge_s_scores(llm: StandIn, mined: Path) -> None:
    relabel(mined, Relabelling((llm.name, "encoder:static"), count=3))
    passages = read_passages(mined)
    for triple, row in zip(rows(mined, "triples"), judged(mined), strict=True):
        assert row["judges"][0] == "encoder:static", "what runs here comes first"
        assert (triple["positive_id"], triple["negative_ids"]) == (row["positive"], row["negatives"])
        assert triple["positive_text"] == passages[row["positive"]].text
        assert triple["negative_titles"] == [passages[each].title for each in row["negatives"]]
        score = dict(zip(row["doc_ids"], row["scores"][0], strict=True))
        assert triple["teacher_scores"] == [score[each] for each in (row["positive"], *row["negatives"])]


@pytest.mark.parametrize(("echo", "top", "ways"), [(False, 20, 1), (True, 5, 2), (False, None, 1)])
def test_a_server_is_asked_in_the_ways_it_knows(llm: StandIn, mined: Path, echo: bool, top: int, ways: int) -> None:
    llm.rules.echo, llm.rules.top = echo, top
    summary = relabel(mined, Relabelling((llm.name,)))
    assert len(summary["judges"]) == ways
    grades = np.array([score for row in judged(mined) for score in row["scores"][-1]])
    assert (grades >= 0).all()
    if top is None:
        assert set(grades) <= {0.0, 1.0, 2.0, 3.0}, "answered grades"
    else:
        assert len(set(grades.round(6)) - {0.0, 1.0, 2.0, 3.0}) > 0, "expected grades"


def test_tokens_that_do_not_fit_the_words_are_counted_by_their_offsets(llm: StandIn, mined: Path) -> None:
    def answer(body: Body) -> Body:
        if "prompt" not in body:
            return llm_stand_in.graded(body, llm.rules)[1]
        start = body["prompt"].rindex("Query:") + len("Query:")
        offsets = [0, start - 3, start + 1, len(body["prompt"])]
        given = {"tokens": ["?"] * 4, "token_logprobs": [None, -1.0, -2.0, -4.0], "text_offset": offsets}
        return {"choices": [{"logprobs": given}]}

    llm.rules.answer = answer
    relabel(mined, Relabelling((llm.name,)))
    assert {score for row in judged(mined) for score in row["scores"][0]} == {-3.0}, "without the token behind the end"


def test_a_stopped_judge_goes_on_and_is_asked_nothing_twice(llm: StandIn, mined: Path) -> None:
    def stop(step: str, done: int, total: int | None) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relabel(mined, Relabelling((llm.name,)), asking=Asking(at_once=1), progress=stop)
    half = len(llm.rules.bodies)
    assert half >= 4 * 6
    llm.rules.faults = [llm_stand_in.status(500), llm_stand_in.cut]
    summary = relabel(mined, Relabelling((llm.name,)), asking=Asking(at_once=3))
    bodies = [json.dumps(body, sort_keys=True) for body in llm.rules.bodies]
    assert len(bodies) - len(set(bodies)) <= 2 + 1, "the two faults, and what was under way"
    asked = len(bodies)
    assert relabel(mined, Relabelling((llm.name,))) == summary
    other = relabel(mined, Relabelling((llm.name,), negatives="sampled"))
    assert len(llm.rules.bodies) == asked, "other negatives need no other judgement"
    assert other["relabelled_share"] == summary["relabelled_share"]


def test_a_candidate_that_a_judge_cannot_use_comes_last(llm: StandIn, mined: Path) -> None:
    def answer(body: Body) -> Body:
        shown = body["messages"][-1]["content"] if "messages" in body else ""
        return llm_stand_in.chat("it depends" if "json" in shown else "2")

    llm.rules.answer, llm.rules.echo = answer, False
    relabel(mined, Relabelling((llm.name,)))
    scores = {score for row in judged(mined) for score in row["scores"][0]}
    assert scores == {-1.0, 2.0}


def test_negatives_are_sampled_from_the_rest_and_a_control_keeps_the_seed(mined: Path) -> None:
    relabel(mined, Relabelling(("encoder:static",), negatives="sampled", count=4, seed=1))
    first = judged(mined)
    for row in first:
        assert len(set(row["negatives"])) == 4
        assert set(row["negatives"]) <= set(row["doc_ids"]) - {row["positive"]}
    relabel(mined, Relabelling(("encoder:static",), negatives="sampled", count=4, seed=2))
    assert [row["negatives"] for row in judged(mined)] != [row["negatives"] for row in first]
    summary = relabel(mined, Relabelling(("encoder:static",), keep_seed=True))
    assert all(row["positive"] == row["seed"] for row in judged(mined))
    assert summary["positive_is"] == "the seed"
    assert any(row["doc_ids"][0] != row["seed"] for row in judged(mined))


def test_the_seed_stays_for_queries_of_the_passage_s_own_words_and_not_for_an_llm_s(mined: Path) -> None:
    judge = Relabelling(("encoder:static",))
    assert relabel(mined, judge)["positive_is"] == "the seed"
    assert relabel(mined, replace(judge, keep_seed=False))["positive_is"] == "the best by fused rank"
    write(mined, "pairs", [{**pair, "generator": "openai:http://127.0.0.1/v1#m"} for pair in rows(mined, "pairs")])
    assert relabel(mined, judge)["positive_is"] == "the best by fused rank"
    assert all(row["positive"] == row["doc_ids"][0] for row in judged(mined))


def test_an_encoder_judges_by_its_cosines(mined: Path) -> None:
    relabel(mined, Relabelling(("encoder:static",)))
    encoder, passages = load_encoder("static"), read_passages(mined)
    for row, pair in zip(judged(mined), rows(mined, "pairs"), strict=True):
        query = encoder.encode_queries([pair["query"]])[0]
        documents = encoder.encode_documents([passages[each].document for each in row["doc_ids"]])
        np.testing.assert_allclose(row["scores"][0], documents @ query, atol=1e-5)
        assert row["scores"][0] == sorted(row["scores"][0], reverse=True)


def test_the_estimate_is_of_all_judges_together_and_comes_once(llm: StandIn, mined: Path) -> None:
    seen: list[Estimate] = []
    relabel(mined, Relabelling((llm.name, "encoder:static")), confirm=seen.append)
    (estimate,) = seen
    assert estimate.requests == len(llm.rules.bodies) - 2


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        ((), "at least one"),
        (("encoder:static",) * 2, "none twice"),
        (("llama",), "a judge is"),
        (("teacher:",), "a judge is"),
    ],
)
def test_judges_that_cannot_be_used_are_refused(judges: tuple[str, ...], words: str, mined: Path) -> None:
    with pytest.raises(InvalidInput, match=words):
        relabel(mined, Relabelling(judges))


def test_candidates_of_other_pairs_are_refused(few: list[Passage], mined: Path) -> None:
    generate(mined, few, Generation("extract", limit=5))
    with pytest.raises(InvalidInput, match="run mine again"):
        relabel(mined, Relabelling(("encoder:static",)))


def test_a_cross_encoder_reads_query_and_passage_together(mined: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    folder = tiny_cross_encoder(tmp_path / "cross")
    relabel(mined, Relabelling((f"teacher:{folder}",)))
    from sentence_transformers import CrossEncoder

    model, passages = CrossEncoder(str(folder), local_files_only=True), read_passages(mined)
    for row, pair in zip(judged(mined), rows(mined, "pairs"), strict=True):
        asked = [(pair["query"], passages[each].document) for each in row["doc_ids"]]
        np.testing.assert_allclose(row["scores"][0], model.predict(asked, show_progress_bar=False), atol=1e-5)
        assert set(row["negatives"]) == set(row["doc_ids"]) - {row["positive"]}, "all that the teacher scored"


def tiny_cross_encoder(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def test_a_teacher_that_is_not_on_this_machine_is_said_and_not_fetched(mined: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(NotFound, match="downloads none"):
        relabel(mined, Relabelling(("teacher:no-such-model",)))
