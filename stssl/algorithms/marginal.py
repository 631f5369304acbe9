"""Define the class distribution that predictions should have, and scale them toward it (distribution alignment)."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from stssl.algorithms.base import DataFacts, LabelerOutputs, Running
from stssl.algorithms.losses import normalized
from stssl.base.batch import View
from stssl.base.config import Domain
from stssl.base.labels import LabelSpace

_TARGETS = ("labeled", "predicted", "uniform")
TargetName = Annotated[Literal["labeled", "predicted", "uniform"], Domain(choices=_TARGETS)]
"""Name of the class distribution that the mean prediction should have.

`labeled` is the frequency in the labeled data. `predicted` is the running mean of predictions on labeled weak views.
`uniform` is the same share for all choices.
"""

ALIGNMENT_FLOOR = 1e-6
"""Number to add to both class distributions before one is divided by the other. It avoids a division by 0."""


class TargetMarginal(nn.Module):
    """Store the class distribution that an algorithm wants the mean prediction to have.

    It is [1, classes] or, if multi-label, [classes, 2] for "absent" and "present". If its name is `predicted`, it is a
    running mean; else it is constant.
    """

    def __init__(self, name: TargetName, decay: float, space: LabelSpace, facts: DataFacts) -> None:
        """Set the first distribution: the class frequencies of labeled data if `name` is `labeled`, else equal shares.

        Args:
            name: Kind of distribution: `labeled` (frequencies of the labels), `uniform` (equal shares), or `predicted`
                (the running mean of predictions on labeled data).
            decay: Share of the old running mean that a training step keeps; used for `predicted`.
            space: Classes of the task, and whether it is single-label or multi-label.
            facts: Facts about the training data, such as the frequencies of the labels.
        """
        super().__init__()
        self.follows = name == "predicted"
        self.running = Running(decay, (space.groups, space.choices), 1 / space.choices)
        if name == "labeled":
            self.running.value.copy_(facts.prior)

    @property
    def views(self) -> frozenset[View]:
        """Return the augmented views that the labeler must predict to update this distribution; empty if constant."""
        return frozenset({View.LABELED_WEAK}) if self.follows else frozenset()

    @property
    def value(self) -> Tensor:
        """Return the class distribution that predictions should have at the current step.

        The shape is [1, classes] or, if multi-label, [classes, 2].
        """
        return self.running.value

    def observe(self, outputs: LabelerOutputs) -> None:
        """Update the target distribution if it is a running mean of predictions on labeled patches, else do nothing.

        `outputs` has the labeler's logits for weakly augmented labeled patches.
        """
        if self.follows:
            self.running.update(outputs.labeler[View.LABELED_WEAK].softmax(-1).mean(0))


def align(p: Tensor, target: Tensor, marginal: Tensor) -> Tensor:
    """Scale predicted probabilities so that their mean is near a target: distribution alignment (arXiv:1911.09785).

    Multiply the probabilities by target / marginal, and normalize them over the choices: classes or, if multi-label,
    "absent" and "present" of each class.

    Args:
        p: [rows, decisions, choices] probabilities.
        target: [decisions, choices] mean that the probabilities should have.
        marginal: [decisions, choices] mean that they have, such as a running mean over past batches.

    Returns:
        [rows, decisions, choices] aligned probabilities.
    """
    return normalized(p * (target + ALIGNMENT_FLOOR) / (marginal + ALIGNMENT_FLOOR))


def tempered(prior: Tensor, exponent: float) -> Tensor:
    """Return a class distribution raised to a power and normalized, in the same shape.

    An exponent below 1 makes the distribution more uniform.

    Args:
        prior: [decisions, choices] class distribution: [1, classes] or, if multi-label, [classes, 2].
        exponent: The power.
    """
    return normalized(prior.clamp_min(torch.finfo(prior.dtype).tiny) ** exponent)
