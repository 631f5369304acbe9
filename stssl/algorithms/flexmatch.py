"""Implement FlexMatch (Zhang et al., NeurIPS 2021, arXiv:2110.08263).

FlexMatch is FixMatch with a lower threshold for choices that the network learns more slowly. Count for each choice the
unlabeled samples that had it as their last confident label (p >= threshold). The learning status b of a choice is its
count divided by the largest count in the same decision:

    threshold[choice] = threshold * b / (2 - b)

Multi-label: each class has one status for "absent" and one for "present". State: the last confident choice of each
unlabeled sample and decision, and the counts. Both are updated before use.

With `count_unused`, the samples that were never confident also have a count, and it can be the largest. This keeps
thresholds low at first (the paper's warm-up).

The public implementation has no recorded values, so the test compares with a slow version of the formulas.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stssl.algorithms.base import Algorithm, DataFacts, LabelConfig, LabelerOutputs, LossTerm, choose, of_choice
from stssl.base.batch import IGNORED, Progress, View
from stssl.base.config import Domain, Switch
from stssl.base.labels import LabelSpace


class FlexMatchConfig(LabelConfig):
    """Define the settings of FlexMatch: its largest threshold and its warm-up.

    Attributes:
        threshold: Least probability for the choice (such as a class) with the most confident labels. Other choices have
            a lower threshold.
        count_unused: True to use the paper's warm-up: thresholds are low while many samples were never confident.
    """

    name: Literal["flexmatch"] = "flexmatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    count_unused: Switch = False


class FlexMatch(Algorithm):
    """Run FixMatch, but with a lower confidence threshold for choices that the network learns slowly."""

    config_type = FlexMatchConfig
    config: FlexMatchConfig
    stateful: ClassVar[bool] = True

    def __init__(self, config: FlexMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create the tables of the last confident label of each unlabeled patch, and of the count for each class.

        At first, no patch has a confident label, and all counts are 0. If multi-label, each class counts "absent" and
        "present".
        """
        super().__init__(config, space, facts)
        self.last: Tensor
        self.counts: Tensor
        # int32 saves memory: the table has one row for each unlabeled patch of the run.
        self.register_buffer("last", torch.full((facts.unlabeled_count, space.groups), IGNORED, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(space.groups, space.choices, dtype=torch.int64))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Store the last confident pseudo-label of each unlabeled patch, and count the patches with each class.

        If multi-label, count for each class the patches with "absent" and with "present". The counts set the
        thresholds. `outputs` has the labeler's logits for weakly augmented patches, and the numbers of these patches.
        """
        # A patch may be several times in the batch, and its last row must win on any number of ranks: sort the rows by
        # patch, with each patch's rows in the order of the batch.
        index, order = outputs.index.sort(stable=True)
        p = outputs.labeler[View.UNLABELED_WEAK][order].softmax(-1)
        row = torch.arange(len(index), device=index.device)
        newest = torch.where(p.amax(-1) >= self.config.threshold, row[:, None], -1).cummax(0).values
        first = torch.searchsorted(index, index)
        newest = newest[torch.searchsorted(index, index, right=True) - 1]
        old = self.last[index].long()
        new = torch.where(newest >= first[:, None], choose(p).gather(0, newest.clamp_min(0)), old)
        self.last[index] = new.to(self.last.dtype)
        # All rows of a patch now have the same old and new label, but the patch counts once: use only its first row.
        once = (first == row)[:, None, None]
        self.counts.add_(((self._one_hot(new) - self._one_hot(old)) * once).sum(0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict confident pseudo-labels on strongly augmented patches.

        The labeler makes the pseudo-labels from its logits for the same patches, weakly augmented. Only those count
        whose confidence reaches the threshold of their choice: a class or, if multi-label, "absent" or "present".
        """
        weak = outputs.labeler[View.UNLABELED_WEAK]
        chosen = weak.softmax(-1).amax(-1) >= of_choice(self.thresholds(), choose(weak))
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), chosen.float())]

    def thresholds(self) -> Tensor:
        """Return the confidence threshold [decisions, choices] of each class, from the counts of confident labels.

        If multi-label, each class has thresholds for "absent" and "present". The largest count gives the configured
        threshold, smaller counts give lower ones. With `count_unused`, the number of patches without a confident label
        is also a count.
        """
        most = self.counts.amax(-1, keepdim=True)
        if self.config.count_unused:
            most = most.maximum(len(self.last) - self.counts.sum(-1, keepdim=True))
        status = self.counts / most.clamp_min(1)
        return self.config.threshold * status / (2 - status)

    def _one_hot(self, ids: Tensor) -> Tensor:
        """Return ids of choices [rows, decisions] as one-hot vectors [rows, decisions, choices]; zeros for `IGNORED`.

        A choice is a class or, if multi-label, "absent" or "present".
        """
        found: Tensor = functional.one_hot(ids.clamp_min(0), self.space.choices) * (ids != IGNORED)[..., None]
        return found
