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
    """Define the settings of DeFixMatch: its cut-offs and its kind of pseudo-label."""

    name: Literal["defixmatch"] = "defixmatch"


class DeFixMatch(FixMatch):
    """Run FixMatch, but subtract its loss on labeled data (with pseudo-labels) from its loss on unlabeled data."""

    config_type = DeFixMatchConfig
    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    strong_labeled: ClassVar[bool] = True

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return FixMatch's loss term on unlabeled data, and the same on labeled data, which is to be subtracted."""
        weak = outputs.labeler[View.LABELED_WEAK]
        twin = LossTerm(View.LABELED_STRONG, self.config.label(weak), self.select(weak), sign=-1.0)
        return [*super().terms(outputs, progress), twin]
