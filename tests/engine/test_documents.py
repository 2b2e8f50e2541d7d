"""Long documents: chunks as configured, written and replaced as one, found as one."""

from __future__ import annotations

import json
import random
import re
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nestvec
from nestvec import Batch, Chunking, Collection, Cut, InvalidInput, InvalidRecord, Plan, Record, Stage
from nestvec.engine.chunking import chunk_id, document_of
from nestvec.engine.documents import widened
from nestvec.engine.encoders import load_encoder

TOPICS = {
    "zip": "The archive module reads members of a compressed file. ",
    "rain": "Tomorrow heavy rain falls on the mountains and valleys. ",
    "sugar": "Photosynthesis turns light and water into sugar in leaves. ",
    "court": "The judge asked the witness to repeat her statement. ",
    "music": "The orchestra played a slow symphony by a young composer. ",
}
WORDS = Chunking(words=20, overlap=5)


def long_text(*topics: str, times: int = 6) -> str:
    return "".join(TOPICS[topic] * times for topic in topics)


def made(path: Path, chunking: Chunking | None = WORDS) -> tuple[nestvec.Database, Collection]:
    database = nestvec.open(path)
    return database, database.create_collection("c", encoder="static", chunking=chunking)


def live_chunks(collection: Collection) -> list[str]:
    return sorted(record.id for record in collection.scroll(limit=1000).records)


# Splitting


@given(
    st.text(alphabet="ab .!\n。日本語한글x", max_size=600),
    st.integers(8, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n // 2))),
)
@settings(deadline=None)
def test_chunks_are_slices_in_order_that_cover_every_word(text: str, sizes: tuple[int, int]) -> None:
    chunks = Chunking(*sizes).split(text)
    covered = 0
    for chunk in chunks:
        blanks = len(text[covered:]) - len(text[covered:].lstrip())
        start = text.rfind(chunk, 0, covered + blanks + len(chunk))  # it begins no later than where covering goes on
        assert start >= 0
        assert start + len(chunk) > covered or len(chunks) == 1
        covered = start + len(chunk)
    assert not text[covered:].strip()


def test_a_chunk_has_at_most_the_words_and_the_next_begins_with_the_overlap() -> None:
    words = [f"word{i}" for i in range(1000)]
    chunks = [chunk.split() for chunk in Chunking(50, 10).split(" ".join(words))]
    assert [len(chunk) for chunk in chunks[:-1]] == [50] * (len(chunks) - 1)
    for one, following in pairwise(chunks):
        assert one[-10:] == following[:10]
    assert [word for i, chunk in enumerate(chunks) for word in (chunk if i == 0 else chunk[10:])] == words


def test_a_chunk_ends_with_its_paragraph_or_else_its_sentence_where_one_ends_nearby() -> None:
    sentences = "One two three four five six seven. " * 20
    assert all(chunk.endswith("seven.") for chunk in Chunking(40, 0).split(sentences))
    paragraphs = ("One two three four. " * 8 + "Last words here.\n\n") * 5
    assert all(chunk.endswith("Last words here.") for chunk in Chunking(40, 0).split(paragraphs))


def test_a_text_of_one_chunk_is_kept_as_it_is() -> None:
    for text in ("", "  two words\n", "x" * 32 * 160):
        assert Chunking().split(text) == [text]


@pytest.mark.parametrize("text", ["日本語" * 2000, "x" * 20_000, "ก" * 20_000])
def test_a_text_without_blanks_is_cut_all_the_same(text: str) -> None:
    chunks = Chunking(100, 0).split(text)
    assert len(chunks) > 5
    assert "".join(chunks) == text


def test_a_megabyte_is_split_in_no_time() -> None:
    start = time.perf_counter()
    assert len(Chunking().split("Some words and a full stop. " * 37_000)) > 1000
    assert time.perf_counter() - start < 5  # 0.3 s on an idle machine; quadratic would take minutes


@pytest.mark.parametrize("sizes", [(7, 0), (10_001, 0), (20, 11), (20, -1), (20.0, 5), (True, 0), ("20", 5)])
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="chunking: "):
        Chunking(*sizes)


