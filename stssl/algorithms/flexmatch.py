"""Implement FlexMatch (Zhang et al., NeurIPS 2021, arXiv:2110.08263).

FixMatch with a lower threshold for choices that are learned more slowly. The learning status b of a choice is the
number of unlabeled samples whose last confident label (p >= threshold) it is, over the largest such number among the
choices of its decision:

    threshold[choice] = threshold * b / (2 - b)

Multi-label: one status for "absent" and one for "present" of each class. State: of each unlabeled sample and decision
the last confident choice, and their counts; updated before use. With `count_unused`, samples that were never confident
count as one more choice when the largest number is found. That keeps thresholds low at first (the paper's warm-up).

No vectors of the public implementation exist; it is tested against a slow restatement.
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
    """Configure FlexMatch.

    Attributes:
        threshold: Least probability for the choice that is learned best; others have a lower one.
        count_unused: True for the paper's warm-up, see above.
    """

    name: Literal["flexmatch"] = "flexmatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    count_unused: Switch = False


class FlexMatch(Algorithm):
    """Lower the threshold of choices that are learned slowly."""

    config_type = FlexMatchConfig
    config: FlexMatchConfig
    stateful: ClassVar[bool] = True

    def __init__(self, config: FlexMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Start with no sample that has been confident."""
        super().__init__(config, space, facts)
        self.last: Tensor
        self.counts: Tensor
        # int32, since the table has a row for each unlabeled patch of the run: int64 would double it.
        self.register_buffer("last", torch.full((facts.unlabeled_count, space.groups), IGNORED, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(space.groups, space.choices, dtype=torch.int64))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Remember the batch's confident labels; of a sample that occurs twice in the batch, the later one."""
        # Sorting brings a sample's rows together, in the order of the batch: its result must not depend on how ranks
        # share the batch.
        index, order = outputs.index.sort(stable=True)
        p = outputs.labeler[View.UNLABELED_WEAK][order].softmax(-1)
        row = torch.arange(len(index), device=index.device)
        newest = torch.where(p.amax(-1) >= self.config.threshold, row[:, None], -1).cummax(0).values
        first = torch.searchsorted(index, index)
        newest = newest[torch.searchsorted(index, index, right=True) - 1]
        old = self.last[index].long()
        new = torch.where(newest >= first[:, None], choose(p).gather(0, newest.clamp_min(0)), old)
        self.last[index] = new.to(self.last.dtype)
        # A sample's rows all have its new and old label now: count one of them.
        once = (first == row)[:, None, None]
        self.counts.add_(((self._one_hot(new) - self._one_hot(old)) * once).sum(0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Match the strong view to weak labels that pass the threshold of their choice."""
        weak = outputs.labeler[View.UNLABELED_WEAK]
        chosen = weak.softmax(-1).amax(-1) >= of_choice(self.thresholds(), choose(weak))
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), chosen.float())]

    def thresholds(self) -> Tensor:
        """Compute the threshold of each choice: [G, K]."""
        most = self.counts.amax(-1, keepdim=True)
        if self.config.count_unused:
            most = most.maximum(len(self.last) - self.counts.sum(-1, keepdim=True))
        status = self.counts / most.clamp_min(1)
        return self.config.threshold * status / (2 - status)

    def _one_hot(self, ids: Tensor) -> Tensor:
        """Encode choice ids [B, G] as [B, G, K], all 0 for `IGNORED`."""
        found: Tensor = functional.one_hot(ids.clamp_min(0), self.space.choices) * (ids != IGNORED)[..., None]
        return found
