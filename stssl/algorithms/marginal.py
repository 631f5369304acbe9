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
    """Store, and update if asked, the class distribution [decisions, choices] that the mean prediction should have."""

    def __init__(self, name: TargetName, decay: float, space: LabelSpace, facts: DataFacts) -> None:
        """Set the first distribution: the class frequencies of labeled data if `name` is `labeled`, else equal shares.

        Args:
            name: Distribution that predictions should have. `predicted` follows the mean prediction on labeled data.
            decay: Share of the old running mean that a step keeps; used for `predicted`.
            space: Classes and kind of task.
            facts: Facts about the data, such as the labeled frequencies.
        """
        super().__init__()
        self.follows = name == "predicted"
        self.running = Running(decay, (space.groups, space.choices), 1 / space.choices)
        if name == "labeled":
            self.running.value.copy_(facts.prior)

    @property
    def views(self) -> frozenset[View]:
        """List the augmented views that the labeler must predict, so this distribution can be updated."""
        return frozenset({View.LABELED_WEAK}) if self.follows else frozenset()

    @property
    def value(self) -> Tensor:
        """Return the current target distribution [decisions, choices]."""
        return self.running.value

    def observe(self, outputs: LabelerOutputs) -> None:
        """Update the running mean of predictions on labeled weak views; do nothing if the name is not `predicted`."""
        if self.follows:
            self.running.update(outputs.labeler[View.LABELED_WEAK].softmax(-1).mean(0))


def align(p: Tensor, target: Tensor, marginal: Tensor) -> Tensor:
    """Multiply probabilities by target / marginal and normalize them: distribution alignment (arXiv:1911.09785).

    Args:
        p: [rows, decisions, choices] probabilities.
        target: [decisions, choices] mean that probabilities should have.
        marginal: [decisions, choices] mean that probabilities have.

    Returns:
        [rows, decisions, choices] aligned probabilities.
    """
    return normalized(p * (target + ALIGNMENT_FLOOR) / (marginal + ALIGNMENT_FLOOR))


def tempered(prior: Tensor, exponent: float) -> Tensor:
    """Raise a distribution [decisions, choices] to a power, and normalize it.

    An exponent below 1 makes the distribution more uniform.
    """
    return normalized(prior.clamp_min(torch.finfo(prior.dtype).tiny) ** exponent)
