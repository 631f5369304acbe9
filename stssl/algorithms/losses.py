"""Compute losses as a numerator and a denominator, so that the loss of a global batch is exact on any number of ranks.

The mean of the ranks' mean losses is not the mean over the global batch once weights, ignored targets or shards are
uneven. So denominators are summed over ranks first (they need no gradients), and each rank divides its numerators by
them.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stssl.base.batch import IGNORED
from stssl.base.config import Config, Domain

Distance = Literal["mse", "mae", "cosine", "logits", "none"]
"""Measure that distillation makes small between student and teacher.

`mse`, `mae` and `cosine` compare context vectors, `logits` the softened predictions; `none` compares nothing.
"""


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of each decision.

    Args:
        logits: [B, G, K].
        target: [B, G] choice ids, `IGNORED` where unknown; or [B, G, K] distributions.

    Returns:
        [B, G], 0 where the target is ignored.
    """
    log_probability = functional.log_softmax(logits, -1)
    if target.dtype.is_floating_point:
        return -(target * log_probability).sum(-1)
    # `IGNORED` is -1, which `gather` refuses: look up choice 0 and mask the result.
    chosen = log_probability.gather(-1, target.clamp_min(0)[..., None])[..., 0]
    return torch.where(target == IGNORED, 0.0, -chosen)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the squared error of probabilities, mean over choices.

    Args:
        logits: [B, G, K].
        target: [B, G] choice ids, `IGNORED` where unknown; or [B, G, K] distributions.

    Returns:
        [B, G], 0 where the target is ignored.
    """
    if not target.dtype.is_floating_point:
        ids = functional.one_hot(target.clamp_min(0), logits.shape[-1]).to(logits.dtype)
        error = (logits.softmax(-1) - ids).square().mean(-1)
        return torch.where(target == IGNORED, 0.0, error)
    return (logits.softmax(-1) - target).square().mean(-1)


class AsymmetricConfig(Config):
    """Configure the asymmetric loss.

    Attributes:
        gamma_negative: Exponent of the focusing weight of negatives: a larger one counts easy negatives less.
        gamma_positive: Exponent of the focusing weight of positives.
        clip: Margin added to the probability of "absent", so that very easy negatives count nothing.
        detach_focus: True to take the focusing weight without gradients.
        epsilon: Least argument of a logarithm.
    """

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
    """Compute the asymmetric loss of multi-label decisions (Ridnik et al., ICCV 2021, arXiv:2009.14119).

    Args:
        logits: [B, G, 2]; the second choice is "present".
        target: [B, G] choice ids, or [B, G, 2] distributions.
        gamma_negative: Exponent of the focusing weight of negatives: a larger one counts easy negatives less.
        gamma_positive: Exponent of the focusing weight of positives.
        clip: Margin added to the probability of "absent", so that very easy negatives count nothing.
        detach_focus: True to take the focusing weight without gradients.
        epsilon: Least argument of a logarithm.

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
    # Rounding can make `right` larger than 1, and a power of a negative number is NaN.
    focus = (1 - right).clamp_min(0).pow(gamma)
    loss = -likelihood * (focus.detach() if detach_focus else focus)
    return loss if target.dtype.is_floating_point else torch.where(target == IGNORED, 0.0, loss)


def presence(logits: Tensor) -> Tensor:
    """Compute the probability [B, C] of "present" from logits [B, C, 2]."""
    return (logits[..., 1] - logits[..., 0]).sigmoid()


def distance(kind: Distance, student: Tensor, teacher: Tensor) -> tuple[Tensor, float]:
    """Measure how far the student's context is from the teacher's.

    Args:
        kind: `mse` and `mae` sum over entries; `cosine` sums minus the cosine similarity of rows; others give 0.
        student: [N, D].
        teacher: [N, D], taken without gradients.

    Returns:
        The sum over this rank's terms, and the number of terms.
    """
    teacher = teacher.detach()
    if kind == "mse":
        return (student - teacher).square().sum(), student.numel()
    if kind == "mae":
        return (student - teacher).abs().sum(), student.numel()
    if kind == "cosine":
        return -functional.cosine_similarity(student, teacher, dim=-1).sum(), len(student)
    # A zero that still depends on the student: DDP needs every parameter in the graph of every step.
    return student.sum() * 0.0, 1


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Compute the KL divergence of the student's softened predictions from the teacher's (Hinton et al. 2015).

    Args:
        student: Logits [N, G, K].
        teacher: Logits [N, G, K], taken without gradients.
        temperature: Both logits are divided by it; the loss is multiplied by its square.

    Returns:
        The sum over this rank's decisions, and the number of decisions.
    """
    log_student = functional.log_softmax(student / temperature, -1)
    log_teacher = functional.log_softmax(teacher.detach() / temperature, -1)
    terms = (log_teacher.exp() * (log_teacher - log_student)).sum(-1) * temperature**2
    return terms.sum(), terms.numel()


def fairness(total: Tensor, count: Tensor, marginal: Tensor, histogram: Tensor) -> Tensor:
    """Compute FreeMatch's fairness term (Wang et al., ICLR 2023, arXiv:2205.07246), to be added to a loss.

    Divide the marginal and the mean prediction by how often each choice was made, and normalize both to p and q. The
    term is sum(p log q), minus their cross-entropy. A choice that was never made counts as 0.

    Args:
        total: [G, K] sum of selected rows' probabilities.
        count: [G, K] number of selected rows that make each choice, taken without gradients.
        marginal: [G, K] distribution that the mean should follow.
        histogram: [G, K] share of each choice among the labeler's choices.

    Returns:
        The sum over groups; groups without a selected row add 0.
    """
    count = count.detach()
    rows = count.sum(-1, keepdim=True)
    # A group without rows must have no 0 / 0 even where the result is masked: its gradient would be NaN * 0 = NaN.
    mean = normalized(total / rows.clamp_min(1) * _inverse(count / rows.clamp_min(1)) + (rows == 0))
    goal = normalized(marginal * _inverse(histogram))
    return torch.where(rows == 0, 0.0, goal * (mean + 1e-12).log()).sum()


def normalized(positive: Tensor) -> Tensor:
    """Divide non-negative values [..., K] by their sum over the last axis."""
    return positive / positive.sum(-1, keepdim=True)


def _inverse(value: Tensor) -> Tensor:
    """Return 1 / value, and 0 where the value is 0."""
    # Without the clamp the masked branch is infinite, and its gradient NaN.
    return torch.where(value > 0, 1 / value.clamp_min(torch.finfo(value.dtype).tiny), 0.0)
