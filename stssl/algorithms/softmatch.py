"""Implement SoftMatch (Chen et al., ICLR 2023, arXiv:2301.10921).

Every pseudo-label counts, but its weight is lower if its confidence is below the running mean mu. A marginal is a
distribution over choices: the running one is the mean prediction p, the target is the one that predictions should have.

    aligned = normalized(p * target marginal / running marginal)
    weight  = exp(-min(max(aligned) - mu, 0)^2 / (2 variance / n^2))

mu and variance are the running mean and variance of the aligned confidence. Labels come from the unaligned logits.

State: the running marginal [decisions, choices], which starts with that of the first batch, and mean and variance
[decisions, 1]. With `by_side`, mean and variance are [decisions, choices]. `target: predicted` adds a running mean of
predictions on labeled weak views. All state is updated before use.

Difference from the public implementation: this implementation also runs on several ranks (training processes).
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import (
    Algorithm,
    DataFacts,
    LabelConfig,
    LabelerOutputs,
    LossTerm,
    Running,
    choose,
    of_choice,
)
from stssl.algorithms.marginal import TargetMarginal, TargetName, align
from stssl.base.batch import Progress, View
from stssl.base.config import Domain, Switch
from stssl.base.labels import LabelSpace


class SoftMatchConfig(LabelConfig):
    """Define the settings of SoftMatch: its weights of pseudo-labels and its distribution alignment.

    Attributes:
        ema_decay: Share of the old running values that a step keeps.
        sigmas: How fast the weight falls below the mean (n in the formula). A larger value makes it fall faster.
        align: True to align confidence with the target marginal.
        target: Class distribution (marginal) to align with.
        by_side: Multi-label: True to keep separate means and variances for "absent" and "present".
    """

    name: Literal["softmatch"] = "softmatch"
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.9, 0.9999)] = 0.999
    sigmas: Annotated[float, Field(gt=0), Domain(0.5, 4.0)] = 2.0
    align: Switch = True
    target: TargetName = "labeled"
    by_side: Switch = False


class SoftMatch(Algorithm):
    """Learn from every pseudo-label, but with a lower weight if its confidence is below the running mean confidence."""

    config_type = SoftMatchConfig
    config: SoftMatchConfig
    stateful: ClassVar[bool] = True

    def __init__(self, config: SoftMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create the class distribution that predictions should have, and running values of the labeler's predictions.

        The running values are its mean prediction, and the mean and variance of its confidence. With n classes, the
        mean confidence starts at 1 / n (if multi-label, at 1 / 2), and the variance at 1.
        """
        super().__init__(config, space, facts)
        self.target = TargetMarginal(config.target, config.ema_decay, space, facts)
        self.marginal = Running(config.ema_decay, (space.groups, space.choices))
        shape = (space.groups, space.choices if config.by_side else 1)
        self.mean = Running(config.ema_decay, shape, 1 / space.choices)
        self.variance = Running(config.ema_decay, shape, 1.0)
        self.views = Algorithm.views | self.target.views

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the wanted class distribution, the labeler's mean prediction, and its confidence's mean and variance.

        The confidence comes last, because it is computed from probabilities that both distributions scale. `outputs`
        has the labeler's logits for weakly augmented patches.
        """
        self.target.observe(outputs)
        weak = outputs.labeler[View.UNLABELED_WEAK]
        self.marginal.update(weak.softmax(-1).mean(0))
        top, column = self._confidence(weak)
        members = torch.nn.functional.one_hot(column, self.mean.value.shape[-1]).to(top.dtype)
        count = members.sum(0)
        mean = (top[..., None] * members).sum(0) / count.clamp_min(1)
        squares = ((top[..., None] - mean).square() * members).sum(0)
        # A variance needs two members. For fewer, use mean 0 and variance 1, as the public implementation does.
        self.mean.update(torch.where(count > 1, mean, 0.0))
        self.variance.update(torch.where(count > 1, squares / (count - 1).clamp_min(1), 1.0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict pseudo-labels on strongly augmented patches.

        The labeler makes the pseudo-labels from its logits for the same patches, weakly augmented. All count, but their
        weight is lower if their confidence is below the mean confidence.
        """
        weak = outputs.labeler[View.UNLABELED_WEAK]
        top, column = self._confidence(weak)
        mean, variance = of_choice(self.mean.value, column), of_choice(self.variance.value, column)
        below = (top - mean).clamp_max(0)
        variance = variance.clamp_min(1e-12)  # it is 0 if all rows are equally confident, and 0 / 0 is NaN
        weight = (-below.square() * self.config.sigmas**2 / (2 * variance)).exp()
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), weight)]

    def aligned(self, weak: Tensor) -> Tensor:
        """Return the labeler's probabilities on weakly augmented patches.

        If the setting `align` is True, scale them so that their mean follows the wanted class distribution.

        Args:
            weak: [rows, decisions, choices] logits of the labeler (the network that makes the pseudo-labels). Decisions
                are patches or, if multi-label, classes of patches.

        Returns:
            [rows, decisions, choices] probabilities.
        """
        p = weak.softmax(-1)
        return align(p, self.target.value, self.marginal.value) if self.config.align else p

    def _confidence(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the confidence of each pseudo-label, and the column of the running mean and variance to use for it.

        With `by_side`, the column is the predicted choice, "absent" or "present"; otherwise it is 0.

        Args:
            weak: [rows, decisions, choices] logits of the labeler (the network that makes the pseudo-labels) for weakly
                augmented patches. Decisions are patches or, if multi-label, classes of patches.

        Returns:
            [rows, decisions] confidences (highest probabilities), and [rows, decisions] numbers of columns.
        """
        p = self.aligned(weak)
        choices = choose(p)
        return p.amax(-1), choices if self.config.by_side else torch.zeros_like(choices)
