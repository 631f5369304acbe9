"""Compute losses in a form that gives the same mean over the global batch on any number of ranks.

If ranks differ in weights, ignored targets or number of rows, the mean of their mean losses is not the mean over the
global batch. Therefore, functions here return losses of single decisions, or a sum and the number of its terms. The
training step adds the numbers over ranks, which needs no gradients; each rank divides its sums by the result.

In shapes, a row is one patch of a batch. A single-label task has one decision for each row, with one choice for each
class. A multi-label task has one decision for each class, with two choices: "absent" and "present".
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stssl.base.batch import IGNORED
from stssl.base.config import Config, Domain

Distance = Literal["mse", "mae", "cosine", "logits", "none"]
"""Distance between student and teacher that distillation minimizes.

`mse`, `mae` and `cosine` compare context vectors (encoded place and date). `logits` compares predictions, softened by a
temperature. `none` compares nothing.
"""


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of each decision (a patch or, if multi-label, a class of a patch).

    Args:
        logits: [rows, decisions, choices] logits.
        target: [rows, decisions] ids of choices (`IGNORED` if unknown), or [rows, decisions, choices] distributions.

    Returns:
        [rows, decisions] losses; 0 for ignored targets.
    """
    log_probability = functional.log_softmax(logits, -1)
    if target.dtype.is_floating_point:
        return -(target * log_probability).sum(-1)
    # `IGNORED` is -1, which `gather` does not accept: look up choice 0 for such targets, and set their loss to 0 below.
    chosen = log_probability.gather(-1, target.clamp_min(0)[..., None])[..., 0]
    return torch.where(target == IGNORED, 0.0, -chosen)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the squared error of each decision (a patch or, if multi-label, a class of a patch).

    The error lies between predicted probabilities and targets, and is averaged over the choices of a decision.

    Args:
        logits: [rows, decisions, choices] logits of the predictions.
        target: [rows, decisions] ids of choices (`IGNORED` if unknown), or [rows, decisions, choices] distributions.

    Returns:
        [rows, decisions] losses; 0 for ignored targets.
    """
    if not target.dtype.is_floating_point:
        ids = functional.one_hot(target.clamp_min(0), logits.shape[-1]).to(logits.dtype)
        error = (logits.softmax(-1) - ids).square().mean(-1)
        return torch.where(target == IGNORED, 0.0, error)
    return (logits.softmax(-1) - target).square().mean(-1)


class AsymmetricConfig(Config):
    """Define the settings of the asymmetric loss for multi-label tasks (arXiv:2009.14119).

    Attributes:
        gamma_negative: Exponent of the focusing weight of negatives. A larger value makes easy negatives count less.
        gamma_positive: Exponent of the focusing weight of positives.
        clip: Number to add to the probability of "absent". With it, very easy negatives have no loss.
        detach_focus: True to let no gradients flow through the focusing weight.
        epsilon: Lower bound of probabilities before the logarithm.
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

    A decision is a class of a patch.

    Args:
        logits: [rows, decisions, 2] logits of "absent" and "present".
        target: [rows, decisions] 1 (present), 0 (absent) or `IGNORED`; or [rows, decisions, 2] distributions.
        gamma_negative: Exponent of the focusing weight of negatives. A larger value makes easy negatives count less.
        gamma_positive: Exponent of the focusing weight of positives.
        clip: Number to add to the probability of "absent". With it, very easy negatives have no loss.
        detach_focus: True to let no gradients flow through the focusing weight.
        epsilon: Lower bound of probabilities before the logarithm.

    Returns:
        [rows, decisions] losses; 0 for ignored targets.
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
    """Return the probability [rows, classes] that a class is present in a patch (multi-label).

    Args:
        logits: [rows, classes, 2] logits of "absent" and "present" of each class.
    """
    return (logits[..., 1] - logits[..., 0]).sigmoid()


