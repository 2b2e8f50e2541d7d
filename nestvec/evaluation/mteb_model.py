"""An encoder and the engine as a model that `mteb` evaluates: retrieval by the engine, other tasks by the vectors.

    mteb.evaluate(MtebModel("static", rank="hybrid"), tasks=mteb.get_tasks(tasks=["SciFact"]))

It has mteb's SearchProtocol (index, search), by which mteb then retrieves and reranks, and its EncoderProtocol (encode,
similarity) for classification, clustering, and so on (Muennighoff et al., arXiv 2210.07316).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from nestvec.engine.collection import Collection
from nestvec.engine.coordinates import F32
from nestvec.engine.database import Database, open
from nestvec.engine.encoders import load_encoder
from nestvec.engine.fusion import Fusion
from nestvec.engine.intake import Batch
from nestvec.engine.plan import MAX_K, Plan
from nestvec.engine.ranking import Rank
from nestvec.errors import InvalidInput, MissingDependency
from nestvec.evaluation.files import document_text

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from mteb.types import Array

_ROWS_AT_ONCE, _QUERIES_AT_ONCE = 1000, 64
_FIELD = "document"


class MtebModel:
    """One encoder with one way to search. What it indexes lies in a temporary directory; `close` removes it."""

    def __init__(
        self,
        encoder: str = "static",
        *,
        rank: Rank = "dense",
        recall: float | None = None,
        plan: Plan | None = None,
        exact: bool = False,
        fusion: Fusion | None = None,
    ) -> None:
        """The options are those of `Collection.search`. Raises MissingDependency without mteb, and as the encoder's
        loading does."""
        if find_spec("mteb") is None:
            raise MissingDependency("the model for mteb", "mteb")
        self._encoder, self._rank = load_encoder(encoder), rank
        self._how: dict[str, Any] = {"rank": rank, "recall": recall, "plan": plan, "exact": exact, "fusion": fusion}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._database: Database | None = None
        self._collection: Collection | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """mteb's ModelMeta: named after the encoder and the way to search, the encoder's fingerprint as revision."""
        from mteb.models import ModelMeta

        words = re.sub(r"[^A-Za-z0-9_.]+", "-", self._encoder.name).strip("-")
        told = {key: value for key, value in self._how.items() if value not in (None, False)}
        facts = {
            "name": f"nestvec/{words}-{self._rank}",
            "revision": self._encoder.fingerprint,
            "embed_dim": self._encoder.dims,
            "experiment_kwargs": {key: str(value) for key, value in told.items()},
        }
        return ModelMeta.create_empty(overwrites=facts)

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: object = None, **_: object) -> F32:
        """f32 [texts, dims] of length 1, for batches with a list of texts as "text".

        mteb says whether they are queries; where it does not, they are encoded as documents.
        """
        encode = self._encoder.encode_queries if prompt_type == "query" else self._encoder.encode_documents
        found = [encode(list(batch["text"])) for batch in inputs]
        return np.concatenate(found) if found else np.empty((0, self._encoder.dims), np.float32)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines [n, m] of vectors [n, dims] and [m, dims], as a torch tensor."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines [n] of vectors [n, dims] and [n, dims], as a torch tensor."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def index(self, corpus: Iterable[Mapping[str, Any]], **_: object) -> None:
        """Build a collection of rows with "id", "text" and maybe "title"; those without any text cannot be found."""
        self.close()
        self._scratch = tempfile.TemporaryDirectory(prefix="nestvec-mteb-")
        self._database = open(self._scratch.name)
        made = self._database.create_collection("corpus", encoder=self._encoder.name, bm25=True)
        made.build(_batches(corpus))
        self._collection = made

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: object,
    ) -> dict[str, dict[str, float]]:
        """Query -> document -> score, of the top_k (at most 1,000) best for rows with "id" and "text".

        `top_ranked` (query -> documents) leaves only these to rank. Raises InvalidInput before `index`, and for a query
        that is no text.
        """
        if self._collection is None:
            raise InvalidInput("mteb's search comes after its index: nothing is indexed yet")
        asked = [(str(row["id"]), _text(row)) for row in queries]
        k = min(top_k, MAX_K)
        if top_ranked is not None:
            return {id: self._rerank(text, k, list(top_ranked.get(id, ()))) for id, text in asked}
        found: dict[str, dict[str, float]] = {}
        for start in range(0, len(asked), _QUERIES_AT_ONCE):
            block = asked[start : start + _QUERIES_AT_ONCE]
            hits = self._collection.search_batch(
                texts=[text for _, text in block], k=k, with_payload=False, **self._how
            )
            found |= {id: {hit.id: hit.score for hit in each} for (id, _), each in zip(block, hits, strict=True)}
        return found

    def _rerank(self, text: str, k: int, documents: list[str]) -> dict[str, float]:
        assert self._collection is not None  # checked by search
        if not documents:
            return {}
        only = {"field": _FIELD, "in": documents}
        hits = self._collection.search(text=text, k=k, filter=only, with_payload=False, **self._how)
        return {hit.id: hit.score for hit in hits}

    def close(self) -> None:
        """Remove what was indexed."""
        if self._database is not None:
            self._database.close()
        if self._scratch is not None:
            self._scratch.cleanup()
        self._collection = self._database = self._scratch = None


def _batches(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Batch]:
    ids: list[str] = []
    texts: list[str] = []
    start = 0
    for row in corpus:
        text = document_text(row.get("title") or "", row.get("text") or "")
        if text:
            ids.append(str(row["id"]))
            texts.append(text)
        if len(ids) == _ROWS_AT_ONCE:
            yield _batch(start, ids, texts)
            start, ids, texts = start + len(ids), [], []
    if ids:
        yield _batch(start, ids, texts)


def _batch(start: int, ids: list[str], texts: list[str]) -> Batch:
    return Batch(start, ids, texts=texts, payloads=[{_FIELD: id} for id in ids])


def _text(row: Mapping[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise InvalidInput(f"query {row.get('id')!r:.100}: expected a text, got {type(text).__name__}")
    instruction = row.get("instruction")
    return f"{text} {instruction}" if isinstance(instruction, str) and instruction else text
