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
    """Configure the weights of the losses, and what distillation compares.

    Attributes:
        unlabeled: Weight of the loss on pseudo-labels.
        distillation: Weight of the distillation loss.
        distance: Distance between contexts, `logits` for the divergence of predictions, or `none`.
        temperature: Temperature of the divergence of predictions.
    """

    unlabeled: Annotated[float, Field(ge=0), Domain(0.1, 10.0, log=True)] = 1.0
    distillation: Annotated[float, Field(ge=0), Domain(0.001, 10.0, log=True)] = 1.0
    distance: Annotated[Distance, Domain(choices=("mse", "mae", "cosine", "logits", "none"))] = "mse"
    temperature: Annotated[float, Field(gt=0), Domain(1.0, 8.0)] = 2.0

    @property
    def distills(self) -> bool:
        """Return True if the student learns from the teacher's outputs besides its pseudo-labels."""
        return self.distance != "none" and self.distillation > 0


@dataclass(frozen=True)
class Outputs:
    """Hold one network's outputs: for each view grouped logits [n, G, K] and contexts [n, D]."""

    logits: dict[View, Tensor]
    contexts: dict[View, Tensor]


@dataclass(frozen=True)
class MatchPlan:
    """Hold the loss terms of a micro-batch, with denominators of the global batch.

    Denominators are divided by the number of ranks, so that the mean over ranks of each rank's sums over them is the
    loss of the global batch. The losses of a rank's micro-batches add up to the loss of its rows.

    Attributes:
        terms: Loss terms of this micro-batch's rows.
        counts: Denominator of each term.
        labels: Denominator of the supervised loss: known labels.
        rows: Denominator of distillation: rows of all views.
        decisions: Denominator of shares of pseudo-labels: decisions of all unlabeled rows.
        statistics: Sums over the global batch that the algorithm's regularizer needs, for each network.
        parts: Number of micro-batches that the rank's rows are divided into.
    """

    terms: list[LossTerm]
    counts: list[Tensor]
    labels: Tensor
    rows: Tensor
    decisions: Tensor
    statistics: Mapping[str, Tensor]
    parts: int = 1

    def split(self, parts: int) -> "list[MatchPlan]":
        """Return a plan for each of `parts` micro-batches: its rows of all terms, and the same denominators."""
        return [
            replace(self, terms=[_term_rows(term, part, parts) for term in self.terms], parts=parts)
            for part in range(parts)
        ]


def _term_rows(term: LossTerm, part: int, parts: int) -> LossTerm:
    return replace(term, target=part_rows(term.target, part, parts), weight=part_rows(term.weight, part, parts))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide the sum of a loss by its count; 0 if nothing counts."""
    return numerator / denominator.clamp_min(1e-8)


def distilled(config: LossConfig, student: Outputs, teacher: Outputs, rows: Tensor) -> Tensor:
    """Compute the distillation loss over all views that both networks see.

    Args:
        config: Loss weights and the kind of distance.
        student: The student's outputs.
        teacher: The teacher's outputs.
        rows: Denominator of the loss: rows of all views of the global batch.
    """
    if config.distance == "logits":
        own, other = (concatenate_views(outputs.logits) for outputs in (student, teacher))
        total, count = divergence(own, other, config.temperature)
    else:
        own, other = (concatenate_views(outputs.contexts) for outputs in (student, teacher))
        total, count = distance(config.distance, own, other)
    return total / (count / len(own) if len(own) else 1) / rows


def concatenate_views(views: Logits) -> Tensor:
    """Concatenate the rows of all views, in the order of the mapping."""
    return torch.cat(list(views.values()))


@torch.no_grad()
def quality(batch: Batch, plan: MatchPlan, space: LabelSpace) -> dict[str, Tensor]:
    """Measure how many pseudo-labels are used and, where the truth is known, how often they are right.

    Args:
        batch: Rows, with true labels where they are known.
        plan: Loss terms of these rows.
        space: Classes and kind of task.

    Returns:
        `pseudo_rate`, the mean weight of pseudo-labels, and if labels are known, `pseudo_claimed`, `pseudo_actual` and
        `pseudo_right` as shares of all decisions. Precision is right / claimed, recall is right / actual. In
        multi-label tasks only "present" counts. Empty if the step has no pseudo-labels.
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


def join_logits(micro_batches: list[Logits]) -> Logits:
    """Join the logits of several micro-batches, view by view."""
    return {view: torch.cat([rows[view] for rows in micro_batches]) for view in micro_batches[0]}


def join_labeler_outputs(micro_batches: list[LabelerOutputs | None]) -> LabelerOutputs | None:
    """Join labeler outputs of several micro-batches; None if no micro-batch has any."""
    outputs = [one for one in micro_batches if one is not None]
    if not outputs:
        return None
    return LabelerOutputs(
        join_logits([one.labeler for one in outputs]),
        join_logits([one.student for one in outputs]),
        torch.cat([one.index for one in outputs]),
        outputs[0].blank,
    )


def ordered(views: Collection[View]) -> list[View]:
    """Sort views by name, so that all ranks put them into a batch in the same order."""
    return sorted(views, key=lambda view: view.value)
