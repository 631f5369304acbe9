"""Implement AdaMatch (Berthelot et al., ICLR 2022, arXiv:2106.04732), for labeled and unlabeled data of one domain.

Unlabeled probabilities are aligned with labeled ones, and the threshold follows the confidence on labeled data:

    aligned   = normalized(p * mean labeled p / mean unlabeled p)
    selected  = max(aligned) >= threshold * mean labeled confidence

Multi-label: for each class, with confidences of their own for "absent" and "present"; a choice that no labeled sample
takes uses the mean over both. State: the three means of the last global batch, or running means if `ema_decay` is
above 0.

Left out: random interpolation of logits and the weight schedule, which are for domain adaptation. There are no recorded
values of a public implementation; a slow version of the formulas is the test.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

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
from stssl.algorithms.marginal import align
from stssl.base.batch import Progress, View
from stssl.base.config import Domain
from stssl.base.labels import LabelSpace


class AdaMatchConfig(LabelConfig):
    """Configure AdaMatch.

    Attributes:
        threshold: Share of the mean labeled confidence that a pseudo-label needs.
        ema_decay: Share of the means that a step keeps; 0 uses the last batch only.
    """

    name: Literal["adamatch"] = "adamatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.9
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.0, 0.999)] = 0.0


class AdaMatch(Algorithm):
    """Align predictions and set thresholds by the predictions on labeled data."""

    config_type = AdaMatchConfig
    config: AdaMatchConfig
    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    stateful: ClassVar[bool] = True

    def __init__(self, config: AdaMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Start the means with the first batch."""
        super().__init__(config, space, facts)
        shape = (space.groups, space.choices)
        self.labeled, self.unlabeled, self.confidence = (Running(config.ema_decay, shape) for _ in range(3))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update mean labeled and unlabeled probabilities, and mean labeled confidence."""
        labeled = outputs.labeler[View.LABELED_WEAK].softmax(-1)
        self.labeled.update(labeled.mean(0))
        self.unlabeled.update(outputs.labeler[View.UNLABELED_WEAK].softmax(-1).mean(0))
        top = labeled.amax(-1)[..., None]
        side = functional.one_hot(self.space.sides(choose(labeled)), self.space.choices)
        count = side.sum(0)
        self.confidence.update((top * side).sum(0).where(count > 0, top.mean(0)) / count.clamp_min(1))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Match the strong view to aligned weak labels that pass the threshold."""
        p = self.aligned(outputs.labeler[View.UNLABELED_WEAK])
        threshold = self.config.threshold * of_choice(self.confidence.value, self.space.sides(choose(p)))
        # `label` takes logits, and logarithms of probabilities are logits.
        target = self.config.label(p.clamp_min(1e-12).log())
        return [LossTerm(View.UNLABELED_STRONG, target, (p.amax(-1) >= threshold).float())]

    def aligned(self, weak: Tensor) -> Tensor:
        """Align weak logits [B, G, K]: return probabilities whose mean is that of labeled predictions."""
        return align(weak.softmax(-1), self.labeled.value, self.unlabeled.value)
