"""`nestvec train encoder`, run as users run it: the estimate before an LLM is asked, and the summaries."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from llm_stand_in import StandIn

from nestvec.train.encoder.tables import Passage

COMMAND = [sys.executable, "-m", "nestvec.cli", "train", "encoder"]


def lines_of(passages: list[Passage], folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": p.doc_id, "title": p.title, "text": p.text}) + "\n" for p in passages))
    return path


@pytest.fixture
def texts(few: list[Passage], tmp_path: Path) -> Path:
    return lines_of(few[:8], tmp_path)


def words(llm: StandIn, texts: Path, *more: str) -> list[str]:
    prices = ["--input-price", "2", "--output-price", "8"]
    out = ["--source", str(texts), "--out", str(texts.parent / "run")]
    return [*COMMAND, "generate", *out, "--generator", llm.name, *prices, *more]


def test_without_a_terminal_an_llm_is_asked_only_with_yes(llm: StandIn, texts: Path) -> None:
    refused = subprocess.run(words(llm, texts), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "about to send 8 requests" in refused.stderr
    assert "about 0.02" in refused.stderr
    assert "--yes" in refused.stderr
    assert not llm.rules.bodies
    done = subprocess.run(words(llm, texts, "--yes", "--json"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["step"], summary["pairs"], summary["usage"]["requests"]) == ("generate", 8, 8)
    assert "about to send 8 requests" in done.stderr


@pytest.mark.parametrize(("answer", "code", "asked"), [("n\n", 1, 0), ("y\n", 0, 8)])
def test_at_a_terminal_a_person_is_asked(llm: StandIn, texts: Path, answer: str, code: int, asked: int) -> None:
    terminal, typed = pty.openpty()
    try:
        os.write(terminal, answer.encode())
        done = subprocess.run(words(llm, texts), stdin=typed, capture_output=True, text=True, timeout=60)
    finally:
        os.close(terminal)
        os.close(typed)
    assert (done.returncode, len(llm.rules.bodies)) == (code, asked), done.stderr
    assert "Go on?" in done.stderr
    assert ("pairs: 8" in done.stdout) == (code == 0)


def test_three_steps_follow_each_other_and_judge_by_the_llm(llm: StandIn, texts: Path) -> None:
    run = ["--out", str(texts.parent / "run"), "--json"]
    commands = (
        words(llm, texts, "--yes", "--json"),
        [*COMMAND, "mine", "--candidates", "4", *run],
        [*COMMAND, "relabel", "--judge", llm.name, "--yes", *run],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        last = json.loads(done.stdout)
    assert (last["queries"], last["triples"]) == (8, 8)
    assert last["judges"] == [f"{llm.name}:likelihood", f"{llm.name}:grade"]
    assert 0 <= last["relabelled_share"] <= 1
    asked = len(llm.rules.bodies)
    again = subprocess.run(commands[-1], capture_output=True, text=True, timeout=120)
    assert (json.loads(again.stdout), len(llm.rules.bodies)) == (last, asked)


def test_run_does_all_four_steps_and_none_of_them_twice(few: list[Passage], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from nestvec.engine.encoders import load_encoder

    out, source = lines_of(few, tmp_path).parent / "run", str(tmp_path / "texts.jsonl")
    command = [*COMMAND, "run", "--source", source, "--out", str(out), "--judge", "encoder:static"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    summaries = json.loads(done.stdout)
    assert list(summaries) == ["generate", "mine", "relabel", "train"]
    assert summaries["generate"]["pairs"] == summaries["relabel"]["triples"] == len(few)
    vectors = load_encoder(f"static:{out / 'encoder'}").encode_queries(["open a zip file"])
    assert vectors.shape[0] == 1
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=280)
    assert json.loads(again.stdout) == summaries
