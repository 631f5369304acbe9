"""AdaMatch (Berthelot et al., ICLR 2022, arXiv:2106.04732), for labeled and unlabeled data of one domain.

Unlabeled probabilities are aligned with labeled ones, and the threshold follows the confidence on labeled data:

    aligned   = normalized(p * mean labeled p / mean unlabeled p)
    selected  = max(aligned) >= threshold * mean labeled confidence

Multi-label: per class, and the confidence apart for "absent" and "present" (for a side that no labeled sample takes:
of both). State: the three means of the last global batch, or of many with `ema_decay` above 0.

Left out: random interpolation of logits and the weight schedule, which serve domain adaptation. No vectors of a
public implementation exist; it is tested against a slow restatement.
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
    """The share of the labeled confidence that selects; memory of the means."""

    name: Literal["adamatch"] = "adamatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.9
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.0, 0.999)] = 0.0


class AdaMatch(Algorithm):
    """Alignment and thresholds from labeled predictions."""

    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    stateful: ClassVar[bool] = True

    def __init__(self, config: AdaMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Means start with the first batch."""
        super().__init__(config, space, facts)
        shape = (space.groups, space.choices)
        self.labeled, self.unlabeled, self.confidence = (Running(config.ema_decay, shape) for _ in range(3))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Take the means."""
        labeled = outputs.labeler[View.LABELED_WEAK].softmax(-1)
        self.labeled.update(labeled.mean(0))
        self.unlabeled.update(outputs.labeler[View.UNLABELED_WEAK].softmax(-1).mean(0))
        top = labeled.amax(-1)[..., None]
        side = functional.one_hot(self.space.sides(choose(labeled)), self.space.choices)
        count = side.sum(0)
        self.confidence.update((top * side).sum(0).where(count > 0, top.mean(0)) / count.clamp_min(1))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Labels from aligned probabilities."""
        p = self.aligned(outputs.labeler[View.UNLABELED_WEAK])
        threshold = self.config.threshold * of_choice(self.confidence.value, self.space.sides(choose(p)))
        target = self.config.label(p.clamp_min(1e-12).log())
        return [LossTerm(View.UNLABELED_STRONG, target, (p.amax(-1) >= threshold).float())]

    def aligned(self, weak: Tensor) -> Tensor:
        """Probabilities [B, G, K] whose mean is that of labeled ones."""
        return align(weak.softmax(-1), self.labeled.value, self.unlabeled.value)
