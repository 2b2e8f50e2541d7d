"""The losses of a tree, over tensors of one batch. Rows i of queries and documents belong together.

Path similarity and balance: LAB notes of this project; hinge and intra-leaf terms: EHI (arXiv 2310.08891), section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HINGE_MARGIN = 0.3
_LOWEST = -1e4


def contrastive(scores: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE of scores [b, b + extra]; `same` bool [b, b + extra] marks what is no negative.

    Columns beyond b are further negatives of the queries. The diagonal is the pairs.
    """
    import torch
    from torch.nn.functional import cross_entropy

    size = scores.shape[0]
    own = torch.eye(size, scores.shape[1], dtype=torch.bool, device=scores.device)
    masked = scores.masked_fill(same & ~own, _LOWEST)
    target = torch.arange(size, device=scores.device)
    return 0.5 * (cross_entropy(masked, target) + cross_entropy(masked[:, :size].T, target))


def path_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """log sum_b p_b(q) p_b(d) of log-probabilities [b, leaves] and [c, leaves]: [b, c]."""
    return (queries.exp() @ documents.exp().T + 1e-9).log()


def balance(documents: Tensor) -> Tensor:
    """KL(mean p || uniform) of log-probabilities [b, leaves]: 0 where the batch fills all leaves alike."""
    mean = documents.exp().mean(0)
    return (mean * (mean * mean.shape[0] + 1e-9).log()).sum()


def below(nodes: Tensor, leaves: Tensor) -> Tensor:
    """Cross-entropy of log-probabilities of nodes [b, n] to what one softmax over all leaves gives those below each.

    leaves [b, n * width]: their logits, family by family. A family says only how its leaves compare with each other, so
    the node must say how they compare with all others.
    """
    from torch.nn.functional import softmax

    mass = softmax(leaves, dim=-1).reshape(*nodes.shape, -1).sum(-1)
    return -(mass * nodes).sum(-1).mean()


def hinge(queries: Tensor, documents: Tensor, same: Tensor) -> Tensor:
    """The paper's L_indexing with the batch's own hardest negative: path cosines of [b, leaves] and [c, leaves]."""
    import torch
    from torch.nn.functional import normalize

    size = queries.shape[0]
    cosines = normalize(queries.exp(), dim=-1) @ normalize(documents.exp(), dim=-1).T
    hardest = cosines.masked_fill(same, -1.0).max(dim=1).values
    return torch.relu(hardest - cosines[:, :size].diagonal() + HINGE_MARGIN).mean()


def intra_leaf(vectors: Tensor, documents: Tensor) -> Tensor:
    """The paper's L_intra: mean cosine of two different documents of a batch that have the same best leaf.

    Weighted by the probability of that leaf, so that the router learns too. vectors [b, d] of length 1, documents [b,
    leaves] log-probabilities.
    """
    probability, leaf = documents.max(dim=1)
    together = (leaf[:, None] == leaf[None]).to(vectors.dtype)
    together.fill_diagonal_(0.0)
    sure = probability.exp()
    weights = together * sure[:, None] * sure[None]
    return (weights * (vectors @ vectors.T)).sum() / weights.sum().clamp(min=1.0)
