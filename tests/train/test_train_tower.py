"""Step 4 and adapt: real training of the default encoder's rows, and of a tiny network, on the Python documentation."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from nestvec.cli.app import app
from nestvec.engine import encoders
from nestvec.engine.encoders import static
from nestvec.errors import InvalidInput, MissingDependency
from nestvec.train.encoder import adapt as adapting
from nestvec.train.encoder import step
from nestvec.train.encoder.adapt import Adaptation, clozes
from nestvec.train.encoder.batches import Triple, batch_loss
from nestvec.train.encoder.held_out import clear_gain
from nestvec.train.encoder.step import Training
from nestvec.train.encoder.tables import Passage, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
QUICK = Training(epochs=2, batch=64, held_out=0.2, patience=99)


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    found: ModuleType = pytest.importorskip("torch")
    found.set_num_threads(1)
    return found


def write_triples(folder: Path, passages: list[Passage], each: int = 2) -> Path:
    """Triples as relabel leaves them: clozes, the next passage as hard negative, and a teacher's scores."""
    folder.mkdir(parents=True, exist_ok=True)
    found = clozes(passages, Adaptation(each=each))
    rows = []
    for number, triple in enumerate(found):
        other = passages[number % len(passages)]
        rows.append(
            {
                "id": f"q{number}", "task": "find the text", "query": triple.query,
                "positive_id": f"p{number}", "positive_title": "", "positive_text": triple.positive,
                "negative_ids": ["n"], "negative_titles": [other.title], "negative_texts": [other.text],
                "teacher_scores": [0.8, 0.2],
            }
        )  # fmt: skip
    write(folder, "triples", rows)
    return folder


def test_the_contrastive_loss_is_equation_3_of_gecko(torch: ModuleType) -> None:
    from nestvec.train.encoder import losses

    rng = np.random.default_rng(0)
    q, p, n = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(3, 5, 8)))
    expected = []
    for i in range(5):
        others = sum(np.exp(q[i] @ q[j] / 0.1) for j in range(5) if j != i)
        below = sum(np.exp(q[i] @ p[j] / 0.1) for j in range(5)) + others + np.exp(q[i] @ n[i] / 0.1)
        expected.append(-np.log(np.exp(q[i] @ p[i] / 0.1) / below))
    given = [torch.from_numpy(x) for x in (3 * q, p, n[:, None])]
    assert float(losses.contrast(*given, temperature=0.1)) == pytest.approx(np.mean(expected), rel=1e-9)
    assert float(losses.contrast(*given, temperature=0.1, same_tower=False)) < np.mean(expected)


def test_a_guide_takes_out_what_it_finds_nearer_than_the_positive(torch: ModuleType) -> None:
    from nestvec.train.encoder import losses

    q, p, n = (torch.from_numpy(x) for x in np.random.default_rng(1).normal(size=(3, 4, 8)))
    same = torch.eye(4, dtype=torch.float64)
    trusting = losses.Guide(same, same, torch.zeros(4, 1, 4, dtype=torch.float64))
    plain = losses.contrast(q, p, n[:, None], temperature=0.5)
    assert losses.contrast(q, p, n[:, None], temperature=0.5, guide=trusting) == plain
    doubting = losses.Guide(same, torch.roll(same, 1, 0), same[:, None])  # another's positive, and the hard negative
    assert losses.contrast(q, p, n[:, None], temperature=0.5, guide=doubting) < plain


def test_words_of_many_texts_keep_more_of_their_old_rows(torch: ModuleType, tmp_path: Path, few: list[Passage]) -> None:
    from nestvec.train.encoder.towers import open_tower

    tower = open_tower("static")
    assert tower.kept(0.3, 0.0, []) == 0.3
    found = tower.kept(0.3, 0.1, ["zip zip files", "zip archive", "archive", "zip"])
    tokenizer = encoders.load_encoder("static").tokenizer  # type: ignore[attr-defined]
    for word, share in (("zip", 0.75), ("archive", 0.5), ("files", 0.25), ("comet", 0.0)):
        assert float(found[tokenizer.token_to_id(word), 0]) == pytest.approx(1 - 0.7 * 0.1 / (0.1 + share), abs=1e-6)
    folder = write_triples(tmp_path, few[:60], each=1)
    rows = {}
    for common in (0.0, 0.1):
        summary = step.train(folder, replace(QUICK, batch=16, common=common), out=tmp_path / str(common))
        rows[common] = encoders.load_encoder(summary["encoder"]).rows  # type: ignore[attr-defined]
    start = encoders.load_encoder("static").rows  # type: ignore[attr-defined]
    the = tokenizer.token_to_id("the")
    moved = {common: np.linalg.norm(each[the] - start[the]) for common, each in rows.items()}
    assert moved[0.1] < 0.5 * moved[0.0]


