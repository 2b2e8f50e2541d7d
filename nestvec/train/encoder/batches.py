"""What a batch of triples teaches: how texts are formed, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestvec.engine.coordinates import F32
from nestvec.engine.encoders import Encoder
from nestvec.engine.encoders.static import TEXT

if TYPE_CHECKING:
    import torch

    from nestvec.train.encoder.losses import Guide
    from nestvec.train.encoder.step import Training
    from nestvec.train.encoder.towers import Tower

PLAIN = {"query": TEXT, "document": TEXT}
TASK = "search result"
_SCORES = 8
"""Of so many texts a query the teacher's scores are learned from unasked: of 20 they gained, of 2 they did harm."""
_TEACHER_SPREAD = 5.0
"""Standard deviation, in nats, of a teacher's scores of one query's texts: that of a good model's cosines over a
temperature of .03. With 1 its softmax is so flat that it teaches to tell nothing apart."""


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

    given = min((len(triple.negatives) for triple in batch), default=0)
    k = min(given, wanted.negatives)
    weight = _weight(tower, wanted, given)
    teacher = _teacher(batch, given) if weight and given else None
    texts = [formed(triple, wanted, k if teacher is None else given) for triple in batch]
    queries = tower.vectors([query for query, _ in texts])
    documents = _vectors(tower, [each for _, each in texts])
    guided = _guide(guide, batch, k, queries.device) if guide is not None else None
    teacher = None if teacher is None else teacher.to(queries.device)

    def loss(dims: int) -> torch.Tensor:
        found = losses.contrast(
            queries[:, :dims],
            documents[:, 0, :dims],
            documents[:, 1 : 1 + k, :dims] if k else None,
            temperature=wanted.temperature,
            same_tower=wanted.same_tower,
            guide=guided,
        )
        if teacher is None:
            return found
        part = losses.distil(queries[:, :dims], documents[..., :dims], teacher, temperature=wanted.temperature)
        return found + weight * part

    return losses.nested(loss, tower.granularities)


def _weight(tower: Tower, wanted: Training, given: int) -> float:
    """Of the teacher's scores. A network would read all these texts at every step: there it must be asked for."""
    if wanted.distil is not None:
        return wanted.distil
    return 1.0 if tower.kind == "static" and 1 + given >= _SCORES else 0.0


def _vectors(tower: Tower, texts: Sequence[Sequence[str]]) -> torch.Tensor:
    """f32 [queries, texts of each, dims]; candidates of several queries are encoded once."""
    import torch

    places = {text: place for place, text in enumerate(dict.fromkeys(text for each in texts for text in each))}
    return tower.vectors(list(places))[torch.tensor([[places[text] for text in each] for each in texts])]


def formed(triple: Triple, wanted: Training, k: int) -> tuple[str, list[str]]:
    """(query, [positive, negatives...]) as the tower reads them."""
    form = templates(wanted)
    task = triple.task or TASK
    query = form["query"].replace(TASK, task) if wanted.tasks else form["query"]
    documents = [triple.positive, *triple.negatives[:k]]
    return query.replace(TEXT, triple.query), [form["document"].replace(TEXT, text) for text in documents]


def _guide(encoder: Encoder, batch: Sequence[Triple], k: int, device: torch.device) -> Guide:
    import torch

    from nestvec.train.encoder.losses import Guide

    def vectors(found: F32) -> torch.Tensor:
        return torch.from_numpy(found).to(device)

    negatives = [text for triple in batch for text in triple.negatives[:k]]
    return Guide(
        vectors(encoder.encode_queries([triple.query for triple in batch])),
        vectors(encoder.encode_documents([triple.positive for triple in batch])),
        vectors(encoder.encode_documents(negatives)).reshape(len(batch), k, -1) if k else None,
    )


def _teacher(batch: Sequence[Triple], k: int) -> torch.Tensor | None:
    """f32 [n, 1 + k]: each query's scores, those of the batch brought to one spread; None where a triple lacks some."""
    import torch

    if any(len(triple.teacher) <= k for triple in batch):
        return None
    scores = torch.tensor([triple.teacher[: 1 + k] for triple in batch])
    scores = scores - scores.mean(1, keepdim=True)
    return scores * (_TEACHER_SPREAD / scores.square().mean().sqrt().clamp_min(1e-6))
