"""CAP, class-aware pseudo-labeling (Xie et al., NeurIPS 2023, arXiv:2305.02795), for multi-label tasks.

Every class takes as many positives as its labeled frequency says: over the last rows of unlabeled probabilities,

    label      = p >= quantile(1 - frequency)
    selected   = p >= quantile(1 - positive_share * frequency)  or  p <= quantile(negative_share * (1 - frequency))

The quantile at q of n ascending values is the one at index clamp(floor(n q), 0, n - 1). Losses are asymmetric
(arXiv:2009.14119) or cross-entropy, the unlabeled one divided by the number selected. Labels come from the averaged
teacher. State: the ring of probabilities, and the cuts. Departures from the public implementation: checkpoints keep the
ring, which holds all ranks' rows and sees any batch; single labels are refused by name; no sorting (see `ring`).
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig, DataFacts, LabelerName, LabelerOutputs, LossTerm
from stssl.algorithms.losses import AsymmetricConfig, asymmetric, cross_entropy, presence
from stssl.algorithms.ring import Ring
from stssl.base.batch import Progress, View
from stssl.base.config import Domain, Switch
from stssl.base.errors import ConfigError
from stssl.base.labels import LabelSpace

SelectedShare = Annotated[float, Field(gt=0, le=1), Domain(0.3, 1.0)]


class CapConfig(BaseAlgorithmConfig, AsymmetricConfig):
    """Rows to take quantiles over, shares to select, and the loss."""

    name: Literal["cap"] = "cap"
    labeler: LabelerName = "ema"
    rows: Annotated[int, Field(ge=1)] = 64_000
    positive_share: SelectedShare = 1.0
    negative_share: SelectedShare = 1.0
    asymmetric: Switch = True


class Cap(Algorithm):
    """Cuts at quantiles that the class frequencies give."""

    stateful: ClassVar[bool] = True

    def __init__(self, config: CapConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Start with an empty ring.

        Raises:
            ConfigError: The task is single-label.
        """
        super().__init__(config, space, facts)
        if not space.multilabel:
            raise ConfigError("algorithm.name: cap needs multi-label data. For single labels, take freematch.")
        frequency = facts.prior[:, 1].double()
        positive, negative = config.positive_share, config.negative_share
        shares = torch.stack([1 - frequency, 1 - positive * frequency, negative * (1 - frequency)])
        self.shares: Tensor
        self.register_buffer("shares", shares, persistent=False)
        self.ring = Ring(space.groups, config.rows)
        self.cuts: Tensor
        self.register_buffer("cuts", torch.full((3, space.groups), 0.5))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Push the batch, newest rows last, and take the cuts."""
        self.ring.push(presence(outputs.labeler[View.UNLABELED_WEAK]))
        same = self.config.positive_share == self.config.negative_share == 1
        cuts = [self.ring.quantile(share) for share in self.shares[: 1 if same else 3]]
        self.cuts.copy_(torch.stack(cuts * 3 if same else cuts))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Hard labels, selected at both ends."""
        p = presence(outputs.labeler[View.UNLABELED_WEAK])
        cut, above, below = self.cuts
        chosen = (p >= above) | (p <= below)
        return [LossTerm(View.UNLABELED_STRONG, (p >= cut).long(), chosen.float(), by_weight=True)]

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Asymmetric loss, or cross-entropy."""
        config = self.config
        if not config.asymmetric:
            return cross_entropy(logits, target)
        return asymmetric(logits, target, **{name: getattr(config, name) for name in AsymmetricConfig.model_fields})

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The same."""
        return self.supervised_loss(logits, target)