def test_distillation_is_nothing_where_the_teacher_agrees_and_something_where_not(torch: ModuleType) -> None:
    from nestvec.train.encoder import losses

    q, c = torch.eye(3, 4), torch.eye(4)[None].expand(3, 4, 4)
    scores = torch.einsum("nd,nkd->nk", q, c) / 0.1
    assert float(losses.distil(q, c, scores, temperature=0.1)) == pytest.approx(0, abs=1e-6)
    assert float(losses.distil(q, c, scores.flip(1), temperature=0.1)) > 1
    unit = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    alike = losses.distil_batch(3 * unit, unit, temperature=0.1, teacher_temperature=0.1)
    assert float(alike) == pytest.approx(0, abs=1e-5)


def test_a_teacher_scores_all_texts_of_a_triple_in_whatever_units(torch: ModuleType) -> None:
    from nestvec.train.encoder.towers import open_tower

    tower = open_tower("static")
    wanted = Training(distil=1.0, negatives=1)

    def loss(wanted: Training, **changes: object) -> float:
        first = Triple("", "read a zip", "zip archives", ("sort a list", "the moon", "tar files"), (0.9, 0.1, 0.2, 0.7))
        second = Triple("", "sort", "sort a list", ("zip archives", "tar files", "the moon"), (0.8, 0.3, 0.2, 0.1))
        return float(batch_loss(tower, [replace(first, **changes), second], wanted).detach())  # type: ignore[arg-type]

    asked = loss(wanted)
    assert loss(wanted, teacher=(0.9, 0.1, 0.2, 0.0)) != pytest.approx(asked, rel=1e-3), "the last text was not read"
    assert loss(wanted, teacher=(0.9,)) == pytest.approx(loss(replace(wanted, distil=0.0))), "no score of each text"
    assert loss(replace(wanted, distil=0.0), negatives=("sort a list", "gone", "gone")) == pytest.approx(
        loss(replace(wanted, distil=0.0))
    ), "more hard negatives than were asked for"
    scaled = Triple("", "a zip", "zip archives", ("the moon", "tar files"), (0.9, 0.1, 0.5))
    other = replace(scaled, teacher=tuple(7 * score - 3 for score in scaled.teacher))
    assert float(batch_loss(tower, [scaled], wanted)) == pytest.approx(
        float(batch_loss(tower, [other], wanted)), rel=1e-4
    )


def test_eight_scored_texts_are_learned_from_unasked_by_a_static_tower(torch: ModuleType) -> None:
    from nestvec.train.encoder.towers import open_tower

    tower, words = open_tower("static"), ("one", "two", "three", "four", "five", "six", "seven")
    eight = Triple("", "a zip", "zip archives", words, (0.9, 0.1, 0.5, 0.2, 0.3, 0.4, 0.1, 0.2))
    seven = replace(eight, negatives=words[:-1], teacher=eight.teacher[:-1])
    for triple, distil in ((eight, 1.0), (seven, 0.0)):
        asked, unasked = (batch_loss(tower, [triple], Training(distil=each)) for each in (distil, None))
        assert float(asked) == float(unasked)


def test_training_gains_on_held_out_triples_and_gives_an_encoder_with_a_card(
    torch: ModuleType, tmp_path: Path, few: list[Passage]
) -> None:
    folder = write_triples(tmp_path, few)
    summary = step.train(folder, QUICK)
    assert summary["nDCG@10 after"] > summary["nDCG@10 before"]
    encoder = encoders.load_encoder(summary["encoder"])
    default = encoders.load_encoder("static")
    assert encoder.granularities == default.granularities
    assert encoder.fingerprint != default.fingerprint
    card = json.loads((folder / "encoder" / static.CARD).read_text())
    assert card["recipe"]["batch"] == 64
    held = card["evaluation"]
    assert held["queries"] == card["data"]["held_out"] == summary["held_out"]
    assert list(held["before"]) == list(held["after"]) == ["64", "128", "256", "512"]
    assert held["after"]["512"]["nDCG@10"] == summary["nDCG@10 after"]
    assert held["before"]["512"]["nDCG@10"] == summary["nDCG@10 before"]
    stamp = (folder / "encoder" / static.MATRIX).stat().st_mtime_ns
    assert step.train(folder, QUICK) == summary
    assert (folder / "encoder" / static.MATRIX).stat().st_mtime_ns == stamp, "a finished training was run again"


