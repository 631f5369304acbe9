"""Describe the labels of a patch as G decisions with K choices each. C is the number of classes.

A single-label task has one decision with C choices. A multi-label task has C decisions with 2 choices: "absent" and
"present". If a network's output for a class is l, these two have the logits (0, l): their softmax is the sigmoid of l.
Losses and algorithms work on the last axis, the choices. So they need not distinguish the two kinds of task.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stssl.base.batch import IGNORED


@dataclass(frozen=True)
class LabelSpace:
    """Hold the classes of a task, and convert between labels, network outputs, and choices in decisions.

    Attributes:
        classes: Names of the C classes, in the sequence of the networks' outputs.
        multilabel: True if a patch may have any number of classes, False if it has exactly one.
    """

    classes: tuple[str, ...]
    multilabel: bool

    @property
    def groups(self) -> int:
        """Return G, the number of decisions for each patch: 1 if single-label, the number of classes if multi-label."""
        return len(self.classes) if self.multilabel else 1

    @property
    def choices(self) -> int:
        """Return K, the number of choices in each decision: the number of classes if single-label, 2 if multi-label."""
        return 2 if self.multilabel else len(self.classes)

    def grouped(self, logits: Tensor) -> Tensor:
        """Return network outputs [..., C], one for each class, as logits [..., G, K] of G decisions with K choices."""
        if self.multilabel:
            return torch.stack([torch.zeros_like(logits), logits], -1)
        return logits.unsqueeze(-2)

    def ungrouped(self, grouped: Tensor) -> Tensor:
        """Return logits [..., G, K] of G decisions with K choices as network outputs [..., C], one for each class.

        The logits may be logarithms of probabilities. In single-label tasks, each row of the result then differs by a
        constant from the outputs that gave these probabilities. The softmax ignores this constant.
        """
        return grouped[..., 1] - grouped[..., 0] if self.multilabel else grouped[..., 0, :]

    def outputs(self, choices: Tensor) -> Tensor:
        """Return one value for each class, [..., C], out of the values [..., G, K] of G decisions with K choices.

        The values are logits or probabilities. Single-label (one decision among C classes): return the values of all
        choices. Multi-label (one decision for each class): return the values of "present", the second choice.
        """
        return choices[..., 1] if self.multilabel else choices[..., 0, :]

    def sides(self, choices: Tensor) -> Tensor:
        """Return in which column of a table of running means (such as confidences) each choice id is averaged.

        Tables of multi-label tasks have one column for "absent" and one for "present". In tables of single-label
        tasks, only the first column is used, for all classes together.

        Args:
            choices: [B, G] choice ids of B patches, each with G decisions.

        Returns:
            [B, G] columns: the choice ids themselves (multi-label), or 0 everywhere (single-label).
        """
        return choices if self.multilabel else torch.zeros_like(choices)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class [..., C], given network outputs [..., C]."""
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    def band(self, low: float | None, high: float | None) -> tuple[float, float] | None:
        """Return the limits (`low`, `high`) of probability that choose multi-label pseudo-labels.

        A class counts as absent below `low`, and as present above `high`. Between them it gets no pseudo-label. Return
        None for single-label tasks, or if `low` or `high` is None.
        """
        return (low, high) if self.multilabel and low is not None and high is not None else None

    def claims(self, choices: Tensor) -> Tensor:
        """Return booleans with the shape of `choices` (choice ids): True for each id that assigns a class to its patch.

        These are all known ids (single-label), or only the id of "present" (multi-label). Unknown ids give False.
        """
        return choices == 1 if self.multilabel else choices >= 0

    def targets(self, labels: Tensor) -> Tensor:
        """Return the labels of a store as choice ids: the number of the right choice in each decision.

        Args:
            labels: Labels of N patches. Multi-label: [N, C], 0 or 1, and 255 or -1 if unknown. Single-label: [N] class
                ids, negative if unknown.

        Returns:
            [N, G] choice ids as int64; `IGNORED` if unknown.
        """
        ids = labels.long() if self.multilabel else labels.long()[:, None]
        return torch.where((ids >= 0) & (ids < self.choices), ids, IGNORED)

    def table(self, labels: Tensor) -> Tensor:
        """Return the labels of all patches of a store as a table of choice ids that takes little memory.

        Losses and metrics need int64, so callers convert the rows that they take with `.long()`.

        Args:
            labels: Labels of N patches. Multi-label: [N, C], 0 or 1, and 255 or -1 if unknown. Single-label: [N] class
                ids, negative if unknown.

        Returns:
            [N, G] choice ids; `IGNORED` if unknown. Multi-label: int8, because a million patches with a thousand
            classes take 1 GB as int8, and 8 GB as int64. Single-label: int64 with G = 1.
        """
        if not self.multilabel or labels.dtype not in (torch.uint8, torch.int8, torch.bool):
            ids = self.targets(labels)
            return ids.to(torch.int8) if self.multilabel else ids
        # Only 0 and 1 are labels. 255 (unknown) becomes -1 as int8, and other values than 0 and 1 count as unknown too.
        signed = labels.to(torch.int8)
        return signed.masked_fill((signed < 0) | (signed > 1), IGNORED)

    def positives(self, targets: Tensor) -> Tensor:
        """Return booleans [N, C] for the choice ids [N, G] of N patches: True if the patch has the class.

        Unknown ids give False.
        """
        return targets == (1 if self.multilabel else torch.arange(len(self.classes), device=targets.device))
