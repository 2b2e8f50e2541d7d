"""Step 1, `generate`: queries from an LLM over real HTTP, with its faults, and from the passages' own words."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import llm_stand_in
import pytest
from llm_stand_in import StandIn

from nestvec.errors import Busy, EncoderUnavailable, InvalidInput
from nestvec.train.encoder.extract import Corpus, extract
from nestvec.train.encoder.generate import ANSWERS, Asking, Generation, generate
from nestvec.train.encoder.llm import Estimate
from nestvec.train.encoder.tables import Passage, read_passages, rows
from nestvec.train.files import Journal

SECRET = "sk-very-secret-0123456789"


def test_an_llm_names_a_task_and_a_query_for_each_passage(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    summary = generate(tmp_path, few, Generation(llm.name))
    pairs = list(rows(tmp_path, "pairs"))
    assert [pair["doc_id"] for pair in pairs] == [passage.doc_id for passage in few]
    assert list(read_passages(tmp_path).values()) == few
    assert {pair["task"] for pair in pairs} == {"question answering", "fact checking", "keyword search"}
    for pair, passage in zip(pairs, few, strict=True):
        assert set(pair["query"].split()) <= set(passage.text.lower().replace("_", " ").split()) | set(
            llm_stand_in.words(passage.text)
        )
        assert (pair["title"], pair["text"], pair["generator"]) == (passage.title, passage.text, llm.name)
    assert (summary["pairs"], summary["share_with_a_query"], summary["tasks"]) == (len(few), 1.0, 3)
    assert summary["usage"]["requests"] == len(llm.rules.bodies) == len(few)
    assert summary["usage"]["input_tokens"] == 100 * len(few)
    first = llm.rules.bodies[0]
    assert (first["model"], first["temperature"]) == ("stand-in", 0.7)
    assert [each["role"] for each in first["messages"]] == ["system", *["user", "assistant"] * 4, "user"]


def test_what_was_answered_is_never_asked_again(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    generate(tmp_path, few, Generation(llm.name, limit=10))
    assert len(llm.rules.bodies) == 10
    again = generate(tmp_path, few, Generation(llm.name, limit=10))
    assert (len(llm.rules.bodies), again["pairs"]) == (10, 10)
    more = generate(tmp_path, few, Generation(llm.name, limit=15))
    assert (len(llm.rules.bodies), more["pairs"], more["usage"]["answered_before"]) == (15, 15, 10)
    generate(tmp_path, few, Generation(llm.name, limit=15, temperature=0.1))
    assert len(llm.rules.bodies) == 30, "another temperature is another question"


def test_several_queries_of_a_passage_differ(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    generate(tmp_path, few, Generation(llm.name, limit=12, each=3))
    pairs = list(rows(tmp_path, "pairs"))
    assert len({pair["id"] for pair in pairs}) == len(pairs) == 36
    assert len({(pair["doc_id"], pair["query"]) for pair in pairs}) > 30


def test_faults_of_a_server_are_overcome(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    llm.rules.faults = [
        llm_stand_in.status(500),
        llm_stand_in.cut,
        llm_stand_in.no_json,
        llm_stand_in.useless,
        llm_stand_in.status(429, Retry_After="1"),
        llm_stand_in.status(503),
    ]
    begun = time.monotonic()
    summary = generate(tmp_path, few, Generation(llm.name, limit=8), asking=Asking(at_once=1))
    assert summary["pairs"] == 8
    assert time.monotonic() - begun > 1, "a Retry-After is honoured"
    assert len(llm.rules.bodies) == 8 + 6
    assert summary["usage"]["unusable"] == 2
    seeds = Counter(body["seed"] for body in llm.rules.bodies)
    assert len(seeds) == 3, "an answer that cannot be used is asked for with another seed"


def test_a_server_that_wants_max_completion_tokens_gets_them(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    generate(tmp_path / "older", few, Generation(llm.name, limit=12))
    llm.rules.bodies.clear()
    llm.rules.newer = True
    summary = generate(tmp_path / "newer", few, Generation(llm.name, limit=12), asking=Asking(at_once=3))
    asked = [body for body in llm.rules.bodies if "max_completion_tokens" in body]
    assert len(asked) == summary["pairs"] == 12
    assert not any("max_tokens" in body for body in asked)
    assert len(llm.rules.bodies) - len(asked) <= 3, "it went on asking with the word that was refused"
    assert list(rows(tmp_path / "newer", "pairs")) == list(rows(tmp_path / "older", "pairs"))


def test_a_pause_that_the_server_asks_for_holds_every_thread(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    llm.rules.faults = [llm_stand_in.status(429, Retry_After="1")]
    generate(tmp_path, few, Generation(llm.name, limit=12), asking=Asking(at_once=2))
    times = llm.rules.times
    assert len(times) == 13
    assert sum(each < times[0] + 0.9 for each in times) <= 3, "only what was under way came before the pause was over"


def test_a_passage_without_a_usable_answer_is_left_out_and_not_asked_again(
    llm: StandIn, few: list[Passage], tmp_path: Path
) -> None:
    llm.rules.faults = [llm_stand_in.useless] * 3
    summary = generate(tmp_path, few, Generation(llm.name, limit=5), asking=Asking(at_once=1))
    assert (summary["pairs"], summary["share_with_a_query"], summary["usage"]["unusable"]) == (4, 0.8, 3)
    generate(tmp_path, few, Generation(llm.name, limit=6), asking=Asking(at_once=1))
    assert len(llm.rules.bodies) == 3 + 4 + 1


def test_a_refused_passage_does_not_stop_the_others_but_a_refusal_of_all_does(
    llm: StandIn, few: list[Passage], tmp_path: Path
) -> None:
    too_long = llm_stand_in.status(400, "the prompt is too long")
    llm.rules.faults = [too_long]
    summary = generate(tmp_path / "one", few, Generation(llm.name, limit=6), asking=Asking(at_once=1))
    assert (summary["pairs"], summary["usage"]["refused"]) == (5, 1)
    before = len(llm.rules.bodies)
    llm.rules.faults = [too_long, too_long]
    again = generate(tmp_path / "one", few, Generation(llm.name, limit=7), asking=Asking(at_once=1))
    assert again["usage"]["refused"] == 2
    assert len(llm.rules.bodies) == before + 2, "the first, which was refused before any answer, and the new one"
    llm.rules.faults = [too_long] * 99
    with pytest.raises(InvalidInput, match="too long"):
        generate(tmp_path / "all", few, Generation(llm.name), asking=Asking(at_once=1))
    assert len(llm.rules.faults) == 94, "five are enough"


def test_a_server_that_gives_up_leaves_what_was_answered(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    llm.rules.faults = [llm_stand_in.status(401, f"bad key {SECRET}")]
    with pytest.raises(EncoderUnavailable, match="NESTVEC_OPENAI_API_KEY"):
        generate(tmp_path, few, Generation(llm.name), asking=Asking(at_once=1))
    generate(tmp_path, few, Generation(llm.name, limit=5))
    llm.rules.faults = [llm_stand_in.status(500)] * 10_000
    with pytest.raises(EncoderUnavailable, match=r"gave up within 0\.2 s"):
        generate(tmp_path, few, Generation(f"{llm.name}?deadline=.2"))
    llm.rules.faults = []
    assert generate(tmp_path, few, Generation(llm.name, limit=6))["usage"]["answered_before"] == 5


def test_the_key_is_sent_and_stands_in_no_file(
    llm: StandIn, few: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTVEC_OPENAI_API_KEY", SECRET)
    generate(tmp_path, few, Generation(llm.name, limit=2))
    assert {head["authorization"] for head in llm.rules.headers} == {f"Bearer {SECRET}"}
    for path in tmp_path.iterdir():
        assert SECRET.encode() not in path.read_bytes()


def test_the_estimate_comes_first_and_can_stop_it(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    seen: list[Estimate] = []

    def refuse(estimate: Estimate) -> None:
        seen.append(estimate)
        raise InvalidInput("too dear")

    with pytest.raises(InvalidInput, match="too dear"):
        generate(tmp_path, few, Generation(llm.name, limit=7), confirm=refuse)
    assert not llm.rules.bodies
    (estimate,) = seen
    assert estimate.requests == 7
    generate(tmp_path, few, Generation(llm.name, limit=7))
    sent = sum(len(each["content"]) for body in llm.rules.bodies for each in body["messages"])
    assert estimate.input_tokens == pytest.approx(sent / 4, rel=0.05)
    assert estimate.price(2.0, 8.0) == pytest.approx((2 * estimate.input_tokens + 8 * 7 * 160) / 1e6)
    assert estimate.price(None, None) is None
    generate(tmp_path, few, Generation(llm.name, limit=7), confirm=refuse)  # nothing is left to ask


def test_requests_keep_to_their_rate_and_number(llm: StandIn, few: list[Passage], tmp_path: Path) -> None:
    llm.rules.seconds = 0.05
    generate(tmp_path / "a", few, Generation(llm.name, limit=24), asking=Asking(at_once=3))
    assert llm.rules.most_at_once == 3
    begun = time.monotonic()
    generate(tmp_path / "b", few, Generation(llm.name, limit=9), asking=Asking(per_minute=600, at_once=4))
    assert time.monotonic() - begun >= 0.8, "8 gaps of a tenth of a second"


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on(llm: StandIn, few: list[Passage], tmp_path: Path, stop: signal.Signals) -> None:
    source, out = tmp_path / "few.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps({"id": p.doc_id, "title": p.title, "text": p.text}) + "\n" for p in few))
    command = [sys.executable, "-m", "nestvec.cli", "train", "encoder", "generate", "--source", str(source)]
    command += ["--out", str(out), "--generator", llm.name, "--at-once", "2", "--yes", "--json"]
    llm.rules.seconds = 0.05
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while len(llm.rules.bodies) < 12:
            assert time.monotonic() < deadline
            assert running.poll() is None, running.stderr.read() if running.stderr else ""
            time.sleep(0.01)
        running.send_signal(stop)
        said = running.communicate(timeout=20)
    assert running.returncode == (-9 if stop == signal.SIGKILL else 130)
    assert "Traceback" not in said[1]
    with (out / ANSWERS).open("ab") as file:
        file.write(b'["0123456789')  # what a kill in the middle of a write leaves
    llm.rules.seconds = 0.0
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["pairs"] == len(few)
    assert summary["usage"]["answered_before"] >= 8
    asked = Counter(json.dumps(body, sort_keys=True) for body in llm.rules.bodies)
    assert sum(asked.values()) - len(asked) <= 2, "only what was under way when it stopped"
    assert len(asked) == len(few)


def test_the_journal_drops_half_a_line_and_refuses_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    kept = Journal(path)
    kept.put("a", [1, "x"])
    kept.put("b", None)
    kept.close()
    with path.open("ab") as file:
        file.write(b'["c", 3')
    again = Journal(path)
    with pytest.raises(Busy, match="another process"):
        Journal(path)
    assert again.known == {"a": [1, "x"], "b": None}
    again.put("d", 4)
    again.close()
    assert path.read_bytes() == b'["a",[1,"x"]]\n["b",null]\n["d",4]\n'
    path.write_bytes(b'["a",1]\nrubbish\n')
    with pytest.raises(InvalidInput, match="line 2"):
        Journal(path)


def test_extract_takes_a_passage_s_own_words(stdlib: list[Passage], tmp_path: Path) -> None:
    summary = generate(tmp_path, stdlib, Generation("extract", limit=600, each=4))
    pairs = list(rows(tmp_path, "pairs"))
    assert set(summary["by"]) == {f"extract:{kind}" for kind in ("title", "sentence", "heading", "span")}
    assert summary["passages"] == len(stdlib)
    assert len({pair["doc_id"] for pair in pairs}) == 600
    assert len({(pair["doc_id"], pair["query"]) for pair in pairs}) == len(pairs)
    for pair in pairs:
        whole = " ".join(f"{pair['title']} {pair['text']}".split())
        if pair["generator"] == "extract:span":
            assert 3 <= len(pair["query"].split()) <= 8
            assert all(word in whole for word in pair["query"].split())
        else:
            assert pair["query"] in whole


def test_a_salient_span_is_what_others_do_not_say() -> None:
    common = [Passage(str(i), "", "The function returns the value of the given object.") for i in range(50)]
    text = "The function returns the value of the given object. The marzipan zeppelin hovers over Lübeck."
    odd = Passage("odd", "", text)
    found = dict(extract(odd, Corpus.of([*common, odd]), 4))
    assert found["sentence"] == "The function returns the value of the given object."
    assert found["span"] == "marzipan zeppelin hovers over Lübeck"


def test_headings_are_found_in_three_ways_of_writing_them_unless_many_have_them() -> None:
    text = "# Trains\n\nThey run.\n\nNight trains\n------------\n\nThey run late.\n\nExample:\n\n  run()\n"
    passages = [Passage("a", "Rail", text), Passage("b", "Road", "Example:\n\n  drive()\n\nCars need fuel and care.")]
    found = extract(passages[0], Corpus.of(passages), 8)
    assert [query for kind, query in found if kind == "heading"] == ["Trains", "Night trains"]


@pytest.mark.parametrize(
    "name", ["gpt", "openai:http://127.0.0.1:1/v1", "openai:nowhere#m", "openai:http://u:p@h/v1#m"]
)
def test_a_generator_that_cannot_be_used_is_refused(name: str, few: list[Passage], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        generate(tmp_path, few, Generation(name))
