"""Implement AdaMatch (Berthelot et al., ICLR 2022, arXiv:2106.04732), for labeled and unlabeled data of one domain.

AdaMatch aligns the probabilities p on unlabeled data with the mean on labeled data. The threshold follows the
confidence on labeled data:

    aligned   = normalized(p * mean labeled p / mean unlabeled p)
    selected  = max(aligned) >= threshold * mean labeled confidence

Multi-label: each class has separate mean confidences for "absent" and "present". If a choice is predicted for no
labeled sample, its confidence is the mean over both choices. State: the three means of the last global batch. If
`ema_decay` is above 0, they are running means.

Random interpolation of logits and the weight schedule are left out: they are for domain adaptation. No public
implementation has recorded values, so the test compares with a slow version of the formulas.
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
    """Define the settings of AdaMatch: its threshold and its running means.

    Attributes:
        threshold: Least confidence of a pseudo-label, as a share of the mean confidence on labeled patches.
        ema_decay: Share of the old means that a step keeps; 0 uses the last batch only.
    """

    name: Literal["adamatch"] = "adamatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.9
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.0, 0.999)] = 0.0


class AdaMatch(Algorithm):
    """Make pseudo-labels from predictions that are scaled to the mean prediction on labeled data.

    A pseudo-label counts if its confidence reaches a share of the mean confidence on labeled patches.
    """

    config_type = AdaMatchConfig
    config: AdaMatchConfig
    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    stateful: ClassVar[bool] = True

    def __init__(self, config: AdaMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create three running means of the labeler's predictions, which have no values before the first batch.

        They are the mean probabilities on labeled and on unlabeled patches, and the mean confidence on labeled patches.
        The labeler is the network that makes the pseudo-labels.
        """
        super().__init__(config, space, facts)
        shape = (space.groups, space.choices)
        self.labeled, self.unlabeled, self.confidence = (Running(config.ema_decay, shape) for _ in range(3))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the running means with the labeler's predictions on a batch of weakly augmented patches.

        They are the mean probabilities on labeled and on unlabeled patches, and the mean confidence (highest
        probability) on labeled patches. The labeler is the network that makes the pseudo-labels.
        """
        labeled = outputs.labeler[View.LABELED_WEAK].softmax(-1)
        self.labeled.update(labeled.mean(0))
        self.unlabeled.update(outputs.labeler[View.UNLABELED_WEAK].softmax(-1).mean(0))
        top = labeled.amax(-1)[..., None]
        side = functional.one_hot(self.space.sides(choose(labeled)), self.space.choices)
        count = side.sum(0)
        self.confidence.update((top * side).sum(0).where(count > 0, top.mean(0)) / count.clamp_min(1))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict pseudo-labels on strongly augmented patches.

        The pseudo-labels come from the labeler's probabilities on the same patches, weakly augmented, and scaled to the
        mean on labeled data. Only those count whose confidence reaches the threshold.
        """
        p = self.aligned(outputs.labeler[View.UNLABELED_WEAK])
        threshold = self.config.threshold * of_choice(self.confidence.value, self.space.sides(choose(p)))
        # `label` expects logits. The softmax of log p is p, so log p can serve as logits.
        target = self.config.label(p.clamp_min(1e-12).log())
        return [LossTerm(View.UNLABELED_STRONG, target, (p.amax(-1) >= threshold).float())]

    def aligned(self, weak: Tensor) -> Tensor:
        """Return the labeler's probabilities on weakly augmented patches, scaled toward the mean on labeled data.

        Args:
            weak: [rows, decisions, choices] logits of the labeler (the network that makes the pseudo-labels). Decisions
                are patches or, if multi-label, classes of patches.

        Returns:
            [rows, decisions, choices] probabilities.
        """
        return align(weak.softmax(-1), self.labeled.value, self.unlabeled.value)
