"""Class distributions that several algorithms keep: what the data's is taken to be, and alignment toward it."""

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
"""`labeled`: frequency in the labeled data. `predicted`: running mean of labeled weak predictions. `uniform`."""

ALIGNMENT_FLOOR = 1e-6


class TargetMarginal(nn.Module):
    """The class distribution [G, K] that predictions should have."""

    def __init__(self, name: TargetName, decay: float, space: LabelSpace, facts: DataFacts) -> None:
        """Start with the labeled frequencies, or evenly."""
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
        """[G, K]."""
        return self.running.value

    def observe(self, outputs: LabelerOutputs) -> None:
        """Follow the labeled weak predictions, if that is what it does."""
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
    """A distribution [G, K] moved toward the uniform one by an exponent below 1."""
    return normalized(prior.clamp_min(torch.finfo(prior.dtype).tiny) ** exponent)
