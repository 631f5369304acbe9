"""Describe the classes of a task, single-label or multi-label, as G groups of K choices.

A single-label task is one group of C choices. A multi-label task is C groups of 2 choices, "absent" and "present", with
logits (0, l), whose softmax is the sigmoid of l. No other module distinguishes the two kinds of task: losses and
algorithms work on the last axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stssl.base.batch import IGNORED


@dataclass(frozen=True)
class LabelSpace:
    """Hold the classes of a task, in the order of the networks' outputs.

    Attributes:
        classes: Names of the C classes.
        multilabel: True if a patch may have any number of classes, False if it has exactly one.
    """

    classes: tuple[str, ...]
    multilabel: bool

    @property
    def groups(self) -> int:
        """Return G, the number of decisions for each patch."""
        return len(self.classes) if self.multilabel else 1

    @property
    def choices(self) -> int:
        """Return K, the number of choices in each decision."""
        return 2 if self.multilabel else len(self.classes)

    def grouped(self, logits: Tensor) -> Tensor:
        """Turn network outputs [..., C] into grouped logits [..., G, K]."""
        if self.multilabel:
            return torch.stack([torch.zeros_like(logits), logits], -1)
        return logits.unsqueeze(-2)

    def ungrouped(self, grouped: Tensor) -> Tensor:
        """Turn grouped logits [..., G, K] back into network outputs [..., C], up to one constant for each row."""
        return grouped[..., 1] - grouped[..., 0] if self.multilabel else grouped[..., 0, :]

    def outputs(self, choices: Tensor) -> Tensor:
        """Pick from values [..., G, K] those of the networks' outputs, [..., C], without changing them.

        Single-label: the values of all choices. Multi-label: each class's value of "present".
        """
        return choices[..., 1] if self.multilabel else choices[..., 0, :]

    def sides(self, choices: Tensor) -> Tensor:
        """Return the column [B, G] in which a choice counts, in statistics kept apart for "absent" and "present".

        Args:
            choices: [B, G] choice ids.

        Returns:
            The choice ids themselves (multi-label), or 0 everywhere (single-label).
        """
        return choices if self.multilabel else torch.zeros_like(choices)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn network outputs [..., C] into the probability of each class [..., C]."""
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    def band(self, low: float | None, high: float | None) -> tuple[float, float] | None:
        """Return the two cut-offs for "absent" and "present"; None for single-label tasks, or if one is not set."""
        return (low, high) if self.multilabel and low is not None and high is not None else None

    def claims(self, choices: Tensor) -> Tensor:
        """Mark choice ids that say that a patch has a class: all of them (single-label), "present" (multi-label)."""
        return choices == 1 if self.multilabel else choices >= 0

    def targets(self, labels: Tensor) -> Tensor:
        """Turn labels as a store holds them into choice ids.

        Args:
            labels: Multi-label [N, C] of 0, 1, or 255 / -1 where unknown; single-label [N] class ids, negative where
                unknown.

        Returns:
            [N, G] int64, `IGNORED` where unknown.
        """
        ids = labels.long() if self.multilabel else labels.long()[:, None]
        return torch.where((ids >= 0) & (ids < self.choices), ids, IGNORED)

    def positives(self, targets: Tensor) -> Tensor:
        """Turn choice ids [N, G] into truth values [N, C]: True where a patch is known to have a class."""
        return targets == (1 if self.multilabel else torch.arange(len(self.classes), device=targets.device))
