"""mteb itself evaluates an encoder and the engine, on a task made from a judged set; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestvec.engine.encoders import load_encoder
from nestvec.errors import InvalidInput, MissingDependency
from nestvec.evaluation import documents, evaluate, read_set
from nestvec.evaluation.mteb_model import MtebModel

# What mteb, datasets and torch warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestvec.evaluation.mteb_model.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'nestvec\[mteb\]'"):
        MtebModel()


def task_of(folder: Path, top_ranked: dict[str, list[str]] | None = None) -> Any:  # noqa: ANN401
    """A retrieval task of mteb over a judged set; with `top_ranked` each query ranks these documents only."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    judged = read_set(folder)

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local", description="a judged set", dataset={"path": "local", "revision": "1"}, type="Retrieval",
            category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
            reference=None, date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
            dialect=None, sample_creation=None, bibtex_citation="",
        )  # fmt: skip

        def load_data(self, **_: object) -> None:
            corpus = [{"id": id, "title": "", "text": text} for id, text in documents(judged.corpus)]
            queries = [{"id": id, "text": text} for id, text in judged.queries]
            grades = {query: dict(each) for query, each in judged.grades.items()}
            split = {
                "corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries), "relevant_docs": grades,
                "top_ranked": top_ranked,
            }  # fmt: skip
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Local()


def scores(model: MtebModel, task: Any) -> dict[str, float]:  # noqa: ANN401
    mteb = pytest.importorskip("mteb")
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    found: dict[str, float] = result.task_results[0].scores["test"][0]
    return found


def test_mteb_finds_what_our_own_evaluation_finds(beir: Path) -> None:
    pytest.importorskip("mteb")
    model = MtebModel(exact=True)
    try:
        found = scores(model, task_of(beir))
    finally:
        model.close()
    row = evaluate(beir, dims=[load_encoder("static").dims]).rows[0]
    assert found["ndcg_at_10"] == pytest.approx(row.ndcg, abs=0.01)  # mteb breaks ties by id
    assert found["recall_at_100"] == pytest.approx(row.recall, abs=0.01)


def test_mteb_reranks_within_the_documents_it_gives(beir: Path) -> None:
    pytest.importorskip("mteb")
    judged = read_set(beir)
    given = {
        id: [*judged.grades[id], *[other for other, _ in list(documents(judged.corpus))[:5]]]
        for id, _ in judged.queries
    }
    model = MtebModel(rank="hybrid")
    task = task_of(beir, given)
    task.load_data()
    split = task.dataset["default"]["test"]
    model.index(split["corpus"])
    answers = model.search(split["queries"], top_k=100, top_ranked=given)
    assert {id: set(hits) for id, hits in answers.items()} == {id: set(ids) for id, ids in given.items()}
    model.close()
    with pytest.raises(InvalidInput, match="nothing is indexed"):
        model.search(split["queries"], top_k=1)


def test_other_tasks_get_the_encoder_s_vectors(beir: Path) -> None:
    mteb = pytest.importorskip("mteb")
    model, encoder = MtebModel(), load_encoder("static")
    assert isinstance(model, mteb.EncoderProtocol)
    assert isinstance(model, mteb.SearchProtocol)
    texts = ["zip archive", "garbage collector"]
    vectors = model.encode([{"text": texts}], prompt_type=None)
    np.testing.assert_array_equal(vectors, encoder.encode_documents(texts))
    np.testing.assert_allclose(np.asarray(model.similarity(vectors, vectors)), vectors @ vectors.T, atol=1e-6)
    np.testing.assert_allclose(np.asarray(model.similarity_pairwise(vectors, vectors)), [1, 1], atol=1e-6)
    meta = model.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim) == ("nestvec/static-dense", encoder.fingerprint, encoder.dims)
