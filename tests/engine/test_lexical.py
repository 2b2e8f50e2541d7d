"""BM25 finds what a plain BM25 finds, at once and under every filter, and never loses step with the records."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import apsw
import numpy as np
import pytest
from documentation import python_passages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nestvec
from nestvec import Batch, Collection, Database, Record
from nestvec.engine import lexical
from nestvec.engine.schema import CollectionConfig
from nestvec.errors import Damaged, InvalidInput

DIMS = 8
QUERIES = (
    "open a file for reading",
    "Parse the arguments given on the command line",
    "what does the garbage collector do with reference cycles?",
    "regular expression flags",
    "thread safe queue with priorities",
    "convert a datetime to UTC",
    "the",
    "the of a is to in and that it for",
    "zzzunheardof",
    "naive cafe",
)


def vector_of(text: str) -> np.ndarray:
    """A vector that differs from text to text."""
    return np.bincount(np.frombuffer(text.encode(), np.uint8) % DIMS, minlength=DIMS).astype(np.float32) + 1


def record(id: str, text: str, **payload: object) -> Record:
    return Record(id, vector_of(text), payload or None, text)


def catalog_of(database: Database) -> Path:
    return database.path / "collections" / "000001" / "catalog.sqlite"


def check_index(database: Database) -> None:
    """FTS5's own comparison of its index with every text."""
    connection = apsw.Connection(str(catalog_of(database)))
    connection.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    connection.close()


class PlainBM25:
    """BM25 with k1 1.2 and b .75 over whole lists of terms; the terms are the tokenizer's."""

    def __init__(self, texts: dict[str, str]) -> None:
        connection = apsw.Connection(":memory:")
        self._tokenize = connection.fts5_tokenizer(lexical.TOKENIZER[0], list(lexical.TOKENIZER[1:]))
        self.terms = {id: Counter(self.terms_of(text)) for id, text in texts.items()}
        self.counts = Counter(term for terms in self.terms.values() for term in terms)
        self.mean = sum(terms.total() for terms in self.terms.values()) / len(texts)

    def terms_of(self, text: str) -> list[str]:
        found = self._tokenize(text.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False)
        return [term for (term,) in found]

    def scores(self, query: str) -> dict[str, float]:
        """id -> score of every text that holds a word of the query."""
        wanted, n = set(self.terms_of(query)), len(self.terms)
        idf = {term: max(1e-6, math.log((n - self.counts[term] + 0.5) / (self.counts[term] + 0.5))) for term in wanted}
        found = {}
        for id, terms in self.terms.items():
            shared = wanted & terms.keys()
            length = 1.2 * (0.25 + 0.75 * terms.total() / self.mean)
            if shared:
                found[id] = sum(idf[term] * terms[term] * 2.2 / (terms[term] + length) for term in shared)
        return found


def check_against_plain(collection: Collection, texts: dict[str, str], queries: Sequence[str] = QUERIES) -> None:
    plain = PlainBM25(texts)
    for query in queries:
        wanted = plain.scores(query)
        for k in (1, 10, 1000):
            hits = collection.search(text=query, k=k, rank="bm25")
            assert len(hits) == min(k, len(wanted))
            best = sorted(wanted.values(), reverse=True)[: len(hits)]
            np.testing.assert_allclose([hit.score for hit in hits], best, rtol=1e-4, atol=2e-4)
            for hit in hits:
                assert hit.score == pytest.approx(wanted[hit.id], rel=1e-4, abs=2e-4)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {passage["id"]: passage["text"] for passage in python_passages()[:3000]}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with nestvec.open(tmp_path / "db") as opened:
        yield opened


def test_the_order_is_plain_bm25_s_through_every_kind_of_write(database: Database, texts: dict[str, str]) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    items = list(texts.items())
    built = items[:2000]
    collection.build(
        [Batch(0, [id for id, _ in built], np.stack([vector_of(t) for _, t in built]), [t for _, t in built])]
    )
    check_against_plain(collection, dict(built))
    collection.upsert([record(id, text) for id, text in items[2000:]])
    check_against_plain(collection, texts)
    collection.seal()
    changed = texts | {id: f"sealed and replaced: {texts[id]}" for id, _ in items[::7]}
    collection.upsert([record(id, changed[id]) for id, _ in items[::7]])
    gone = [id for id, _ in items[::5]]
    assert collection.delete(gone) == len(gone)
    left = {id: text for id, text in changed.items() if id not in set(gone)}
    check_against_plain(collection, left)
    collection.compact()
    check_against_plain(collection, left)
    collection.verify()
    check_index(database)


