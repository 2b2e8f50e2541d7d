"""What an encoder is trained by. Every loss works on prefixes too, so that they are embeddings of their own.

Contrast: Gecko (arXiv 2403.20327, eq. 3). Prefixes: Kusupati et al. 2022, "Matryoshka Representation Learning".
Guide: Solatorio 2024, "GISTEmbed" (arXiv 2402.16829). Distillation: KL divergence from the teacher's scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, normalize

_NEVER = -1e4  # as a score: no part in the softmax


@dataclass(frozen=True)
class Guide:
    """Unit vectors f32 of the same batch by a model that is trusted to tell a false negative: queries and positives
    [n, d], hard negatives [n, k, d] or None."""

    queries: Tensor
    positives: Tensor
    negatives: Tensor | None


def contrast(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    *,
    temperature: float,
    same_tower: bool = True,
    guide: Guide | None = None,
) -> Tensor:
    """Mean over the batch of -log of the positive's share: f32 scalar.

    queries and positives f32 [n, dims]; negatives f32 [n, k, dims], each query's own. Against a query stand all
    positives of the batch, its own negatives, and with `same_tower` the other queries. With a `guide`, a negative that
    it finds nearer to the query than the positive is left out.
    """
    queries, positives = normalize(queries, dim=1), normalize(positives, dim=1)
    own = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    parts = [queries @ positives.T]
    if same_tower:
        parts.append((queries @ queries.T).masked_fill(own, _NEVER * temperature))
    if negatives is not None:
        parts.append(torch.einsum("nd,nkd->nk", queries, normalize(negatives, dim=2)))
    scores = torch.cat(parts, dim=1) / temperature
    if guide is not None:
        scores = scores.masked_fill(_false_negatives(guide, own, same_tower=same_tower), _NEVER)
    return cross_entropy(scores, torch.arange(len(queries), device=queries.device))


def _false_negatives(guide: Guide, own: Tensor, *, same_tower: bool) -> Tensor:
    """bool: the columns of `contrast` that the guide scores above the row's positive."""
    parts = [guide.queries @ guide.positives.T]
    positive = parts[0].diagonal()[:, None]
    false = [(parts[0] > positive) & ~own]
    if same_tower:
        false.append(guide.queries @ guide.queries.T > positive)
    if guide.negatives is not None:
        false.append(torch.einsum("nd,nkd->nk", guide.queries, guide.negatives) > positive)
    return torch.cat(false, dim=1)


def distil(queries: Tensor, candidates: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL divergence of the scores of each query's candidates from the teacher's: f32 scalar.

    queries f32 [n, dims], candidates f32 [n, k, dims], teacher f32 [n, k]: logarithms of weights, any constant added.
    """
    scores = torch.einsum("nd,nkd->nk", normalize(queries, dim=1), normalize(candidates, dim=2)) / temperature
    return kl_div(log_softmax(scores, 1), log_softmax(teacher, 1), log_target=True, reduction="batchmean")


def distil_batch(vectors: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float) -> Tensor:
    """KL divergence of how near each text of a batch is to the others from how near the teacher has them: f32 scalar.

    vectors f32 [n, dims]; teacher f32 [n, d] unit vectors of the same texts.
    """
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    unit = normalize(vectors, dim=1)
    scores = (unit @ unit.T / temperature).masked_fill(own, _NEVER)
    wanted = (teacher @ teacher.T / teacher_temperature).masked_fill(own, _NEVER)
    return kl_div(log_softmax(scores, 1), log_softmax(wanted, 1), log_target=True, reduction="batchmean")


def away(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 - cosine of f32 [n, dims] to the vectors they should be."""
    return (1 - cosine_similarity(vectors, wanted)).mean()


def nested(loss: Callable[[int], Tensor], granularities: Sequence[int]) -> Tensor:
    """Mean of `loss(dims)` over the prefix lengths."""
    return torch.stack([loss(dims) for dims in granularities]).mean()
