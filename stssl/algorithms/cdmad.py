"""Implement CDMAD (Lee and Kim, "Class-Distribution-Mismatch-Aware Debiasing", CVPR 2024, arXiv:2403.10391).

The blank image has no content. A network's logits for it are its bias toward classes. CDMAD subtracts this bias from
the labeler's logits to make targets. At test time, each network subtracts its own bias from its logits:

    p = softmax(weak logits - blank logits)

The targets are p (soft) for the decisions that the cut-offs of FixMatch select. The blank image is all ones in
normalized space. The network predicts it in evaluation mode (while training: in the mode of `model.labeler_mode`),
without metadata and without the layers that add metadata to the backbone. The first steps subtract no bias. State: the
labeler's bias [decisions, choices], averaged over ranks.

Difference from the public implementation: each network uses the bias of its own trained head. The public implementation
uses a head that is never trained, and the teacher's bias for the student.
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
    """Define the settings of CDMAD: its cut-offs, its kind of pseudo-label, and when it subtracts the bias.

    Attributes:
        present_above: Multi-label: select "present" if the probability of "present" is at least this. If this or
            `absent_below` is None, both choices use `threshold`.
        debias_after: First step that subtracts the labeler's bias from its logits before it makes targets.
    """

    name: Literal["cdmad"] = "cdmad"
    present_above: Annotated[float, Field(ge=0, le=1), Domain(0.5, 0.98)] | None = 0.95
    soft: Switch = True
    temperature: Annotated[float, Field(gt=0)] = 1.0
    debias_after: Annotated[int, Field(ge=0), Domain(0, 5000)] = 2000


class Cdmad(FixMatch):
    """Run FixMatch with corrected pseudo-labels: the labeler's bias is subtracted from its logits.

    The labeler is the network that makes the pseudo-labels. Its bias toward classes is its logits for a blank image.
    """

    config_type = CdmadConfig
    config: CdmadConfig
    stateful: ClassVar[bool] = True
    needs_blank: ClassVar[bool] = True

    def __init__(self, config: CdmadConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create the buffer for the labeler's bias toward each class, with all values 0.

        The labeler is the network that makes the pseudo-labels.
        """
        super().__init__(config, space, facts)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(space.groups, space.choices))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Store the labeler's logits for the blank image as its bias toward classes, from step `debias_after` on.

        Args:
            outputs: Logits of the networks, with those for the blank image.
            progress: Number of the current step, and number of all steps.
        """
        if outputs.blank is not None and progress.step >= self.config.debias_after:
            self.bias.copy_(outputs.blank.mean(0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict confident pseudo-labels on strongly augmented patches.

        The labeler makes the pseudo-labels from its logits for the same patches, weakly augmented, minus its bias
        toward classes.
        """
        weak = outputs.labeler[View.UNLABELED_WEAK] - self.bias
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), self.select(weak))]

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Return a network's logits minus its bias toward classes, which is its logits for a blank image.

        Args:
            logits: [rows, classes] logits of the patches to predict.
            blank: [1, classes] the same network's logits of the blank image.
        """
        return logits - blank