def test_the_evaluation_in_the_card_is_that_of_its_own_encoder(
    torch: ModuleType, tmp_path: Path, few: list[Passage]
) -> None:
    """From the definitions, with the files that were written."""
    folder = write_triples(tmp_path, few)
    encoder = encoders.load_encoder(step.train(folder, QUICK)["encoder"])
    held = json.loads((folder / "encoder" / static.CARD).read_text())["evaluation"]
    triples = step.split(step.read_triples(folder), QUICK)[1]
    texts = list(dict.fromkeys(text for each in triples for text in (each.positive, *each.negatives)))
    assert held["texts"] == len(texts)
    for dims in (64, 512):
        queries = encoder.encode_queries([each.query for each in triples])[:, :dims]
        documents = encoder.encode_documents(texts)[:, :dims]
        scores = queries @ (documents / np.linalg.norm(documents, axis=1, keepdims=True)).T
        right = [texts.index(each.positive) for each in triples]
        places = [int((row > row[place] + 1e-6).sum()) for row, place in zip(scores, right, strict=True)]
        ndcg = np.mean([1 / np.log2(place + 2) if place < 10 else 0 for place in places])
        assert held["after"][str(dims)]["nDCG@10"] == pytest.approx(ndcg, abs=1e-4)
        assert held["after"][str(dims)]["R@10"] == pytest.approx(np.mean(np.less(places, 10)), abs=1e-4)


def test_a_stopped_training_goes_on_to_the_same_encoder(
    torch: ModuleType, tmp_path: Path, few: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_SAVE_SECONDS", 0.0)
    wanted = replace(QUICK, batch=16)
    whole, stopped = (write_triples(tmp_path / name, few[:60], each=1) for name in ("whole", "stopped"))
    step.train(whole, wanted)
    steps: list[int] = []

    def stop(_: str, done: int, total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step.train(stopped, wanted, progress=stop)
    step.train(stopped, wanted, progress=lambda _, done, __: steps.append(done))
    assert steps[0] > 1, "it began anew"
    for name in (static.MATRIX, static.SCALES):
        assert (whole / "encoder" / name).read_bytes() == (stopped / "encoder" / name).read_bytes()


def test_tasks_guide_and_distillation_change_what_is_learned(
    torch: ModuleType, tmp_path: Path, few: list[Passage]
) -> None:
    fingerprints = set()
    for number, change in enumerate([{}, {"tasks": True}, {"guide": "static"}, {"distil": 1.0}, {"same_tower": False}]):
        folder = write_triples(tmp_path / str(number), few[:60], each=1)
        summary = step.train(folder, Training(epochs=1, batch=32, held_out=0.2, **change))  # type: ignore[arg-type]
        fingerprints.add(encoders.load_encoder(summary["encoder"]).fingerprint)
    assert len(fingerprints) == 5
    card = json.loads((tmp_path / "1" / "encoder" / static.CARD).read_text())
    assert card["templates"]["query"] == "task: search result | query: {text}"


def test_a_network_is_trained_and_loads_with_its_prompts(torch: ModuleType, tmp_path: Path, few: list[Passage]) -> None:
    pytest.importorskip("sentence_transformers")
    path = Path(__file__).parent.parent / "engine" / "test_sentence_transformers.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    model = tiny.make_model(tmp_path / "tiny")
    folder = write_triples(tmp_path / "run", few[:40], each=1)
    wanted = Training(tower=str(model), epochs=1, batch=8, rate=1e-3, held_out=0.2, tasks=True)
    summary = step.train(folder, wanted)
    encoder = encoders.load_encoder(summary["encoder"])
    assert encoder.dims == 64
    assert encoder.encode_queries(["a zip"])[0] @ encoder.encode_documents(["a zip"])[0] < 0.9999
    assert json.loads((folder / "encoder" / "card.json").read_text())["recipe"]["tasks"] is True


def test_adapting_to_texts_finds_their_clozes_better(torch: ModuleType, tmp_path: Path, few: list[Passage]) -> None:
    summary = adapting.adapt(few, tmp_path / "mine", Adaptation(each=16, epochs=8))
    assert summary["nDCG@10 after"] > summary["nDCG@10 before"] + 0.01
    assert "outcome" not in summary
    assert encoders.load_encoder(f"static:{tmp_path / 'mine'}").dims == 512
    with pytest.raises(InvalidInput, match="at least 50"):
        adapting.adapt(few[:2], tmp_path / "none")


def test_clozes_are_the_same_for_a_seed_and_mostly_taken_out_of_their_texts(few: list[Passage]) -> None:
    found = clozes(few, Adaptation(each=4))
    assert found == clozes(few, Adaptation(each=4))
    assert found != clozes(few, Adaptation(each=4, seed=1))
    left_in = np.mean([triple.query in triple.positive for triple in found])
    assert 0.2 < left_in < 0.45


def test_few_texts_give_more_clozes_each_to_a_static_tower() -> None:
    def each(texts: int, wanted: Adaptation) -> float:
        passages = [Passage(str(number), "", "one two three four " * 4) for number in range(texts)]
        return len(clozes(passages, wanted)) / texts

    assert each(100, Adaptation()) == 16
    assert each(2000, Adaptation()) == 8
    assert each(6000, Adaptation()) == 4
    assert each(100, Adaptation("sentence-transformers:model")) == 4
    assert each(100, Adaptation(each=2)) == 2


def test_settings_and_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for wrong in (
        {"epochs": 0},
        {"temperature": 2.0},
        {"keep": 1.0},
        {"held_out": 0.0},
        {"negatives": -1},
        {"common": -0.1},
    ):
        with pytest.raises(InvalidInput):
            Training(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="clozes"):
        Adaptation(each=0)
    with pytest.raises(InvalidInput, match="triples"):
        step.train(tmp_path)


def test_without_torch_the_command_that_installs_it_is_named(
    tmp_path: Path, few: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"nestvec\[train\]"):
        adapting.adapt(few, tmp_path)


def test_the_likelihood_of_what_is_held_out_is_that_of_the_softmax(torch: ModuleType, few: list[Passage]) -> None:
    from nestvec.train.encoder.held_out import HeldOut
    from nestvec.train.encoder.towers import open_tower

    triples = clozes(few[:20], Adaptation(each=1))
    formed = [(each.query, (each.positive,)) for each in triples]
    encoder = encoders.load_encoder("static")
    texts = list(dict.fromkeys(each.positive for each in triples))
    right = [texts.index(each.positive) for each in triples]
    found = []
    for dims in encoder.granularities:
        queries = encoder.encode_queries([each.query for each in triples])[:, :dims].astype(np.float64)
        documents = encoder.encode_documents(texts)[:, :dims].astype(np.float64)
        queries, documents = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents))
        shares = np.exp(queries @ documents.T / 0.1)
        found.append(np.mean(np.log(shares[np.arange(len(right)), right] / shares.sum(1))))
    assert HeldOut(formed).likelihood(open_tower("static"), 0.1) == pytest.approx(np.mean(found), abs=1e-4)


