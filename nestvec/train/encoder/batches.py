"""What a batch of triples teaches: how texts are formed, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestvec.engine.encoders import Encoder
from nestvec.engine.encoders.static import TEXT

if TYPE_CHECKING:
    import torch

    from nestvec.train.encoder.losses import Guide
    from nestvec.train.encoder.step import Training
    from nestvec.train.encoder.towers import Tower

PLAIN = {"query": TEXT, "document": TEXT}
TASK = "search result"


@dataclass(frozen=True)
class Triple:
    """A query, the text that answers it, texts that do not, and a teacher's scores of all of them, if there are."""

    task: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    teacher: tuple[float, ...] = ()


def templates(wanted: Training) -> dict[str, str]:
    """What stands around texts: nothing, or Gecko's input format. A collection's documents hold their titles in their
    text, so that the format's own title is none, in training as in use."""
    if not wanted.tasks:
        return PLAIN
    return {"query": f"task: {TASK} | query: {TEXT}", "document": f"title: none | text: {TEXT}"}


def batch_loss(tower: Tower, batch: Sequence[Triple], wanted: Training, guide: Encoder | None = None) -> torch.Tensor:
    """The loss of one batch: contrast, and the teacher's scores where they are wanted and there: f32 scalar."""
    from nestvec.train.encoder import losses

    k = min((len(triple.negatives) for triple in batch), default=0)
    k = min(k, wanted.negatives)
    texts = [formed(triple, wanted, k) for triple in batch]
    queries = tower.vectors([query for query, _ in texts])
    documents = tower.vectors([document for _, each in texts for document in each])
    documents = documents.reshape(len(batch), 1 + k, -1)
    guided = _guide(guide, batch, k) if guide is not None else None
    teacher = _teacher(batch, k) if wanted.distil and k else None

    def loss(dims: int) -> torch.Tensor:
        found = losses.contrast(
            queries[:, :dims],
            documents[:, 0, :dims],
            documents[:, 1:, :dims] if k else None,
            temperature=wanted.temperature,
            same_tower=wanted.same_tower,
            guide=guided,
        )
        if teacher is None:
            return found
        part = losses.distil(queries[:, :dims], documents[..., :dims], teacher, temperature=wanted.temperature)
        return found + wanted.distil * part

    return losses.nested(loss, tower.granularities)


def formed(triple: Triple, wanted: Training, k: int) -> tuple[str, list[str]]:
    """(query, [positive, negatives...]) as the tower reads them."""
    form = templates(wanted)
    task = triple.task or TASK
    query = form["query"].replace(TASK, task) if wanted.tasks else form["query"]
    documents = [triple.positive, *triple.negatives[:k]]
    return query.replace(TEXT, triple.query), [form["document"].replace(TEXT, text) for text in documents]


def _guide(encoder: Encoder, batch: Sequence[Triple], k: int) -> Guide:
    import torch

    from nestvec.train.encoder.losses import Guide

    negatives = [text for triple in batch for text in triple.negatives[:k]]
    found = torch.from_numpy(encoder.encode_documents(negatives)).reshape(len(batch), k, -1) if k else None
    return Guide(
        torch.from_numpy(encoder.encode_queries([triple.query for triple in batch])),
        torch.from_numpy(encoder.encode_documents([triple.positive for triple in batch])),
        found,
    )


def _teacher(batch: Sequence[Triple], k: int) -> torch.Tensor | None:
    """f32 [n, 1 + k] in units of the batch's spread; None where a triple lacks scores."""
    import torch

    if any(len(triple.teacher) <= k for triple in batch):
        return None
    scores = torch.tensor([triple.teacher[: 1 + k] for triple in batch])
    return scores / scores.std().clamp_min(1e-6)
