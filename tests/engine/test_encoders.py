"""The default encoder and the registry that finds it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nestvec.engine import encoders
from nestvec.engine.encoders import Encoder, static
from nestvec.errors import Damaged, InvalidInput, NotFound

TEXTS = [
    "Read the members of a ZIP archive.",
    "How do I open a compressed file?",
    "Photosynthesis turns light into sugar.",
    "naïve CAFÉ — 東京 🙂",
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoders.load_encoder("static")


def test_the_registry_lists_the_default_encoder_and_loads_it_once(encoder: Encoder) -> None:
    assert "static" in encoders.names()
    assert encoders.load_encoder("static") is encoder
    assert isinstance(encoder, Encoder)


def test_an_unknown_name_lists_those_installed() -> None:
    with pytest.raises(NotFound, match="static"):
        encoders.load_encoder("no-such-encoder")


def test_vectors_are_unit_float32_of_the_promised_length(encoder: Encoder) -> None:
    vectors = encoder.encode_documents(TEXTS)
    assert (encoder.name, encoder.dims, encoder.granularities) == ("static", 512, (64, 128, 256, 512))
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), encoder.dims)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode_queries([]).shape == (0, 512)


def test_a_text_has_the_same_vector_alone_and_in_any_batch(encoder: Encoder) -> None:
    texts = [f"{text} number {number}" for number in range(700) for text in TEXTS]
    together = encoder.encode_documents(texts)
    for position in (0, 1, 1399, len(texts) - 1):
        np.testing.assert_array_equal(together[position], encoder.encode_queries([texts[position]])[0])


def test_every_granularity_ranks_the_related_text_first(encoder: Encoder) -> None:
    query = encoder.encode_queries(["unpack a zip file"])[0]
    documents = encoder.encode_documents(TEXTS)
    for dims in encoder.granularities:
        prefixes = documents[:, :dims] / np.linalg.norm(documents[:, :dims], axis=1, keepdims=True)
        assert np.argmax(prefixes @ query[:dims]) == 0


@pytest.mark.parametrize("text", ["🙂", "   ", "\u200b\n", "x" * 200])
def test_a_text_without_known_words_has_a_fixed_unit_vector(encoder: Encoder, text: str) -> None:
    first, again = encoder.encode_queries([text, text])
    np.testing.assert_array_equal(first, again)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)


def test_an_unknown_word_beside_known_ones_hardly_moves_the_vector(encoder: Encoder) -> None:
    plain, marked = encoder.encode_queries(["open a file", "open a file 🙂"])
    assert plain @ marked > 0.999


@pytest.mark.parametrize("bad", ["", None, 7, b"bytes", "lone \ud800 surrogate"])
def test_an_unusable_text_is_named_by_its_position(encoder: Encoder, bad: object) -> None:
    with pytest.raises(InvalidInput, match="text 1: "):
        encoder.encode_documents(["fine", bad])  # type: ignore[list-item]


def test_one_string_instead_of_a_list_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match="list"):
        encoder.encode_queries("a text")


def test_text_that_looks_like_a_special_token_is_ordinary_text(encoder: Encoder) -> None:
    marked, spelled = encoder.encode_queries(["[SEP]", "[ sep ]"])
    np.testing.assert_array_equal(marked, spelled)


def test_words_beyond_the_teachers_128_tokens_count(encoder: Encoder) -> None:
    long = "filler " * 400
    assert encoder.encode_queries([long])[0] @ encoder.encode_queries([long + "volcano " * 400])[0] < 0.99


def test_a_text_longer_than_a_batch_is_encoded_as_the_sum_of_its_words(encoder: Encoder) -> None:
    short, long = encoder.encode_queries(["red green ", "red green " * 20_000])
    np.testing.assert_allclose(short, long, atol=1e-4)


def test_a_word_said_often_counts_more_but_not_as_often(encoder: Encoder) -> None:
    once, twice, often, other = encoder.encode_queries(["red car", "red red car", "red " * 50 + "car", "red"])
    assert once @ other < twice @ other < often @ other < 0.999


def test_threads_get_the_vectors_a_single_caller_gets(encoder: Encoder) -> None:
    expected = encoder.encode_queries(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: encoder.encode_queries(TEXTS), range(64)):
            np.testing.assert_array_equal(vectors, expected)


def test_loading_is_quick_and_gives_the_same_fingerprint(encoder: Encoder) -> None:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        assert static.load().fingerprint == encoder.fingerprint
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.8  # 0.1 s on an idle machine; the bound allows for a busy one


def copy_of_the_data(folder: Path) -> Path:
    for name in (static.TOKENIZER, static.MATRIX, static.SCALES, static.CARD):
        (folder / name).write_bytes((static.DATA / name).read_bytes())
    return folder


def test_an_encoder_folder_gives_the_same_vectors_and_fingerprint(tmp_path: Path, encoder: Encoder) -> None:
    name = f"static:{copy_of_the_data(tmp_path)}"
    loaded = encoders.load_encoder(name)
    assert (loaded.name, loaded.fingerprint) == (name, encoder.fingerprint)
    np.testing.assert_array_equal(loaded.encode_queries(TEXTS), encoder.encode_queries(TEXTS))


def test_templates_of_the_card_stand_around_texts_and_change_the_fingerprint(tmp_path: Path, encoder: Encoder) -> None:
    copy_of_the_data(tmp_path)
    card = json.loads((tmp_path / static.CARD).read_text())
    card["templates"] = {"query": "task: search | query: {text}", "document": "title: none | text: {text}"}
    (tmp_path / static.CARD).write_text(json.dumps(card))
    formed = static.load(str(tmp_path))
    assert formed.fingerprint != encoder.fingerprint
    text = "red {text} green"
    np.testing.assert_array_equal(
        formed.encode_queries([text]), encoder.encode_queries([f"task: search | query: {text}"])
    )
    np.testing.assert_array_equal(
        formed.encode_documents([text]), encoder.encode_documents([f"title: none | text: {text}"])
    )


def test_what_only_people_read_of_the_card_does_not_change_the_fingerprint(tmp_path: Path, encoder: Encoder) -> None:
    copy_of_the_data(tmp_path)
    card = json.loads((tmp_path / static.CARD).read_text())
    (tmp_path / static.CARD).write_text(json.dumps(card | {"scores": {"mine": 1}}))
    assert static.load(str(tmp_path)).fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (static.SCALES, b"\x93NUMPY", r"static_scales\.npy"),
        (static.TOKENIZER, b"{}", r"static_tokenizer\.json"),
        (static.CARD, b'{"format": 1}', r"static_card\.json.*format 1"),
        (static.CARD, b'{"format": 2, "granularities": [], "templates": {}}', r"static_card\.json"),
        (static.CARD, b'{"format": 2, "granularities": [100], "templates": {}}', r"static_card\.json.*multiple"),
        (static.CARD, b'{"format": 2, "granularities": [512], "templates": {"query": "x"}}', r"static_card\.json"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (copy_of_the_data(tmp_path) / name).write_bytes(content)
    with pytest.raises(Damaged, match=message):
        static.load(str(tmp_path))


def test_data_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    np.save(copy_of_the_data(tmp_path) / static.SCALES, np.ones(5, np.float16))
    with pytest.raises(Damaged, match=r"static_scales\.npy.*30522"):
        static.load(str(tmp_path))
    (tmp_path / static.SCALES).unlink()
    with pytest.raises(Damaged, match=r"static_scales\.npy.*missing"):
        static.load(str(tmp_path))


def test_a_folder_that_is_none_or_holds_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="folder"):
        static.load(str(tmp_path / "absent"))
    with pytest.raises(InvalidInput, match=r"static_card\.json"):
        static.load(str(tmp_path))


def test_packing_to_four_bits_keeps_each_group_of_numbers_to_a_few_hundredths() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    rows[:, 64:] *= 1e-3  # its own scale: it is not drowned by the first group
    packed, scales = static.pack(rows)
    assert (packed.dtype, packed.shape, scales.shape) == (np.uint8, (200, 64), (200, 2))
    back = static.unpack(packed, scales)
    for part in (slice(0, 64), slice(64, 128)):
        assert np.square(back[:, part] - rows[:, part]).sum() < 0.03 * np.square(rows[:, part]).sum()


def test_shipped_data_stays_small_and_says_where_it_comes_from() -> None:
    files = list(static.DATA.iterdir())
    assert sum(file.stat().st_size for file in files) < 9_000_000
    assert "Apache-2.0" in (static.DATA / "PROVENANCE.md").read_text()