def test_a_training_that_only_does_harm_gives_back_what_it_began_with(
    torch: ModuleType, tmp_path: Path, few: list[Passage]
) -> None:
    summary = step.train(write_triples(tmp_path, few), replace(QUICK, batch=16, rate=100.0, patience=2))
    assert summary["steps"] < summary["steps_planned"]
    assert summary["nDCG@10 after"] == pytest.approx(summary["nDCG@10 before"], abs=0.01)
    written, default = encoders.load_encoder(summary["encoder"]), encoders.load_encoder("static")
    texts = [each.document for each in few[:50]]
    alike = np.einsum("ij,ij->i", written.encode_documents(texts), default.encode_documents(texts))
    assert alike.min() > 0.995


def test_where_nothing_is_gained_no_encoder_is_written(torch: ModuleType, tmp_path: Path) -> None:
    """Texts in a script that the encoder knows no piece of: all of them are the same to it, whatever it learns."""
    source = tmp_path / "texts.jsonl"
    letters = [chr(0x13A0 + i) for i in range(80)]
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(letters, 5)) for _ in range(40)) for _ in range(60)]
    source.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    out = tmp_path / "adapted"
    for _ in range(2):  # the second time from what the first left
        ran = CliRunner().invoke(app, ["train", "adapt", "--source", str(source), "--out", str(out)])
        assert ran.exit_code == 0, ran.output
        assert "nothing gained: the encoder is left as it is, and none is written" in ran.output
        assert "encoder: static\n" in ran.output
        assert not (out / static.MATRIX).exists()


def test_a_gain_is_clear_above_its_standard_error() -> None:
    before = np.zeros(100)
    assert not clear_gain(before, before)
    assert clear_gain(before, before + 0.01)
    noise = np.random.default_rng(0).normal(size=100)
    noise -= noise.mean()
    error = noise.std() / 10
    assert clear_gain(before, noise + 1.01 * error)
    assert not clear_gain(before, noise + 0.99 * error)


def test_holding_leaves_general_text_nearer_to_where_it_was(
    torch: ModuleType, tmp_path: Path, few: list[Passage], stdlib: list[Passage]
) -> None:
    """Measured on documentation that was not adapted to."""
    default = encoders.load_encoder("static")
    assert isinstance(default, static.StaticEncoder)
    others = [each.document for each in stdlib if each.title.partition(".")[0] in ("email", "logging")][:200]
    before = default.encode_documents(others)
    moved = {}
    for hold in (0.0, 100.0):
        name = f"static:{tmp_path / str(hold)}"
        adapting.adapt(few, tmp_path / str(hold), Adaptation(each=16, epochs=8, hold=hold))
        moved[hold] = float(
            (1 - np.einsum("ij,ij->i", encoders.load_encoder(name).encode_documents(others), before)).mean()
        )
    assert moved[100.0] < 0.5 * moved[0.0]
