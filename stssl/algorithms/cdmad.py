"""CDMAD (Lee and Kim, "Class-Distribution-Mismatch-Aware Debiasing", CVPR 2024, arXiv:2403.10391).

What a network says of an image without content is its bias toward classes. It is subtracted from the labeler's
logits before they become targets, and from every network's own logits at test time:

    p = softmax(weak logits - blank logits);  targets p (soft) where the cut-offs of FixMatch select p.

The blank image is all ones in normalized space, seen in evaluation mode and without the metadata token. Targets are
debiased after the first steps only. State: the labeler's bias [G, K], mean over ranks.

Departure from the public implementation: the bias comes from each network's own trained head, not from one that is
never trained and not from the teacher for the student.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import DataFacts, LabelerOutputs, LossTerm
from stssl.algorithms.fixmatch import CutoffConfig, FixMatch
from stssl.base.batch import Progress, View
from stssl.base.config import Domain, Switch
from stssl.base.labels import LabelSpace


class CdmadConfig(CutoffConfig):
    """Cut-offs, and when debiasing starts."""

    name: Literal["cdmad"] = "cdmad"
    soft: Switch = True
    temperature: Annotated[float, Field(gt=0)] = 1.0
    debias_after: Annotated[int, Field(ge=0), Domain(0, 5000)] = 2000


class Cdmad(FixMatch):
    """FixMatch with soft targets from debiased logits."""

    stateful: ClassVar[bool] = True
    needs_blank: ClassVar[bool] = True

    def __init__(self, config: CdmadConfig, space: LabelSpace, facts: DataFacts) -> None:
        """No bias at first."""
        super().__init__(config, space, facts)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(space.groups, space.choices))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Keep the bias."""
        if outputs.blank is not None and progress.step >= self.config.debias_after:
            self.bias.copy_(outputs.blank.mean(0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """FixMatch's term on debiased logits."""
        weak = outputs.labeler[View.UNLABELED_WEAK] - self.bias
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), self.select(weak))]

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Outputs without the network's own bias."""
        return logits - blank
