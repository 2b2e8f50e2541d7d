"""The passages of the running interpreter's own documentation."""

from __future__ import annotations

import sys

import pytest

from nestvec.engine import stdlib_docs
from nestvec.engine.stdlib_docs import Passage


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    return list(stdlib_docs.passages())


def test_there_are_several_thousand_passages_with_unique_ids(passages: list[Passage]) -> None:
    assert len(passages) > 4_000
    assert len({passage["id"] for passage in passages}) == len(passages)


def test_the_order_is_the_same_at_every_call(passages: list[Passage]) -> None:
    assert list(stdlib_docs.passages()) == passages


def test_ids_number_the_passages_of_a_title_without_gaps(passages: list[Passage]) -> None:
    by_title: dict[str, list[str]] = {}
    for passage in passages:
        by_title.setdefault(passage["title"], []).append(passage["id"])
    for title, ids in by_title.items():
        assert ids == [f"{title}#{number}" for number in range(len(ids))]


def test_every_passage_is_short_enough_and_says_something(passages: list[Passage]) -> None:
    for passage in passages:
        assert len(passage["text"].split()) >= stdlib_docs.MIN_WORDS
        assert len(passage["text"].splitlines()) == 1 or len(passage["text"].split()) <= stdlib_docs.MAX_WORDS


@pytest.mark.parametrize(
    "title",
    [
        "zipfile.ZipFile.open",  # parsed
        "asyncio.events.AbstractEventLoop.run_forever",  # in a submodule
        "math.sqrt",  # inspected
        "builtins.str.join",
        "io.BytesIO.read",  # written in C, known under the public module's name
        "os.listdir",
        "pydoc_data.topics.lambda",
    ],
)
def test_known_names_are_documented(passages: list[Passage], title: str) -> None:
    assert title in {passage["title"] for passage in passages}


def test_every_title_is_inside_its_module(passages: list[Passage]) -> None:
    for passage in passages:
        assert passage["title"] == passage["module"] or passage["title"].startswith(passage["module"] + ".")


def test_private_and_intrusive_modules_are_left_out(passages: list[Passage]) -> None:
    heads = {passage["module"].split(".")[0] for passage in passages}
    assert not heads & {"antigravity", "this", "idlelib", "turtledemo", "test", "lib2to3", "posix"}
    assert not any(part.startswith("_") for passage in passages for part in passage["module"].split("."))


def test_reading_opens_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in stdlib_docs.passages():
        pass
    assert capfd.readouterr() == ("", "")
    assert not {"antigravity", "this", "turtle"} & set(sys.modules)


def test_a_long_paragraph_is_cut_and_short_ones_are_joined() -> None:
    short = "\n\n".join(["five words in this paragraph"] * 8)
    assert len(stdlib_docs._split(short)) == 1
    long = "\n".join(["ten words are in this line of the paragraph here"] * 40)
    assert all(len(text.split()) <= stdlib_docs.MAX_WORDS for text in stdlib_docs._split(long))
    assert " ".join(stdlib_docs._split(long)).split() == long.split()
