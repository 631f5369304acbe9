"""Implement DeFixMatch (Schmutz et al., "Don't fear the unlabeled", ICLR 2023, arXiv:2203.07512).

FixMatch's unlabeled loss is biased. Subtracting the same loss on labeled data, with pseudo-labels in place of labels,
makes its expectation zero:

    loss = supervised + w * (unlabeled loss of unlabeled data - unlabeled loss of labeled data)

The supervised loss is the mean over weak and strong views. The paper's weight is `loss.unlabeled: 0.5`. No state.
"""

from typing import ClassVar, Literal

from stssl.algorithms.base import LabelerOutputs, LossTerm
from stssl.algorithms.fixmatch import CutoffConfig, FixMatch
from stssl.base.batch import Progress, View


class DeFixMatchConfig(CutoffConfig):
    """Configure DeFixMatch: cut-offs and kind of pseudo-label."""

    name: Literal["defixmatch"] = "defixmatch"


class DeFixMatch(FixMatch):
    """Subtract FixMatch's loss on labeled data from its loss on unlabeled data."""

    config_type = DeFixMatchConfig
    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    strong_labeled: ClassVar[bool] = True

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return FixMatch's term, and with a negative sign its counterpart on labeled data."""
        weak = outputs.labeler[View.LABELED_WEAK]
        twin = LossTerm(View.LABELED_STRONG, self.config.label(weak), self.select(weak), sign=-1.0)
        return [*super().terms(outputs, progress), twin]
