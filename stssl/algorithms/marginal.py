"""Keep the class distribution that predictions should have, and align predictions with it."""

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
"""Distribution that predictions should have.

`labeled` is the frequency in the labeled data, `predicted` the running mean of predictions on labeled weak views, and
`uniform` the same for all choices.
"""

ALIGNMENT_FLOOR = 1e-6
"""Added to both marginals, so that a choice that was never predicted divides by no 0."""


class TargetMarginal(nn.Module):
    """Keep the class distribution [G, K] that predictions should have."""

    def __init__(self, name: TargetName, decay: float, space: LabelSpace, facts: DataFacts) -> None:
        """Start with the labeled frequencies if `name` is `labeled`, else with equal shares.

        Args:
            name: Distribution that predictions should have.
            decay: Share of the running mean that a step keeps, for `predicted`.
            space: Classes and kind of task.
            facts: What is known of the data, with the labeled frequencies.
        """
        super().__init__()
        self.follows = name == "predicted"
        self.running = Running(decay, (space.groups, space.choices), 1 / space.choices)
        if name == "labeled":
            self.running.value.copy_(facts.prior)

    @property
    def views(self) -> frozenset[View]:
        """List the views that the labeler must predict for this marginal."""
        return frozenset({View.LABELED_WEAK}) if self.follows else frozenset()

    @property
    def value(self) -> Tensor:
        """Return the distribution now: [G, K]."""
        return self.running.value

    def observe(self, outputs: LabelerOutputs) -> None:
        """Update the running mean of labeled weak predictions, if the name is `predicted`."""
        if self.follows:
            self.running.update(outputs.labeler[View.LABELED_WEAK].softmax(-1).mean(0))


def align(p: Tensor, target: Tensor, marginal: Tensor) -> Tensor:
    """Scale probabilities by target over marginal and normalize them (ReMixMatch, arXiv:1911.09785).

    Args:
        p: [B, G, K] probabilities.
        target: [G, K] distribution that the mean should have.
        marginal: [G, K] distribution that the mean has.

    Returns:
        [B, G, K] aligned probabilities.
    """
    return normalized(p * (target + ALIGNMENT_FLOOR) / (marginal + ALIGNMENT_FLOOR))


def tempered(prior: Tensor, exponent: float) -> Tensor:
    """Raise a distribution [G, K] to a power and normalize it; an exponent below 1 moves it toward the uniform one."""
    return normalized(prior.clamp_min(torch.finfo(prior.dtype).tiny) ** exponent)