def distance(kind: Distance, student: Tensor, teacher: Tensor) -> tuple[Tensor, float]:
    """Compute the distance between the student's and the teacher's context vectors (encoded place and date).

    It is a loss for distillation.

    Args:
        kind: `mse` and `mae` sum errors over all entries. `cosine` sums minus the cosine similarity over rows. Other
            kinds give 0.
        student: [rows, width] context vectors of the student, one for each patch.
        teacher: [rows, width] context vectors of the teacher. No gradients flow into them.

    Returns:
        The sum over the patches of this rank, and the number of its terms, by which the training step divides.
    """
    teacher = teacher.detach()
    if kind == "mse":
        return (student - teacher).square().sum(), student.numel()
    if kind == "mae":
        return (student - teacher).abs().sum(), student.numel()
    if kind == "cosine":
        return -functional.cosine_similarity(student, teacher, dim=-1).sum(), len(student)
    # Return 0 times the student's vectors, not just 0: DDP needs a gradient for every parameter at every step.
    return student.sum() * 0.0, 1


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Compute the Kullback-Leibler divergence KL(teacher || student) of softened predictions (Hinton et al. 2015).

    A decision is a patch or, if multi-label, a class of a patch.

    Args:
        student: [rows, decisions, choices] logits of the student.
        teacher: [rows, decisions, choices] logits of the teacher. No gradients flow into them.
        temperature: Divisor of both logits. The loss is multiplied by its square.

    Returns:
        The sum over the decisions of this rank, and the number of these decisions, by which the training step divides.
    """
    log_student = functional.log_softmax(student / temperature, -1)
    log_teacher = functional.log_softmax(teacher.detach() / temperature, -1)
    terms = (log_teacher.exp() * (log_teacher - log_student)).sum(-1) * temperature**2
    return terms.sum(), terms.numel()


def fairness(total: Tensor, count: Tensor, marginal: Tensor, histogram: Tensor) -> Tensor:
    """Compute FreeMatch's fairness term (Wang et al., ICLR 2023, arXiv:2205.07246), a number to add to a loss.

    The term is sum(p log q): minus the cross-entropy of two distributions. p is the marginal divided by the histogram,
    then normalized. q is the mean prediction for the selected rows, divided by the share of these rows that predict
    each choice, then normalized. Where a divisor is 0, the quotient is 0. The sign is that of the paper and its code.
    Rows are patches, and choices are classes; if multi-label, each class is a decision with two choices.

    Args:
        total: [decisions, choices] sum of the probabilities that a network predicts for selected rows.
        count: [decisions, choices] number of selected rows for which the choice is the most probable one. No gradients
            flow into it.
        marginal: [decisions, choices] running mean of the probabilities that the labeler predicts.
        histogram: [decisions, choices] running share of rows for which the choice is the labeler's most probable one.

    Returns:
        The sum over decisions. A decision without a selected row adds 0.
    """
    count = count.detach()
    rows = count.sum(-1, keepdim=True)
    # Avoid 0 / 0 for decisions without selected rows. To mask the result is not enough: its gradient would be
    # NaN * 0 = NaN.
    mean = normalized(total / rows.clamp_min(1) * _inverse(count / rows.clamp_min(1)) + (rows == 0))
    goal = normalized(marginal * _inverse(histogram))
    return torch.where(rows == 0, 0.0, goal * (mean + 1e-12).log()).sum()


def normalized(positive: Tensor) -> Tensor:
    """Return non-negative values divided by their sum over the last axis, so that each row is a distribution.

    A row whose sum is 0 gives NaN.
    """
    return positive / positive.sum(-1, keepdim=True)


def _inverse(value: Tensor) -> Tensor:
    """Return 1 / value for each entry of a tensor, and 0 where the entry is not above 0."""
    # `where` computes both branches. Without the clamp, 1 / 0 would be infinite, and its masked gradient NaN.
    return torch.where(value > 0, 1 / value.clamp_min(torch.finfo(value.dtype).tiny), 0.0)
