"""FixMatch (Sohn et al., NeurIPS 2020, arXiv:2001.07685).

Confident predictions on the weak view are targets for the strong view: hard labels (or probabilities sharpened by a
temperature) wherever the labeler's probability passes a fixed cut-off. Multi-label decisions have two cut-offs on the
probability of presence, or with `absent_below: null` the one threshold for both sides. The loss is the mean over all
decisions, not over the selected ones. No state.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, LabelConfig, LabelerOutputs, LossTerm, confident
from stssl.base.batch import Progress, View
from stssl.base.config import Domain


class CutoffConfig(LabelConfig):
    """Fixed cut-offs, as FixMatch and its descendants have them."""

    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    absent_below: Annotated[float, Field(ge=0, le=1), Domain(0.005, 0.3)] | None = 0.05
    present_above: Annotated[float, Field(ge=0, le=1), Domain(0.5, 0.98)] | None = 0.70


class FixMatchConfig(CutoffConfig):
    """Cut-offs and kind of label."""

    name: Literal["fixmatch"] = "fixmatch"


class FixMatch(Algorithm):
    """Fixed cut-offs on the weak view, cross-entropy on the strong one."""

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """The strong unlabeled view matches the weak one's confident labels."""
        weak = outputs.labeler[View.UNLABELED_WEAK]
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), self.select(weak))]

    def select(self, weak: Tensor) -> Tensor:
        """1 where the labeler is confident, else 0: [B, G]."""
        band = self.space.band(self.config.absent_below, self.config.present_above)
        return confident(weak.softmax(-1), self.config.threshold, band).float()
