"""DeFixMatch (Schmutz et al., "Don't fear the unlabeled", ICLR 2023, arXiv:2203.07512).

FixMatch's unlabeled loss is biased; subtracting the same loss on labeled data, with the labels that the labeler would
have given it, makes its expectation zero:

    loss = supervised + w * (unlabeled loss of unlabeled data - unlabeled loss of labeled data)

The supervised loss is the mean over weak and strong views. The paper's weight is `loss.unlabeled: 0.5`. No state.
"""

from typing import ClassVar, Literal

from stssl.algorithms.base import LabelerOutputs, LossTerm
from stssl.algorithms.fixmatch import CutoffConfig, FixMatch
from stssl.base.batch import Progress, View


class DeFixMatchConfig(CutoffConfig):
    """Cut-offs and kind of label."""

    name: Literal["defixmatch"] = "defixmatch"


class DeFixMatch(FixMatch):
    """FixMatch minus the same on labeled data."""

    views = frozenset({View.UNLABELED_WEAK, View.LABELED_WEAK})
    strong_labeled: ClassVar[bool] = True

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """FixMatch's term, and its labeled twin subtracted."""
        weak = outputs.labeler[View.LABELED_WEAK]
        twin = LossTerm(View.LABELED_STRONG, self.config.label(weak), self.select(weak), sign=-1.0)
        return [*super().terms(outputs, progress), twin]
