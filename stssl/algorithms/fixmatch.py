"""FixMatch (Sohn et al., NeurIPS 2020, arXiv:2001.07685).

Confident predictions on the weak view are targets for the strong view: hard labels (or probabilities sharpened by a
temperature) wherever the labeler's probability passes a fixed cut-off. Multi-label decisions have two cut-offs on the
probability of presence. No state.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stssl.algorithms.base import Algorithm, AlgorithmConfig, Logits, Term, confident, hard_or_soft
from stssl.batch import Progress, View
from stssl.config import Domain


class FixMatchConfig(AlgorithmConfig):
    """Cut-offs and kind of label."""

    name: Literal["fixmatch"] = "fixmatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    absent_below: Annotated[float, Field(ge=0, le=1), Domain(0.005, 0.3)] | None = 0.05
    present_above: Annotated[float, Field(ge=0, le=1), Domain(0.5, 0.98)] | None = 0.70
    soft: bool = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5


class FixMatch(Algorithm):
    """Fixed cut-offs on the weak view, cross-entropy on the strong one."""

    views: ClassVar[frozenset[View]] = frozenset({View.UNLABELED_WEAK})

    def terms(self, logits: Logits, progress: Progress) -> list[Term]:
        """One term: the strong unlabeled view matches the weak one's confident labels."""
        weak = logits[View.UNLABELED_WEAK]
        target = hard_or_soft(weak, self.config.soft, self.config.temperature)
        band = self.space.band(self.config.absent_below, self.config.present_above)
        chosen = confident(weak.softmax(-1), self.config.threshold, band)
        return [Term(View.UNLABELED_STRONG, target, chosen.float())]
