"""Implement FreeMatch (Wang et al., ICLR 2023, arXiv:2205.07246).

Thresholds follow the labeler, the network that makes the pseudo-labels. t is the running mean of its confidence. The
running marginal (the running mean of its predicted probabilities) scales t for each choice:

    threshold[choice] = t * marginal[choice] / max(marginal)

A fairness term is added to the loss. It is minus the cross-entropy between two distributions: the marginal, and the
mean prediction p on strong views of selected samples. Both are divided by a histogram: the share of samples for which
each choice is the most probable one.

    fairness = sum(normalized(marginal / histogram) * log(normalized(mean p / histogram of p)))

The first steps learn from labels only, but they already update the state. State: running confidence [decisions],
marginal [decisions, choices] and histogram [decisions, choices]. All come from the labeler's weak view and are updated
before use.

Differences from the public implementation: a decision without a selected sample adds 0 to fairness, not NaN. The sums
of fairness run over the whole global batch.
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
    share,
)
from stssl.algorithms.losses import fairness
from stssl.base.batch import Progress, View
from stssl.base.config import Domain, Switch
from stssl.base.json_types import JsonObject
from stssl.base.labels import LabelSpace


class FreeMatchConfig(LabelConfig):
    """Define the settings of FreeMatch: its running thresholds and its fairness term.

    Attributes:
        ema_decay: Share of the old running values that a step keeps.
        fairness_weight: Factor of the fairness term.
        supervised_steps: Number of steps at the start that learn from labels only.
        quantile: Quantile of a batch's confidences that the running confidence follows; None for their mean.
        clip: True to limit the running confidence to at most 0.95.
    """

    name: Literal["freematch"] = "freematch"
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.9, 0.9999)] = 0.999
    fairness_weight: Annotated[float, Field(ge=0), Domain(1e-4, 1e-1, log=True)] = 0.001
    supervised_steps: Annotated[int, Field(ge=0), Domain(0, 5000)] = 2000
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip: Switch = False


class FreeMatch(Algorithm):
    """Select pseudo-labels by thresholds that follow the labeler's confidence, and add a fairness term to the loss.

    The labeler is the network that makes the pseudo-labels. The paper adds the fairness term so that predictions on
    selected patches follow the labeler's mean prediction.
    """

    config_type = FreeMatchConfig
    config: FreeMatchConfig
    smoke: ClassVar[JsonObject] = {"supervised_steps": 0}
    stateful: ClassVar[bool] = True
    regularized: ClassVar[bool] = True

    def __init__(self, config: FreeMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create three running values of the labeler, the network that makes the pseudo-labels.

        They are its confidence, its mean prediction (marginal), and the share of patches for which it predicts each
        class (histogram). With n classes, all start at 1 / n; if multi-label, at 1 / 2.
        """
        super().__init__(config, space, facts)
        shape, even = (space.groups, space.choices), 1 / space.choices
        self.confidence = Running(config.ema_decay, shape[:1], even)
        self.marginal = Running(config.ema_decay, shape, even)
        self.histogram = Running(config.ema_decay, shape, even)

    def waits(self, progress: Progress) -> bool:
        """Return True if the current step is one of the first `supervised_steps`, which learn from labels only.

        `progress` has the number of the current step.
        """
        return progress.step < self.config.supervised_steps

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the labeler's running values with its logits for a batch of weakly augmented unlabeled patches.

        They are its confidence, its mean prediction (marginal), and the share of patches for which it predicts each
        class (histogram).
        """
        p = outputs.labeler[View.UNLABELED_WEAK].softmax(-1)
        top, quantile = p.amax(-1), self.config.quantile
        value = self.confidence.update(top.mean(0) if quantile is None else top.quantile(quantile, dim=0))
        if self.config.clip:
            value.clamp_(0.0, 0.95)  # 0.95 is the bound in the public implementation
        self.marginal.update(p.mean(0))
        self.histogram.update(share(choose(p), self.space.choices))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict confident pseudo-labels on strongly augmented patches.

        The labeler makes the pseudo-labels from its logits for the same patches, weakly augmented. Only those count
        whose confidence reaches the threshold of their choice: a class or, if multi-label, "absent" or "present".
        """
        weak = outputs.labeler[View.UNLABELED_WEAK]
        marginal = self.marginal.value
        threshold = self.confidence.value[:, None] * marginal / marginal.amax(-1, keepdim=True)
        chosen = weak.softmax(-1).amax(-1) >= of_choice(threshold, choose(weak))
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), chosen.float())]

    def statistics(self, logits: Tensor, term: LossTerm) -> Tensor:
        """Sum a network's predictions over the selected patches of this rank (training process), for the fairness term.

        Decisions are patches or, if multi-label, classes of patches.

        Args:
            logits: [rows, decisions, choices] the network's logits for strongly augmented patches.
            term: Loss term, whose weights are above 0 for selected patches.

        Returns:
            [2, decisions, choices]: sum of the probabilities, and number of selected patches with each predicted
                choice.
        """
        p, selected = logits.softmax(-1), (term.weight > 0).float()[..., None]
        choices = torch.nn.functional.one_hot(choose(p.detach()), p.shape[-1])
        return torch.stack([(p * selected).sum(0), (choices * selected).sum(0)])

    def regularizer(self, statistics: Tensor) -> Tensor:
        """Return the fairness term times its weight: a scalar to add to a network's loss.

        Args:
            statistics: [2, decisions, choices] sums that the method `statistics` returned, added over all ranks.
        """
        return self.fairness(statistics) * self.config.fairness_weight

    def fairness(self, statistics: Tensor) -> Tensor:
        """Return the fairness term, a scalar: minus the cross-entropy of the labeler's and a network's mean prediction.

        The network's mean is that over the selected patches. Both are divided by how often each class is predicted.

        Args:
            statistics: [2, decisions, choices] sums that the method `statistics` returned, added over all ranks.
        """
        return fairness(statistics[0], statistics[1], self.marginal.value, self.histogram.value)
