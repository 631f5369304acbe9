"""Define the parts of a teacher-student step: loss weights, network outputs, loss terms and their denominators.

In shapes, a row is one patch of a batch. A single-label task has one decision for each row, a multi-label task one for
each class.
"""

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
    """Set the weights of the losses, and the kind of distillation from teacher to student.

    Attributes:
        unlabeled: Weight of the loss on pseudo-labels.
        distillation: Weight of the distillation loss.
        distance: Kind of distillation: `mse`, `mae` and `cosine` compare the context vectors of teacher and student,
            `logits` compares their predictions; or `none`.
        temperature: Divisor of the logits if `distance` is `logits`.
    """

    unlabeled: Annotated[float, Field(ge=0), Domain(0.1, 10.0, log=True)] = 1.0
    distillation: Annotated[float, Field(ge=0), Domain(0.001, 10.0, log=True)] = 1.0
    distance: Annotated[Distance, Domain(choices=("mse", "mae", "cosine", "logits", "none"))] = "mse"
    temperature: Annotated[float, Field(gt=0), Domain(1.0, 8.0)] = 2.0

    @property
    def distills(self) -> bool:
        """Return True if the loss includes distillation: the student learns from the teacher's outputs."""
        return self.distance != "none" and self.distillation > 0


@dataclass(frozen=True)
class Outputs:
    """Hold one network's logits [rows, decisions, choices] and context vectors [rows, width], for each view."""

    logits: dict[View, Tensor]
    contexts: dict[View, Tensor]


@dataclass(frozen=True)
class MatchPlan:
    """Hold the loss terms of a micro-batch, and the denominators that turn sums of losses into means over all ranks.

    Each rank divides its sums of losses by these denominators. The denominators are already divided by the number of
    ranks, so the mean of the results over ranks is the loss of the global batch. The losses of all micro-batches of a
    rank add up to the loss of its rows.

    Attributes:
        terms: Loss terms for the rows of this micro-batch.
        counts: Denominator of each term.
        labels: Denominator of the supervised loss: the number of known labels.
        rows: Denominator of the distillation loss: the number of rows, summed over views.
        decisions: Denominator of the shares that `quality` measures: the number of decisions of all unlabeled rows.
        statistics: For each network, the sums over the global batch that the algorithm's regularizer needs.
        parts: Number of micro-batches on this rank.
    """

    terms: list[LossTerm]
    counts: list[Tensor]
    labels: Tensor
    rows: Tensor
    decisions: Tensor
    statistics: Mapping[str, Tensor]
    parts: int = 1

    def split(self, parts: int) -> "list[MatchPlan]":
        """Return a plan for each of `parts` micro-batches: its rows of each loss term, and the same denominators.

        The plans have the sequence of the micro-batches of `Batch.split`.
        """
        return [
            replace(self, terms=[_term_rows(term, part, parts) for term in self.terms], parts=parts)
            for part in range(parts)
        ]


def _term_rows(term: LossTerm, part: int, parts: int) -> LossTerm:
    return replace(term, target=part_rows(term.target, part, parts), weight=part_rows(term.weight, part, parts))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return a sum of losses divided by their number or total weight; 0 if both are 0."""
    return numerator / denominator.clamp_min(1e-8)


def distilled(config: LossConfig, student: Outputs, teacher: Outputs, rows: Tensor) -> Tensor:
    """Return the distillation loss: the student's distance from the teacher on all views, as a scalar.

    Args:
        config: Loss weights and the kind of distance.
        student: The student's outputs.
        teacher: The teacher's outputs.
        rows: Denominator of the loss: the number of rows of the global batch, summed over views, divided by the number
            of ranks.
    """
    if config.distance == "logits":
        own, other = (concatenate_views(outputs.logits) for outputs in (student, teacher))
        total, count = divergence(own, other, config.temperature)
    else:
        own, other = (concatenate_views(outputs.contexts) for outputs in (student, teacher))
        total, count = distance(config.distance, own, other)
    return total / (count / len(own) if len(own) else 1) / rows


def concatenate_views(views: Logits) -> Tensor:
    """Return the tensors of all views as one tensor, joined along their rows, in the order of `views`."""
    return torch.cat(list(views.values()))


@torch.no_grad()
def quality(batch: Batch, plan: MatchPlan, space: LabelSpace) -> dict[str, Tensor]:
    """Return values to log: how many pseudo-labels the loss uses and, if true labels are known, how many are right.

    Args:
        batch: Rows, with their true labels if the store knows them.
        plan: Loss terms of these rows.
        space: Classes and kind of task.

    Returns:
        Scalars by name; empty if the step has no pseudo-labels. `pseudo_rate` is the mean weight of pseudo-labels. If
        true labels are known, three more are shares of all decisions: `pseudo_claimed` (pseudo-labels say that the
        patch has the class), `pseudo_actual` (true labels say so) and `pseudo_right` (both say the same class). So
        precision is right / claimed, and recall is right / actual. In multi-label tasks only "present" counts.
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
    """Return the logits of several micro-batches by view, joined along their rows. All must have the same views."""
    return {view: torch.cat([rows[view] for rows in micro_batches]) for view in micro_batches[0]}


def join_labeler_outputs(micro_batches: list[LabelerOutputs | None]) -> LabelerOutputs | None:
    """Return the outputs from which pseudo-labels are made, of several micro-batches, joined along their rows.

    The logits of the blank image are those of the first micro-batch. Outputs that are None are left out. Return None if
    all of them are None.
    """
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
    """Return augmented views sorted by name.

    So all ranks (training processes) put them into a batch in the same order.
    """
    return sorted(views, key=lambda view: view.value)
