"""Describe the classes of a task as G groups of K choices. C is the number of classes.

A single-label task has one group of C choices. A multi-label task has C groups of 2 choices: "absent" and "present".
These two have the logits (0, l); their softmax is the sigmoid of l. No other module distinguishes the two kinds of
task: losses and algorithms work on the last axis, the choices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stssl.base.batch import IGNORED


@dataclass(frozen=True)
class LabelSpace:
    """Hold the classes of a task, sorted as the outputs of the networks.

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
        """Turn grouped logits [..., G, K] back into network outputs [..., C]. Each row may differ by one constant."""
        return grouped[..., 1] - grouped[..., 0] if self.multilabel else grouped[..., 0, :]

    def outputs(self, choices: Tensor) -> Tensor:
        """Pick one value for each class, [..., C], from the values of all choices, [..., G, K].

        Single-label: take the values of all choices. Multi-label: take the value of "present" of each class.
        """
        return choices[..., 1] if self.multilabel else choices[..., 0, :]

    def sides(self, choices: Tensor) -> Tensor:
        """Return the column [B, G] where each choice counts in statistics.

        The statistics of multi-label tasks have separate columns for "absent" and "present".

        Args:
            choices: [B, G] choice ids of B patches.

        Returns:
            The choice ids themselves (multi-label), or 0 everywhere (single-label).
        """
        return choices if self.multilabel else torch.zeros_like(choices)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn network outputs [..., C] into the probability of each class [..., C]."""
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    def band(self, low: float | None, high: float | None) -> tuple[float, float] | None:
        """Return the cut-offs for "absent" and "present". Return None for single-label tasks, or if one is not set."""
        return (low, high) if self.multilabel and low is not None and high is not None else None

    def claims(self, choices: Tensor) -> Tensor:
        """Mark the choices that give a patch a class: all known ones (single-label), or "present" (multi-label)."""
        return choices == 1 if self.multilabel else choices >= 0

    def targets(self, labels: Tensor) -> Tensor:
        """Turn the labels of a store into choice ids.

        Args:
            labels: Labels of N patches. Multi-label: [N, C], 0 or 1, and 255 or -1 if unknown. Single-label: [N] class
                ids, negative if unknown.

        Returns:
            [N, G] int64; `IGNORED` if unknown.
        """
        ids = labels.long() if self.multilabel else labels.long()[:, None]
        return torch.where((ids >= 0) & (ids < self.choices), ids, IGNORED)

    def positives(self, targets: Tensor) -> Tensor:
        """Turn choice ids [N, G] into booleans [N, C]: True if a label says that the patch has the class."""
        return targets == (1 if self.multilabel else torch.arange(len(self.classes), device=targets.device))