def test_ties_come_in_the_order_of_writing(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([record(f"filler{i}", f"nothing here {i}") for i in range(30)])
    collection.upsert([record(str(i), "the same words") for i in (3, 1, 2)])
    collection.seal()
    collection.upsert([record("0", "the same words")])
    assert [hit.id for hit in collection.search(text="same", rank="bm25")] == ["3", "1", "2", "0"]


def test_records_without_text_are_never_found_by_words(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([Record("bare", np.ones(DIMS)), record("worded", "some words")])
    hits = collection.search(text="words", rank="bm25")
    assert [hit.id for hit in hits] == ["worded"]
    assert hits.plan is None
    assert collection.search(text="? !", rank="bm25").hits == []


def test_a_word_that_was_never_seen_before_is_found_at_once(database: Database) -> None:
    """Counts of terms are remembered; a word must not stay unknown because it once was."""
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([record(f"common{i}", f"everywhere {i}") for i in range(1500)])
    for number in range(5):
        word = f"novel{number}"
        assert len(collection.search(text=f"{word}", rank="bm25")) == 0
        collection.upsert([record(word, f"everywhere and {word}")])
        assert collection.search(text=f"everywhere {word}", rank="bm25")[0].id == word
        assert len(collection.search(text=f"everywhere {word}", k=1000, rank="bm25")) == 1000


def test_a_long_question_over_common_words_reads_a_bounded_part_of_the_index(
    database: Database, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([record(id, text) for id, text in texts.items()])
    query = "return the value of a string object if the method is called with a priority queue"
    plain = PlainBM25(texts)
    monkeypatch.setattr(lexical, "MAX_POSTINGS", plain.counts["prioriti"] + plain.counts["queue"])
    rare = plain.scores("priority queue")
    hits = collection.search(text=query, k=10, rank="bm25")
    np.testing.assert_allclose([hit.score for hit in hits], sorted(rare.values(), reverse=True)[:10], rtol=1e-4)
    # Where the rare words are in fewer texts than asked for, all words are searched after all.
    assert len(collection.search(text=query, k=1000, rank="bm25")) == min(1000, len(plain.scores(query)))


def test_strings_of_the_payload_are_searched_too(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25_fields=["title", "author.last-name"])
    assert collection.config.bm25
    author = {"last-name": "Çelik", "first": "unlisted"}
    collection.upsert([record("a", "plain text", title="A Fine Heading", author=author)])
    collection.build([Batch(0, ["b"], np.ones((1, DIMS)), ["more text"], [{"title": "headings", "author": "text"}])])
    collection.upsert([record("c", "numbers", title=7), record("d", "lists", title=["heading"])])
    found = {word: {hit.id for hit in collection.search(text=word, rank="bm25")} for word in ("heading", "celik", "7")}
    assert found == {"heading": {"a", "b"}, "celik": {"a"}, "7": set()}
    assert len(collection.search(text="unlisted", rank="bm25")) == 0
    collection.delete(["a"])
    assert {hit.id for hit in collection.search(text="heading celik", rank="bm25")} == {"b"}
    collection.verify()
    check_index(database)


@pytest.mark.parametrize("rank", ["bm25", "hybrid"])
def test_a_filter_leaves_as_many_hits_as_match(database: Database, texts: dict[str, str], rank: str) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    records = [record(id, text, n=n) for n, (id, text) in enumerate(texts.items())]
    collection.upsert(records[:1500])
    collection.seal()
    collection.upsert(records[1500:])
    collection.delete([record.id for record in records[::9]])
    alive = {record.id: n for n, record in enumerate(records) if n % 9}
    query = "return the value of the object"
    wanted = PlainBM25({id: texts[id] for id in alive}).scores(query)
    for low, high in ((0, 3000), (1400, 1600), (2000, 2001), (0, 4), (9, 10), (5000, 6000)):
        matching = {id for id, n in alive.items() if low <= n < high}
        if rank == "bm25":
            matching &= wanted.keys()
        hits = collection.search(
            np.ones(DIMS) if rank == "hybrid" else None,
            text=query,
            k=50,
            rank=rank,  # type: ignore[arg-type]
            filter={"field": "n", "range": {"gte": low, "lt": high}},
        )
        assert len(hits) == min(50, len(matching))
        assert {hit.id for hit in hits} <= matching
        if rank == "bm25":
            best = sorted((wanted[id] for id in matching), reverse=True)[:50]
            np.testing.assert_allclose([hit.score for hit in hits], best, rtol=1e-4, atol=2e-4)


HOSTILE = (
    "",
    '"',
    '""',
    "a OR",
    "AND AND",
    "NOT",
    "NEAR(a b, 3)",
    "text: x",
    "{text} : x",
    "^start",
    "pre*",
    "a + b",
    "(((",
    "x' OR 1=1 --",
    "\x00",
    "a\x00b",
    "e\u0301\u0301",
    "\u0301",
    "\U0001f600",
    "日本語 テキスト",
    "Straße İstanbul ﬁne Ⅷ",
    "-",
    "?1 :x @y $z",
    "a" * 40_000,
    "word " * 30_000,
    " ".join(f"w{i}" for i in range(5_000)),
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    with nestvec.open(tmp_path_factory.mktemp("hostile") / "db") as database:
        collection = database.create_collection("c", dims=DIMS, bm25=True)
        collection.upsert([record(f"h{i}", text) for i, text in enumerate(HOSTILE)])
        yield collection


@pytest.mark.parametrize("position", range(len(HOSTILE)))
def test_any_text_is_a_query(hostile: Collection, position: int) -> None:
    text = HOSTILE[position]
    hits = hostile.search(text=text, k=100, rank="bm25")
    if any(character.isalnum() for character in text) and len(text) < lexical.MAX_QUERY_CHARACTERS:
        assert f"h{position}" in {hit.id for hit in hits}
    assert len(hostile.search(np.ones(DIMS), text=text, k=100, rank="hybrid")) == len(HOSTILE)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"*()^:+-{}'), max_size=60))
def test_every_text_is_found_by_itself(hostile: Collection, text: str) -> None:
    hostile.upsert([record("mine", text)])
    hits = hostile.search(text=text, k=1000, rank="bm25")
    terms = PlainBM25({"mine": text, "other": "x"}).terms_of(text)
    assert ("mine" in {hit.id for hit in hits}) == bool(terms)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"text": "x", "rank": "words"}, "one of dense, bm25, hybrid; got 'words'"),
        ({"rank": "bm25"}, "needs the query's text"),
        ({"vector": np.ones(DIMS), "rank": "hybrid"}, "needs the query's text"),
        ({"vector": np.ones(DIMS), "text": "x", "rank": "bm25"}, "send no vector"),
        ({"text": "\ud800", "rank": "bm25"}, "lone surrogate"),
        ({"text": "x", "rank": "bm25", "k": 0}, "k"),
        ({"text": "x", "rank": "hybrid"}, "has no encoder"),
        ({"text": "x", "rank": "bm25", "fusion": nestvec.Fusion()}, "a fusion is for rank='hybrid'"),
    ],
)
def test_questions_that_make_no_sense_are_refused(hostile: Collection, query: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        hostile.search(**query)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [["a b"], ["a'"], ['a"'], ["a..b"], [""], ["x" * 101], ["a", "a"], [f"f{i}" for i in range(17)]]
)
def test_fields_with_other_names_are_refused(database: Database, fields: list[str]) -> None:
    with pytest.raises(InvalidInput, match="bm25_fields"):
        database.create_collection("c", dims=DIMS, bm25_fields=fields)


