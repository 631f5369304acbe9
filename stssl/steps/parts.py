"""Define the parts of a teacher-student step: loss weights, network outputs, and the plan of a step."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stssl.algorithms import LabelerOutputs, Logits, LossTerm
from stssl.algorithms.base import known
from stssl.algorithms.losses import Distance, distance, divergence
from stssl.base.batch import Batch, Stream, View, part_rows
from stssl.base.config import Config, Domain
from stssl.base.labels import LabelSpace


class LossConfig(Config):
    """Weights of the unlabeled and the distillation loss, and what distillation compares."""

    unlabeled: Annotated[float, Field(ge=0), Domain(0.1, 10.0, log=True)] = 1.0
    distillation: Annotated[float, Field(ge=0), Domain(0.001, 10.0, log=True)] = 1.0
    distance: Annotated[Distance, Domain(choices=("mse", "mae", "cosine", "logits", "none"))] = "mse"
    temperature: Annotated[float, Field(gt=0), Domain(1.0, 8.0)] = 2.0

    @property
    def distills(self) -> bool:
        """True if the student learns from the teacher's outputs besides its pseudo-labels."""
        return self.distance != "none" and self.distillation > 0


@dataclass(frozen=True)
class Outputs:
    """One network's outputs: of each view grouped logits [n, G, K] and contexts [n, D]."""

    logits: dict[View, Tensor]
    contexts: dict[View, Tensor]


@dataclass(frozen=True)
class MatchPlan:
    """Hold the loss terms of a micro-batch, with denominators of the global batch.

    Denominators are divided by the number of ranks, so that the mean over ranks of local sums over them is the global
    batch's loss; for micro-batches it is the sum of theirs.

    Attributes:
        terms: What to match, in this micro-batch.
        counts: Denominator of each term.
        labels: Denominator of the supervised loss.
        rows: Denominator of distillation: rows of all views.
        decisions: Denominator of shares of pseudo-labels.
        statistics: Of each network what the algorithm's regularizer needs, summed over the global batch.
        parts: Micro-batches that the rank's rows are divided into.
    """

    terms: list[LossTerm]
    counts: list[Tensor]
    labels: Tensor
    rows: Tensor
    decisions: Tensor
    statistics: Mapping[str, Tensor]
    parts: int = 1

    def split(self, parts: int) -> "list[MatchPlan]":
        """The same for each of `parts` contiguous parts of rows."""
        return [
            replace(self, terms=[_term_rows(term, part, parts) for term in self.terms], parts=parts)
            for part in range(parts)
        ]


def _term_rows(term: LossTerm, part: int, parts: int) -> LossTerm:
    return replace(term, target=part_rows(term.target, part, parts), weight=part_rows(term.weight, part, parts))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A loss from its sum and count; 0 where nothing counts."""
    return numerator / denominator.clamp_min(1e-8)


def distilled(config: LossConfig, student: Outputs, teacher: Outputs, rows: Tensor) -> Tensor:
    """Compute the distillation loss over all views that both networks see.

    Args:
        config: Loss weights and the kind of distance.
        student: The student's outputs.
        teacher: The teacher's outputs.
        rows: Rows of all views of the global batch, the loss's denominator.
    """
    if config.distance == "logits":
        own, other = (concatenate_views(outputs.logits) for outputs in (student, teacher))
        total, count = divergence(own, other, config.temperature)
    else:
        own, other = (concatenate_views(outputs.contexts) for outputs in (student, teacher))
        total, count = distance(config.distance, own, other)
    return total / (count / len(own) if len(own) else 1) / rows


def concatenate_views(views: Logits) -> Tensor:
    """All views' rows, one after the other."""
    return torch.cat(list(views.values()))


@torch.no_grad()
def quality(batch: Batch, plan: MatchPlan, space: LabelSpace) -> dict[str, Tensor]:
    """Measure the mean weight of pseudo-labels and, where the truth is known, how often they are right.

    `pseudo_rate` is the mean weight. With `claimed`, `actual` and `right` as shares of all decisions, precision is
    right / claimed and recall right / actual; of multi-label decisions only presence counts.

    Args:
        batch: Rows, with true labels where they are known.
        plan: Loss terms of these rows.
        space: Classes and kind of task.
    """
    if not plan.terms:
        return {}
    term = plan.terms[0]
    logs = {"pseudo_rate": ratio(term.weight.sum(), plan.decisions)}
    if batch.truth is None or term.view.stream is not Stream.UNLABELED:
        return logs
    choices = term.target.argmax(-1) if term.target.dtype.is_floating_point else term.target
    counts = known(batch.truth)
    claimed = term.weight * counts * space.claims(choices)
    shares = {
        "pseudo_claimed": claimed,
        "pseudo_actual": counts * space.claims(batch.truth),
        "pseudo_right": claimed * (choices == batch.truth),
    }
    return logs | {name: ratio(share.sum(), plan.decisions) for name, share in shares.items()}


def joined_views(micro_batches: list[Logits]) -> Logits:
    """Rows of several micro-batches, view by view."""
    return {view: torch.cat([rows[view] for rows in micro_batches]) for view in micro_batches[0]}


def joined_looks(looks: list[LabelerOutputs | None]) -> LabelerOutputs | None:
    """Join labeler outputs of several micro-batches into one."""
    outputs = [look for look in looks if look is not None]
    if not outputs:
        return None
    index = torch.cat([look.index for look in outputs])
    return LabelerOutputs(
        joined_views([look.labeler for look in outputs]),
        joined_views([look.student for look in outputs]),
        index,
        outputs[0].blank,
    )


def ordered(views: Collection[View]) -> list[View]:
    """Views in an order that is the same everywhere."""
    return sorted(views, key=lambda view: view.value)
