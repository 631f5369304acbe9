"""Implement DeFixMatch (Schmutz et al., "Don't fear the unlabeled", ICLR 2023, arXiv:2203.07512).

FixMatch's unlabeled loss is biased. DeFixMatch subtracts the same loss on labeled data, with pseudo-labels instead of
labels. The expectation of the difference is 0. The weight of the difference is w:

    loss = supervised + w * (unlabeled loss of unlabeled data - unlabeled loss of labeled data)

The supervised loss is the mean over weak and strong views. w is `loss.unlabeled`; the paper uses 0.5. The algorithm has
no state.
"""

from typing import ClassVar, Literal

from stssl.algorithms.base import LabelerOutputs, LossTerm
from stssl.algorithms.fixmatch import CutoffConfig, FixMatch
from stssl.base.batch import Progress, View


class DeFixMatchConfig(CutoffConfig):
    """Define the settings of DeFixMatch: which pseudo-labels are confident enough, and if they are hard or soft."""

    name: Literal["defixmatch"] = "defixmatch"


class DeFixMatch(FixMatch):
    """Run FixMatch, but subtract its loss on labeled data (with pseudo-labels) from its loss on unlabeled data."""

    config_type = DeFixMatchConfig
    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    strong_labeled: ClassVar[bool] = True

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return two loss terms: one on unlabeled patches as in FixMatch, and one on labeled patches, to be subtracted.

        In both, the networks must predict on strongly augmented patches the confident pseudo-labels that the labeler
        gives for the same patches, weakly augmented. True labels are not used.
        """
        weak = outputs.labeler[View.LABELED_WEAK]
        twin = LossTerm(View.LABELED_STRONG, self.config.label(weak), self.select(weak), sign=-1.0)
        return [*super().terms(outputs, progress), twin]
