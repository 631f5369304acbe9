"""Implement CAP, class-aware pseudo-labeling (Xie et al., NeurIPS 2023, arXiv:2305.02795), for multi-label tasks.

For each class, select the same share of positives as among the labeled patches. To do this, compare the labeler's
probability p of "present" with quantiles over the last rows of unlabeled probabilities:

    label      = p >= quantile(1 - frequency)
    selected   = p >= quantile(1 - positive_share * frequency)  or  p <= quantile(negative_share * (1 - frequency))

The quantile at q of n ascending values is the value at index clamp(floor(n q), 0, n - 1). The losses are asymmetric
(arXiv:2009.14119) or cross-entropy. The unlabeled loss is divided by the number of selected decisions. By default the
network with averaged weights makes the labels. State: a ring buffer with the last probabilities, and the cuts, which
are the three quantiles above.

Differences from the public implementation: checkpoints save the ring buffer. It stores the rows of all ranks and takes
batches of any size. Single-label data gives an error message. Quantiles need no sorting (see `ring`).
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
from stssl.base.labels import LabelSpace

SelectedShare = Annotated[float, Field(gt=0, le=1), Domain(0.3, 1.0)]


class CapConfig(BaseAlgorithmConfig, AsymmetricConfig):
    """Define the settings of CAP: its quantiles and its loss.

    Attributes:
        rows: Number of unlabeled patches, the last ones predicted, whose probabilities give the quantiles.
        positive_share: Number of positives to select, divided by the number that labeled patches let expect.
        negative_share: Number of negatives to select, divided by the number that labeled patches let expect.
        asymmetric: True for the asymmetric loss, False for cross-entropy.
    """

    name: Literal["cap"] = "cap"
    labeler: LabelerName = "ema"
    rows: Annotated[int, Field(ge=1)] = 64_000
    positive_share: SelectedShare = 1.0
    negative_share: SelectedShare = 1.0
    asymmetric: Switch = True


class Cap(Algorithm):
    """Make pseudo-labels so that each class is present as often as in the labeled data.

    Quantiles of the labeler's last probabilities say which patches count as positives and negatives of a class.
    """

    config_type = CapConfig
    config: CapConfig
    multilabel_only: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(self, config: CapConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create an empty ring buffer for probabilities. Set all cuts to 0.5.

        The cuts are three thresholds on the probability of each class: for the label, for selected positives and for
        selected negatives. The frequencies of the classes among the labeled patches, in `facts`, decide the quantiles
        for them.
        """
        super().__init__(config, space, facts)
        # Use float64: in float32, the product of a share and the number of rows could round up to the next quantile.
        frequency = facts.prior[:, 1].double()
        positive, negative = config.positive_share, config.negative_share
        shares = torch.stack([1 - frequency, 1 - positive * frequency, negative * (1 - frequency)])
        self.shares: Tensor
        # Do not save the shares in checkpoints: a resumed run computes the same from its configuration and labels.
        self.register_buffer("shares", shares, persistent=False)
        self.ring = Ring(space.groups, config.rows)
        self.cuts: Tensor
        self.register_buffer("cuts", torch.full((3, space.groups), 0.5))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Add the labeler's probabilities of "present" to the ring buffer, and compute the cuts from all that it holds.

        The cuts are three thresholds for each class: for the label, for selected positives and for selected negatives.
        The probabilities are those of the weakly augmented unlabeled patches in `outputs`.
        """
        self.ring.push(presence(outputs.labeler[View.UNLABELED_WEAK]))
        # If both shares are 1, the three cuts are equal. Compute only one: a quantile over the ring buffer is slow.
        same = self.config.positive_share == self.config.negative_share == 1
        cuts = [self.ring.quantile(share) for share in self.shares[: 1 if same else 3]]
        self.cuts.copy_(torch.stack(cuts * 3 if same else cuts))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict pseudo-labels on strongly augmented patches.

        The pseudo-labels are "present" or "absent" for each class. They come from the labeler's probabilities on the
        same patches, weakly augmented. Only the most probable ones on both sides count.
        """
        p = presence(outputs.labeler[View.UNLABELED_WEAK])
        cut, above, below = self.cuts
        chosen = (p >= above) | (p <= below)
        return [LossTerm(View.UNLABELED_STRONG, (p >= cut).long(), chosen.float(), by_weight=True)]

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss on true labels: the asymmetric loss or, if `asymmetric` is set to False, the cross-entropy.

        Args:
            logits: [rows, classes, 2] logits of "absent" and "present" for each class.
            target: [rows, classes] 1 for "present", 0 for "absent"; `IGNORED` if unknown.

        Returns:
            [rows, classes] losses; 0 for unknown labels.
        """
        config = self.config
        if not config.asymmetric:
            return cross_entropy(logits, target)
        return asymmetric(logits, target, **{name: getattr(config, name) for name in AsymmetricConfig.model_fields})

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss on pseudo-labels, by the same formula as the loss on true labels.

        Args:
            logits: [rows, classes, 2] logits of "absent" and "present" for each class.
            target: [rows, classes] 1 for "present", 0 for "absent".

        Returns:
            [rows, classes] losses.
        """
        return self.supervised_loss(logits, target)