def test_chunking_needs_an_encoder_and_is_kept_with_the_collection(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    assert collection.config.chunking == WORDS
    with database:
        with pytest.raises(InvalidInput, match="chunking needs an encoder"):
            database.create_collection("v", dims=4, chunking=WORDS)
        with pytest.raises(nestvec.Conflict):
            database.create_collection("c", encoder="static", chunking=Chunking(21, 5), exist_ok=True)
        assert database.create_collection("c", encoder="static", chunking=WORDS, exist_ok=True) is collection
    with nestvec.open(tmp_path / "db") as database:
        assert database.collection("c").config.chunking == WORDS


# Writing


def test_an_upsert_replaces_all_chunks_of_its_documents(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        result = collection.upsert([Record("a", payload={"n": 1}, text=long_text("zip")), Record("b", text="short")])
        assert result.count == 2
        before = [record.id for record in collection.get(["a"])]
        assert before == [f"a#{n}" for n in range(len(before))]
        assert len(before) > 2
        assert [record.payload for record in collection.get(["a"])] == [{"n": 1}] * len(before)
        collection.seal()
        collection.upsert([Record("a", payload={"n": 2}, text="Only a few words now.")])
        assert live_chunks(collection) == ["a#0", "b#0"]
        assert [(r.text, r.payload) for r in collection.get(["a"])] == [("Only a few words now.", {"n": 2})]
        assert all(hit.document != "a" or hit.id == "a#0" for hit in collection.search(text="archive", k=10))
        collection.upsert([Record("a", text=long_text("rain", times=9))])
        assert len(collection.get(["a"])) > len(before)
        collection.compact()
        assert collection.count() == 2
        collection.verify()


def test_ids_with_marks_stay_apart(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        ids = ["a", "a#0", "a#0#0", "a#1", "#", "a#"]
        collection.upsert([Record(id, text=long_text("music")) for id in ids])
        each = len(collection.get(["a"]))
        for id in ids:
            assert [record.id for record in collection.get([id])] == [f"{id}#{n}" for n in range(each)]
            assert {document_of(record.id) for record in collection.get([id])} == {id}
        assert collection.count() == len(ids)
        assert sorted(str(hit.document) for hit in collection.search(text="symphony", k=10)) == sorted(ids)
        assert collection.delete(["a#0", "nobody"]) == 1
        assert collection.count() == len(ids) - 1
        assert len(collection.get(["a", "a#0", "a#0#0"])) == 2 * each


def test_a_record_with_a_vector_is_one_chunk(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        vector = load_encoder("static").encode_documents(["volcano"])[0]
        collection.upsert([Record("v", vector, text=long_text("rain")), Record("w", vector)])
        assert [record.id for record in collection.get(["v", "w"])] == ["v#0", "w#0"]
        assert collection.search(text="volcano", k=1)[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("ok2", text=" \n"), "the text is empty"),
        (Record("ok2"), "neither vector nor text"),
        (Record("x" * 249, text="fine"), "a document's id has at most 248 bytes"),
        (Record("ok", text="again"), "the same id is already at position 0"),
        (Record("ok2", text="fine", payload={"x": float("nan")}), "NaN"),
        (Record("ok2", np.zeros(512, np.float32)), "zero vector"),
    ],
)
def test_a_bad_document_is_named_by_its_own_place_and_nothing_is_written(
    tmp_path: Path, record: Record, reason: str
) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        with pytest.raises(InvalidRecord, match=reason) as caught:
            collection.upsert([Record("ok", text=long_text("zip", "rain")), record])
        assert (caught.value.position, caught.value.id) == (1, record.id)
        assert collection.count() == 0


def test_a_build_splits_as_an_upsert_does(tmp_path: Path) -> None:
    texts = [long_text(topic, times=3 + i) for i, topic in enumerate(TOPICS)]
    ids, payloads = list(TOPICS), [{"topic": topic} for topic in TOPICS]
    upserted_in, upserted = made(tmp_path / "upserted")
    built_in, built = made(tmp_path / "built")
    with upserted_in, built_in:
        records = [Record(id, payload=p, text=t) for id, p, t in zip(ids, payloads, texts, strict=True)]
        upserted.upsert(records)
        report = built.build(
            [Batch(0, ids[:2], None, texts[:2], payloads[:2]), Batch(2, ids[2:], None, texts[2:], payloads[2:])]
        )
        assert report.rows == built.info().count == upserted.info().count
        expected, got = upserted.get(ids, with_vector=True), built.get(ids, with_vector=True)
        assert [(r.id, r.payload, r.text) for r in got] == [(r.id, r.payload, r.text) for r in expected]
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)


def test_a_build_rejects_whole_documents_by_their_row(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        collection.upsert([Record("there", text="already")])
        texts = [long_text("zip"), long_text("rain"), " ", "short", long_text("music"), long_text("court"), "fine"]
        ids = ["a", "a", "blank", "there", "x" * 249, "bad", "b"]
        batch = Batch(10, ids, None, texts, [{"n": i} for i in range(7)], {5: "could not be read"})
        report = collection.build([batch], rejects=tmp_path / "rejects.jsonl")
        rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
        assert [(line["row"], line["id"]) for line in rejects] == [
            (11, "a"), (12, "blank"), (13, "there"), (14, "x" * 249), (15, "bad")
        ]  # fmt: skip
        assert report.rejected == 5
        assert collection.count() == 3
        assert {record.payload["n"] for record in collection.get(["a"]) if record.payload} == {0}
        with pytest.raises(InvalidRecord, match=r"row 3.*earlier in this build"):
            collection.build([Batch(0, ["c", "d", "e", "c"], None, ["one", "two", "three", long_text("zip")])])


def test_a_build_of_vectors_makes_one_chunk_of_each(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        vectors = load_encoder("static").encode_documents(["one", "two"])
        collection.build([Batch(0, None, vectors, [long_text("zip"), "b"])])
        assert live_chunks(collection) == ["0#0", "1#0"]


# Finding


@cache
def vectors_of(text: str, chunking: Chunking) -> np.ndarray:
    return load_encoder("static").encode_documents(chunking.split(text))


def best_chunks(collection: Collection, documents: dict[str, str], query: str) -> list[tuple[str, float]]:
    """(document, score) by brute force: the best chunk of each, best first."""
    chunking = collection.config.chunking
    assert chunking is not None
    asked = load_encoder("static").encode_queries([query])[0]
    scores = {id: float((vectors_of(text, chunking) @ asked).max()) for id, text in documents.items()}
    return sorted(scores.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("exact", [True, False])
def test_a_search_finds_each_document_once_by_its_best_chunk(tmp_path: Path, exact: bool) -> None:
    """Thousands of chunks, so that a build trains and the default plan is no scan; one document has most of them."""
    rng = random.Random(5)
    names = list(TOPICS)
    documents = {f"d{i}": long_text(*rng.choices(names, k=3), times=rng.randint(1, 6)) for i in range(100)}
    documents["all-zip"] = long_text("zip", times=800)
    database, collection = made(tmp_path / "db")
    with database:
        collection.build([Batch(0, list(documents), None, list(documents.values()))])
        assert collection.info().generation == 1
        for query in ("read a compressed archive", "rain in the mountains", "a composer's symphony"):
            hits = collection.search(text=query, k=20, exact=exact)
            expected = best_chunks(collection, documents, query)[:20]
            assert len({hit.document for hit in hits}) == 20
            np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)
            for hit in hits:
                assert hit.document is not None
                assert re.fullmatch(re.escape(hit.document) + r"#\d+", hit.id)
                assert hit.text is not None
                assert hit.text in documents[hit.document]


@pytest.mark.parametrize("sealed", [False, True])
def test_there_are_always_as_many_hits_as_documents_allow(tmp_path: Path, sealed: bool) -> None:
    """One document of thousands of chunks crowds out all others, until every chunk has been seen."""
    database, collection = made(tmp_path / "db")
    with database:
        others = [Record(f"o{i}", text=TOPICS["rain"]) for i in range(7)]
        collection.upsert([Record("crowd", text=long_text("zip", times=3000)), *others])
        if sealed:
            collection.seal()
            assert collection.info().generation == 1
        for k in (1, 2, 8, 9, 1000):
            hits = collection.search(text="archive of compressed files", k=k)
            assert len(hits) == min(k, 8)
            assert hits[0].document == "crowd"
            assert len({hit.document for hit in hits}) == len(hits)
        plan = Plan("soar", probes=4, stages=(Stage(128, 40),))
        assert len(collection.search(text="archive", k=8, plan=plan)) == 8
        batch = collection.search_batch(texts=["archive", "rain"], k=3)
        assert [hits[0].document for hits in batch] == ["crowd", "o0"]
        assert [len(hits) for hits in batch] == [3, 3]


def test_a_plan_that_keeps_too_few_chunks_is_not_tried_in_vain() -> None:
    plan = Plan("soar", probes=4, stages=(Stage(128, 40),), shortlist=Cut(60))
    assert [widened(plan, k).route for k in (40, 41)] == ["soar", "exact"]
    assert widened(Plan("exact"), 10_000).route == "exact"


def test_filters_count_and_delete_whole_documents(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        collection.upsert([
            Record(f"d{i}", payload={"even": i % 2 == 0}, text=long_text("zip", "rain", times=2 + i)) for i in range(10)
        ])  # fmt: skip
        even = {"field": "even", "eq": True}
        assert (collection.count(), collection.count(filter=even)) == (10, 5)
        hits = collection.search(text="rain", k=10, filter=even)
        assert sorted(str(hit.document) for hit in hits) == ["d0", "d2", "d4", "d6", "d8"]
        assert collection.delete(filter=even) == 5
        assert collection.count() == 5
        assert collection.get(["d0"]) == []
        collection.upsert([Record("d0", text=long_text("music"))])
        assert collection.count() == 6


@pytest.mark.parametrize("rank", ["bm25", "hybrid"])
def test_other_rankings_find_documents_too(tmp_path: Path, rank: nestvec.engine.ranking.Rank) -> None:
    database, collection = made(tmp_path / "db")
    with database:
        collection.upsert([Record(f"d{i}", text=long_text("zip", times=5 + i)) for i in range(5)])
        collection.upsert([Record("other", text=long_text("music"))])
        hits = collection.search(text="archive members", k=3, rank=rank)
        assert len({hit.document for hit in hits}) == 3
        assert "other" not in {hit.document for hit in hits}


def test_without_chunking_hits_have_no_document(tmp_path: Path) -> None:
    database, collection = made(tmp_path / "db", chunking=None)
    with database:
        collection.upsert([Record("a#0", text=long_text("zip"))])
        hit = collection.search(text="archive", k=1)[0]
        assert (hit.id, hit.document) == ("a#0", None)
        assert collection.count() == 1


def test_any_order_of_writes_leaves_what_a_dictionary_holds(tmp_path: Path) -> None:
    rng = random.Random(11)
    database, collection = made(tmp_path / "db")
    model: dict[str, str] = {}
    with database:
        for step in range(60):
            ids = rng.sample([f"d{i}" for i in range(6)] + ["d1#0", "d1#1"], rng.randint(1, 3))
            if rng.random() < 0.6:
                texts = {id: long_text(*rng.choices(list(TOPICS), k=2), times=rng.randint(1, 5)) for id in ids}
                collection.upsert([Record(id, text=text) for id, text in texts.items()])
                model |= texts
            elif rng.random() < 0.7:
                assert collection.delete(ids) == sum(model.pop(id, None) is not None for id in ids)
            else:
                rng.choice([collection.seal, collection.compact])()
            expected = sorted(chunk_id(id, n) for id, text in model.items() for n in range(len(WORDS.split(text))))
            assert live_chunks(collection) == expected, step
            assert collection.count() == len(model)
            hits = collection.search(text="rain on leaves", k=4)
            scores = [score for _, score in best_chunks(collection, model, "rain on leaves")[:4]]
            np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)
