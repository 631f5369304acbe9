"""FlexMatch (Zhang et al., NeurIPS 2021, arXiv:2110.08263).

FixMatch whose threshold is lower for ways that are learned more slowly. The learning status b of a way is the number
of unlabeled samples whose last confident label (p >= threshold) it is, over the largest such number of its decision:

    threshold[choice] = threshold * b / (2 - b)

Multi-label: one status for "absent" and one for "present" of each class. State: of each unlabeled sample and decision
the last confident way, and their counts; updated before use. With `count_unused` samples that were never confident
count as a further way when the largest number is sought, which keeps thresholds low at first (the paper's warm-up).

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
    """The threshold of the best-learned way."""

    name: Literal["flexmatch"] = "flexmatch"
    threshold: Annotated[float, Field(ge=0, le=1), Domain(0.6, 0.99)] = 0.95
    count_unused: Switch = False


class FlexMatch(Algorithm):
    """Thresholds by learning status."""

    stateful: ClassVar[bool] = True

    def __init__(self, config: FlexMatchConfig, space: LabelSpace, facts: DataFacts) -> None:
        """No sample has been confident yet."""
        super().__init__(config, space, facts)
        self.last: Tensor
        self.counts: Tensor
        self.register_buffer("last", torch.full((facts.unlabeled_count, space.groups), IGNORED, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(space.groups, space.choices, dtype=torch.int64))

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Remember the batch's confident labels; a sample that stands in it twice keeps its last."""
        index, order = outputs.index.sort(stable=True)
        p = outputs.labeler[View.UNLABELED_WEAK][order].softmax(-1)
        row = torch.arange(len(index), device=index.device)
        newest = torch.where(p.amax(-1) >= self.config.threshold, row[:, None], -1).cummax(0).values
        first = torch.searchsorted(index, index)
        newest = newest[torch.searchsorted(index, index, right=True) - 1]
        old = self.last[index].long()
        new = torch.where(newest >= first[:, None], choose(p).gather(0, newest.clamp_min(0)), old)
        self.last[index] = new.to(self.last.dtype)
        once = (first == row)[:, None, None]
        self.counts.add_(((self._ways(new) - self._ways(old)) * once).sum(0))

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """The strong view matches what passes the way's own threshold."""
        weak = outputs.labeler[View.UNLABELED_WEAK]
        chosen = weak.softmax(-1).amax(-1) >= of_choice(self.thresholds(), choose(weak))
        return [LossTerm(View.UNLABELED_STRONG, self.config.label(weak), chosen.float())]

    def thresholds(self) -> Tensor:
        """[G, K]."""
        most = self.counts.amax(-1, keepdim=True)
        if self.config.count_unused:
            most = most.maximum(len(self.last) - self.counts.sum(-1, keepdim=True))
        status = self.counts / most.clamp_min(1)
        return self.config.threshold * status / (2 - status)

    def _ways(self, ids: Tensor) -> Tensor:
        """One-hot [B, G, K], all 0 for `IGNORED`."""
        return functional.one_hot(ids.clamp_min(0), self.space.choices) * (ids != IGNORED)[..., None]
