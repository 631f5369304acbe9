"""Losses as a numerator and a denominator, so that the loss of a global batch is exact on any number of ranks.

The mean of the ranks' mean losses is not the mean over the global batch once weights, ignored targets or shards are
uneven. So denominators are summed over ranks first (they need no gradients), and local numerators divided by them.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stssl.base.batch import IGNORED
from stssl.base.config import Config, Domain

Distance = Literal["mse", "mae", "cosine", "logits", "none"]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each decision, 0 where the target is ignored.

    Args:
        logits: [B, G, K].
        target: [B, G] choice ids (`IGNORED` counts nothing), or [B, G, K] distributions.

    Returns:
        [B, G].
    """
    log_probability = functional.log_softmax(logits, -1)
    if target.dtype.is_floating_point:
        return -(target * log_probability).sum(-1)
    chosen = log_probability.gather(-1, target.clamp_min(0)[..., None])[..., 0]
    return torch.where(target == IGNORED, 0.0, -chosen)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """Squared distance of probabilities, mean over ways: [B, G] from logits [B, G, K] and targets as above."""
    if not target.dtype.is_floating_point:
        ids = functional.one_hot(target.clamp_min(0), logits.shape[-1]).to(logits.dtype)
        error = (logits.softmax(-1) - ids).square().mean(-1)
        return torch.where(target == IGNORED, 0.0, error)
    return (logits.softmax(-1) - target).square().mean(-1)


class AsymmetricConfig(Config):
    """Focus on hard negatives and positives, margin of absence, and how the focusing weight is taken."""

    gamma_negative: Annotated[float, Field(ge=0), Domain(0.0, 6.0)] = 4.0
    gamma_positive: Annotated[float, Field(ge=0), Domain(0.0, 3.0)] = 1.0
    clip: Annotated[float, Field(ge=0, lt=1), Domain(0.0, 0.2)] = 0.05
    detach_focus: bool = True
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-8


def asymmetric(
    logits: Tensor,
    target: Tensor,
    *,
    gamma_negative: float,
    gamma_positive: float,
    clip: float,
    detach_focus: bool = True,
    epsilon: float = 1e-8,
) -> Tensor:
    """Asymmetric loss for multi-label decisions (Ridnik et al., ICCV 2021, arXiv:2009.14119).

    Args:
        logits: [B, G, 2], the second way is "present".
        target: [B, G] choice ids, or [B, G, 2] distributions.
        gamma_negative: Focus on hard negatives.
        gamma_positive: Focus on hard positives.
        clip: Margin that the probability of absence is raised by.
        detach_focus: Whether the focusing weight carries no gradient.
        epsilon: Least value of a logarithm's argument.

    Returns:
        [B, G], 0 where the target is ignored.
    """
    present = target[..., 1] if target.dtype.is_floating_point else target.clamp_min(0).to(logits.dtype)
    positive = presence(logits)
    negative = (1 - positive + clip).clamp_max(1)
    likelihood = present * positive.clamp_min(epsilon).log()
    likelihood = likelihood + (1 - present) * negative.clamp_min(epsilon).log()
    right = positive * present + negative * (1 - present)
    gamma = gamma_positive * present + gamma_negative * (1 - present)
    focus = (1 - right).clamp_min(0).pow(gamma)
    loss = -likelihood * (focus.detach() if detach_focus else focus)
    return loss if target.dtype.is_floating_point else torch.where(target == IGNORED, 0.0, loss)


def presence(logits: Tensor) -> Tensor:
    """Probability that a class is there: [B, C] from [B, C, 2]."""
    return (logits[..., 1] - logits[..., 0]).sigmoid()


def distance(kind: Distance, student: Tensor, teacher: Tensor) -> tuple[Tensor, float]:
    """Measure how far the student's context is from the teacher's: (sum, count of terms on this rank).

    Args:
        kind: `mse` and `mae` mean over all entries; `cosine` is minus the mean cosine similarity of rows.
        student: [N, D].
        teacher: [N, D], taken without gradients.
    """
    teacher = teacher.detach()
    if kind == "mse":
        return (student - teacher).square().sum(), student.numel()
    if kind == "mae":
        return (student - teacher).abs().sum(), student.numel()
    if kind == "cosine":
        return -functional.cosine_similarity(student, teacher, dim=-1).sum(), len(student)
    return student.sum() * 0.0, 1


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, float]:
    """KL divergence of the student's from the teacher's softened ways (Hinton et al. 2015), as (sum, count).

    Args:
        student: Logits [N, G, K].
        teacher: Logits [N, G, K], taken without gradients.
        temperature: Both are divided by it; the loss is scaled by its square.
    """
    log_student = functional.log_softmax(student / temperature, -1)
    log_teacher = functional.log_softmax(teacher.detach() / temperature, -1)
    terms = (log_teacher.exp() * (log_teacher - log_student)).sum(-1) * temperature**2
    return terms.sum(), terms.numel()


def fairness(total: Tensor, count: Tensor, marginal: Tensor, histogram: Tensor) -> Tensor:
    """FreeMatch's fairness term (Wang et al., ICLR 2023, arXiv:2205.07246), with the sign that is added to a loss.

    The marginal p and the mean prediction q, both divided by how often each choice was chosen and normalized, give
    sum(p log q), minus their cross-entropy; a way that was never chosen counts as 0.

    Args:
        total: [G, K] sum of selected rows' probabilities.
        count: [G, K] how many selected rows choose each choice; taken without gradients.
        marginal: [G, K] distribution that the mean should follow.
        histogram: [G, K] share of each choice among the labeler's choices.

    Returns:
        The sum over groups; groups without a selected row add 0.
    """
    count = count.detach()
    rows = count.sum(-1, keepdim=True)
    mean = normalized(total / rows.clamp_min(1) * _inverse(count / rows.clamp_min(1)) + (rows == 0))
    goal = normalized(marginal * _inverse(histogram))
    return torch.where(rows == 0, 0.0, goal * (mean + 1e-12).log()).sum()


def normalized(positive: Tensor) -> Tensor:
    """Divided by its sum over the last axis."""
    return positive / positive.sum(-1, keepdim=True)


def _inverse(value: Tensor) -> Tensor:
    """1 / value, and 0 for 0."""
    return torch.where(value > 0, 1 / value.clamp_min(torch.finfo(value.dtype).tiny), 0.0)
