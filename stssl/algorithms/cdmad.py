"""Implement CDMAD (Lee and Kim, "Class-Distribution-Mismatch-Aware Debiasing", CVPR 2024, arXiv:2403.10391).

A network's logits for an image without content are its bias toward classes. They are subtracted from the labeler's
logits before those become targets, and at test time from the logits of each network:

    p = softmax(weak logits - blank logits);  targets p (soft) where the cut-offs of FixMatch select p.

The blank image is all ones in normalized space. The network predicts it in evaluation mode, without the metadata token.
Targets are debiased after the first steps only. State: the labeler's bias [G, K], mean over ranks.

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
    """Configure CDMAD.

    Attributes:
        debias_after: First step whose bias is subtracted from targets.
    """

    name: Literal["cdmad"] = "cdmad"
    soft: Switch = True
    temperature: Annotated[float, Field(gt=0)] = 1.0
    debias_after: Annotated[int, Field(ge=0), Domain(0, 5000)] = 2000


class Cdmad(FixMatch):
    """Run FixMatch with soft targets from debiased logits."""

    config_type = CdmadConfig
    config: CdmadConfig
    stateful: ClassVar[bool] = True
    needs_blank: ClassVar[bool] = True

    def __init__(self, config: CdmadConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Start without a bias."""
        super().__init__(config, space, facts)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(space.groups, space.choices))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Keep the labeler's logits of the blank image as its bias, from step `debias_after` on."""
        if outputs.blank is not None and progress.step >= self.config.debias_after:
            self.bias.copy_(outputs.blank.mean(0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return FixMatch's term, on debiased logits."""
        weak = outputs.labeler[View.UNLABELED_WEAK] - self.bias
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), self.select(weak))]

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Subtract the network's own bias [1, C] from its outputs [B, C]."""
        return logits - blank
