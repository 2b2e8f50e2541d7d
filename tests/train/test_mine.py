"""Step 2, `mine`: the engine's candidates beside the true ones, and what a stopped run leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nestvec.engine.encoders import load_encoder, static
from nestvec.errors import InvalidInput, NotFound
from nestvec.train.encoder import vectors
from nestvec.train.encoder.generate import Generation, generate
from nestvec.train.encoder.mine import Mining, mine
from nestvec.train.encoder.tables import Passage, rows


def test_candidates_are_the_nearest_passages_and_hold_the_seed(stdlib: list[Passage], tmp_path: Path) -> None:
    generate(tmp_path, stdlib, Generation("extract", limit=150, each=4))
    summary = mine(tmp_path, Mining(candidates=10))
    pairs, mined = list(rows(tmp_path, "pairs")), list(rows(tmp_path, "candidates"))
    assert [row["id"] for row in mined] == [pair["id"] for pair in pairs]

    encoder = load_encoder("static")
    documents = encoder.encode_documents([passage.document for passage in stdlib])
    scores = encoder.encode_queries([pair["query"] for pair in pairs]) @ documents.T
    number = {passage.doc_id: i for i, passage in enumerate(stdlib)}
    found = 0
    for pair, row, score in zip(pairs, mined, scores, strict=True):
        first = row["doc_ids"][:10]
        found += sum(score[number[doc_id]] >= np.sort(score)[-10] - 1e-6 for doc_id in first)
        np.testing.assert_allclose(row["scores"], [score[number[each]] for each in row["doc_ids"]], atol=1e-5)
        assert row["scores"][:10] == sorted(row["scores"][:10], reverse=True)
        if row["seed_rank"]:
            assert row["doc_ids"][row["seed_rank"] - 1] == pair["doc_id"]
            assert len(row["doc_ids"]) == 10
        else:
            assert row["doc_ids"][10:] == [pair["doc_id"]]
    assert found / (10 * len(pairs)) >= 0.95
    assert summary["recall"]["target"] == 0.95
    assert summary["recall"]["measured"] == pytest.approx(found / (10 * len(pairs)), abs=0.05)
    assert summary["recall"]["because"]
    assert summary["micros_per_query"] > 0
    ranks = np.array([row["seed_rank"] for row in mined])
    assert summary["seed_is_first"] == pytest.approx((ranks == 1).mean(), abs=1e-4)
    assert summary["seed_is_found"] == pytest.approx((ranks > 0).mean(), abs=1e-4)
    assert 0 < (ranks == 0).sum() < len(ranks), "some seeds are not found: they are appended"
    assert not (tmp_path / vectors.SCRATCH).exists()


def test_a_stopped_run_encodes_no_block_twice(
    few: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path, few, Generation("extract", each=2))
    monkeypatch.setattr(vectors, "BLOCK", 16)
    encode, encoded = static.StaticEncoder.encode_documents, list[int]()

    def stopped(self: static.StaticEncoder, texts: Sequence[str]) -> vectors.Floats:
        if sum(encoded) >= 48:
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(static.StaticEncoder, "encode_documents", stopped)
    with pytest.raises(KeyboardInterrupt):
        mine(tmp_path, Mining())
    assert encoded == [16, 16, 16]

    def counted(self: static.StaticEncoder, texts: Sequence[str]) -> vectors.Floats:
        encoded.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(static.StaticEncoder, "encode_documents", counted)
    first = mine(tmp_path, Mining())
    assert sum(encoded) == len(few)
    assert mine(tmp_path, Mining()) == first
    assert sum(encoded) == len(few), "nothing is done where the table is there, made from the same"
    mine(tmp_path, Mining(candidates=5))
    assert sum(encoded) == 2 * len(few)


def test_what_cannot_be_mined_is_said(few: list[Passage], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="run the step"):
        mine(tmp_path, Mining())
    generate(tmp_path, few, Generation("extract"))
    with pytest.raises(NotFound, match="no encoder"):
        mine(tmp_path, Mining(encoder="nothing"))
    with pytest.raises(InvalidInput, match="candidates"):
        Mining(candidates=1)