def test_bm25_comes_with_an_encoder_and_is_optional(database: Database) -> None:
    assert database.create_collection("texts", encoder="static").config.bm25
    assert not database.create_collection("vectors", dims=DIMS).config.bm25
    quiet = database.create_collection("quiet", encoder="static", bm25=False)
    quiet.upsert([Record("a", text="some words")])
    assert [hit.id for hit in quiet.search(text="words")] == ["a"]
    with pytest.raises(InvalidInput, match="bm25=True"):
        quiet.search(text="words", rank="hybrid")
    with pytest.raises(InvalidInput, match="bm25_fields"):
        CollectionConfig(DIMS, bm25_fields=("title",))


def test_a_collection_of_an_earlier_release_says_what_to_do(database: Database) -> None:
    database.create_collection("c", encoder="static", bm25=False).upsert([Record("a", text="some words")])
    database.close()
    connection = apsw.Connection(str(catalog_of(database)))
    config = json.loads(connection.execute("SELECT value FROM meta WHERE key='config'").get)
    del config["bm25"], config["bm25_fields"]
    connection.execute("UPDATE meta SET value=? WHERE key='config'", (json.dumps(config),))
    connection.execute("DELETE FROM meta WHERE key='facts_crc'")
    connection.close()
    with nestvec.open(database.path) as reopened:
        collection = reopened.create_collection("c", encoder="static", exist_ok=True)
        collection.upsert([Record("b", text="more words")])
        assert {hit.id for hit in collection.search(text="words")} == {"a", "b"}
        collection.verify()
        with pytest.raises(InvalidInput, match=r"bm25=True, export this one and import it there"):
            collection.search(text="words", rank="bm25")


