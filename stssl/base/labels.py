"""The one place that knows what kind of task it is: every prediction is G groups of K choices.

A single-label task is one group of C choices. A multi-label task is C groups of 2 choices with logits (0, l), whose
softmax is the sigmoid of l. Everything else works on the last axis and never asks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stssl.base.batch import IGNORED


@dataclass(frozen=True)
class LabelSpace:
    """Classes in the order of the networks' outputs.

    Attributes:
        classes: Names of the C classes.
        multilabel: Whether a patch may have any number of classes.
    """

    classes: tuple[str, ...]
    multilabel: bool

    @property
    def groups(self) -> int:
        """G: decisions a patch."""
        return len(self.classes) if self.multilabel else 1

    @property
    def choices(self) -> int:
        """K: choices a decision."""
        return 2 if self.multilabel else len(self.classes)

    def grouped(self, logits: Tensor) -> Tensor:
        """Network outputs [..., C] to grouped logits [..., G, K]."""
        if self.multilabel:
            return torch.stack([torch.zeros_like(logits), logits], -1)
        return logits.unsqueeze(-2)

    def ungrouped(self, grouped: Tensor) -> Tensor:
        """The inverse of `grouped`: [..., G, K] to [..., C], up to a constant a row."""
        return grouped[..., 1] - grouped[..., 0] if self.multilabel else grouped[..., 0, :]

    def outputs(self, choices: Tensor) -> Tensor:
        """Pick from values [..., G, K] those that belong to the networks' outputs: [..., C], exactly.

        Single-label: all choices. Multi-label: of each class the way "present", since that of "absent" follows from it.
        """
        return choices[..., 1] if self.multilabel else choices[..., 0, :]

    def sides(self, choices: Tensor) -> Tensor:
        """Return the column [B, G] of a choice id in statistics kept apart for "absent" and "present"."""
        return choices if self.multilabel else torch.zeros_like(choices)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Network outputs [..., C] to the probability of each class [..., C]."""
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    def band(self, low: float | None, high: float | None) -> tuple[float, float] | None:
        """Cut-offs of their own for "absent" and "present", which only two-choice decisions have."""
        return (low, high) if self.multilabel and low is not None and high is not None else None

    def claims(self, choices: Tensor) -> Tensor:
        """True where a choice id claims that a class is there: always (single-label) or if "present" (multi-label)."""
        return choices == 1 if self.multilabel else choices >= 0

    def targets(self, labels: Tensor) -> Tensor:
        """Stored labels to choice ids.

        Args:
            labels: Multi-label [N, C] of 0, 1, or 255 / -1 where unknown; single-label [N] class ids, negative where
                unknown.

        Returns:
            [N, G] int64, `IGNORED` where unknown.
        """
        ids = labels.long() if self.multilabel else labels.long()[:, None]
        return torch.where((ids >= 0) & (ids < self.choices), ids, IGNORED)

    def positives(self, targets: Tensor) -> Tensor:
        """Choice ids [N, G] to [N, C] truth values: whether a patch is known to have a class."""
        return targets == (1 if self.multilabel else torch.arange(len(self.classes), device=targets.device))
