"""Implement FixMatch (Sohn et al., NeurIPS 2020, arXiv:2001.07685).

Confident predictions on the weak view are targets for the strong view. A prediction is selected if the labeler's
probability passes a fixed cut-off. Targets are hard labels, or probabilities sharpened by a temperature. Multi-label
decisions have two cut-offs on the probability of "present". With `absent_below: null`, both choices use `threshold`.
The loss is the mean over all decisions, not only over the selected ones. FixMatch has no state.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig, LabelConfig, LabelerOutputs, LossTerm, confident
from stssl.base.batch import Progress, View
from stssl.base.config import Domain


class CutoffConfig(LabelConfig):
    """Define the fixed cut-offs that select pseudo-labels, for FixMatch and algorithms built on it.

    Attributes:
        threshold: Least probability of the most probable choice.
        absent_below: Multi-label: select "absent" if the probability of "present" is at most this.
        present_above: Multi-label: select "present" if the probability of "present" is at least this. If this or
            `absent_below` is None, both choices use `threshold`.
    """

    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    absent_below: Annotated[float, Field(ge=0, le=1), Domain(0.005, 0.3)] | None = 0.05
    present_above: Annotated[float, Field(ge=0, le=1), Domain(0.5, 0.98)] | None = 0.70


class FixMatchConfig(CutoffConfig):
    """Define the settings of FixMatch: its cut-offs and its kind of pseudo-label."""

    name: Literal["fixmatch"] = "fixmatch"


class FixMatch(Algorithm):
    """Make pseudo-labels from confident predictions on weakly augmented patches.

    They are targets of the cross-entropy on the same patches, strongly augmented.
    """

    config_type: ClassVar[type[BaseAlgorithmConfig]] = FixMatchConfig
    config: CutoffConfig

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict confident pseudo-labels on strongly augmented patches.

        The labeler makes the pseudo-labels from its logits for the same patches, weakly augmented.
        """
        weak = outputs.labeler[View.UNLABELED_WEAK]
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), self.select(weak))]

    def select(self, weak: Tensor) -> Tensor:
        """Return the weight [rows, decisions] of each pseudo-label: 1 if its probability passes the cut-offs, else 0.

        Args:
            weak: [rows, decisions, choices] logits of the labeler (the network that makes the pseudo-labels) for weakly
                augmented patches. Decisions are patches or, if multi-label, classes of patches.
        """
        band = self.space.band(self.config.absent_below, self.config.present_above)
        return confident(weak.softmax(-1), self.config.threshold, band).float()
