"""Implement FixMatch (Sohn et al., NeurIPS 2020, arXiv:2001.07685).

Confident predictions on the weak view are targets for the strong view: hard labels (or probabilities sharpened by a
temperature) wherever the labeler's probability passes a fixed cut-off. Multi-label decisions have two cut-offs on the
probability of "present"; with `absent_below: null` they use `threshold` for both choices. The loss is the mean over
all decisions, not over the selected ones. No state.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig, LabelConfig, LabelerOutputs, LossTerm, confident
from stssl.base.batch import Progress, View
from stssl.base.config import Domain


class CutoffConfig(LabelConfig):
    """Configure the fixed cut-offs of FixMatch and of algorithms built on it.

    Attributes:
        threshold: Least probability of the likeliest choice.
        absent_below: Multi-label: greatest probability of "present" at which "absent" is selected.
        present_above: Multi-label: least probability of "present" at which "present" is selected. If this or
            `absent_below` is None, `threshold` holds for both choices.
    """

    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    absent_below: Annotated[float, Field(ge=0, le=1), Domain(0.005, 0.3)] | None = 0.05
    present_above: Annotated[float, Field(ge=0, le=1), Domain(0.5, 0.98)] | None = 0.70


class FixMatchConfig(CutoffConfig):
    """Configure FixMatch: cut-offs and kind of pseudo-label."""

    name: Literal["fixmatch"] = "fixmatch"


class FixMatch(Algorithm):
    """Select weak predictions by fixed cut-offs, and match strong ones to them by cross-entropy."""

    config_type: ClassVar[type[BaseAlgorithmConfig]] = FixMatchConfig
    config: CutoffConfig

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Match the strong unlabeled view to confident labels of the weak one."""
        weak = outputs.labeler[View.UNLABELED_WEAK]
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), self.select(weak))]

    def select(self, weak: Tensor) -> Tensor:
        """Return weights [B, G] from the labeler's logits [B, G, K]: 1 where it is confident, else 0."""
        band = self.space.band(self.config.absent_below, self.config.present_above)
        return confident(weak.softmax(-1), self.config.threshold, band).float()