WRITER = """
import sys, numpy as np, nestvec
with nestvec.open(sys.argv[1]) as database:
    collection = database.collection("c")
    for line in sys.stdin:
        word = line.strip()
        collection.upsert([nestvec.Record("moving", np.ones(8), text=f"this is {word}")])
        print(collection.search(text=word, rank="bm25")[0].id, flush=True)
"""


def test_a_write_is_found_by_words_in_every_process_at_once(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([record(str(i), f"filler {i}") for i in range(10)])
    arguments = [sys.executable, "-c", WRITER, str(database.path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(100):
            child.stdin.write(f"word{number}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "moving\n"
            assert [hit.id for hit in collection.search(text=f"word{number}", rank="bm25")] == ["moving"]
            collection.upsert([record(f"mine{number % 7}", f"also {number}")])
            assert len(collection.search(text=f"word{number + 1000}", rank="bm25")) == 0
        child.stdin.close()
    collection.verify()
    check_index(database)


VICTIM = """
import sys, numpy as np, nestvec
with nestvec.open(sys.argv[1]) as database:
    collection = database.collection("c")
    for n in range(10**6):
        collection.upsert([nestvec.Record(str(n % 50 + i), np.ones(8), text=f"round{n} item{i}") for i in range(5)])
        if n % 3 == 0:
            collection.delete([str(n % 50)])
        if n % 20 == 19:
            collection.seal()
        print(n, flush=True)
"""


def test_a_killed_writer_leaves_words_and_records_in_step(database: Database) -> None:
    database.create_collection("c", dims=DIMS, bm25=True)
    for rounds in (7, 30, 61):
        arguments = [sys.executable, "-c", VICTIM, str(database.path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(rounds):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        check_index(database)
        collection = database.collection("c")
        collection.verify()
        texts = {r.id: r.text or "" for r in collection.get([str(i) for i in range(60)])}
        check_against_plain(collection, texts, [f"item{i}" for i in range(5)] + [f"round{n}" for n in range(rounds)])


def test_a_build_that_is_killed_leaves_no_words(database: Database) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([record("kept", "old words")])
    script = (
        "import sys, numpy as np, nestvec\n"
        "with nestvec.open(sys.argv[1]) as database:\n"
        "    batch = nestvec.Batch(0, ['a', 'b'], np.ones((2, 8)), ['new words', 'newer words'])\n"
        "    database.collection('c').build([batch])\n"
    )
    arguments = [sys.executable, "-c", script, str(database.path)]
    environment = os.environ | {"NESTVEC_CRASH_AT": "build-before-commit"}
    assert subprocess.run(arguments, env=environment, check=False).returncode == -signal.SIGKILL
    assert [hit.id for hit in collection.search(text="words", rank="bm25")] == ["kept"]
    check_index(database)
    subprocess.run(arguments, check=True)
    assert {hit.id for hit in collection.search(text="words", rank="bm25")} == {"kept", "a", "b"}
    check_index(database)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM words_docsize WHERE id=5",
        "INSERT INTO words(words, rowid, text) SELECT 'delete', seq, text FROM record WHERE seq=5",
        "UPDATE words_data SET block=zeroblob(length(block)) WHERE id>1000",
    ],
    ids=["lost", "forgotten", "zeroed"],
)
def test_verify_finds_damaged_words(database: Database, damage: str) -> None:
    collection = database.create_collection("c", dims=DIMS, bm25=True)
    collection.upsert([record(str(i), f"number {i}") for i in range(20)])
    collection.verify()
    connection = apsw.Connection(str(catalog_of(database)))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute(damage)
    connection.close()
    with pytest.raises(Damaged, match="catalog"):
        collection.verify()


def test_chunked_documents_are_found_once_by_their_best_chunk(database: Database) -> None:
    collection = database.create_collection("c", encoder="static", chunking=nestvec.Chunking(words=16, overlap=4))
    filler = "nothing of interest is said in this long and winding sentence. " * 6
    collection.upsert(
        [Record(f"d{i}", text=f"{filler} volcano number{i} erupts in the volcano. {filler} volcano") for i in range(30)]
    )
    for rank in ("bm25", "hybrid"):
        hits = collection.search(text="volcano number7", k=30, rank=rank)  # type: ignore[arg-type]
        assert hits[0].document == "d7"
        assert len({hit.document for hit in hits}) == len(hits) == 30
