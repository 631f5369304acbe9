"""Implement mean teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780).

The probabilities that a network predicts on the strong view should equal those that averaged weights predict on the
weak view. The loss is the squared error, averaged over choices, for all decisions. Its weight grows with the step t
over the first T_r steps:

    weight = exp(-5 (1 - t / T_r)^2)

The algorithm has no state: the training step keeps the averaged weights.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig, LabelerName, LabelerOutputs, LossTerm
from stssl.algorithms.losses import squared_error
from stssl.base.batch import Progress, View
from stssl.base.config import Domain


class MeanTeacherConfig(BaseAlgorithmConfig):
    """Define the settings of mean teacher.

    Attributes:
        ramp_up: Number of steps (T_r) over which the weight of the unlabeled loss grows; 0 gives full weight from the
            start.
    """

    name: Literal["mean_teacher"] = "mean_teacher"
    labeler: LabelerName = "ema"
    ramp_up: Annotated[int, Field(ge=0), Domain(0, 20_000)] = 4000


class MeanTeacher(Algorithm):
    """Train a network to predict on strongly augmented patches the labeler's predictions on weakly augmented patches.

    The labeler, the network that makes the pseudo-labels, has averaged weights.
    """

    config_type = MeanTeacherConfig
    config: MeanTeacherConfig

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: the networks must predict the labeler's probabilities on strongly augmented patches.

        The labeler, the network with averaged weights, predicts them on the same patches, weakly augmented. The weight
        of the term grows over the first steps, as `progress` says.
        """
        target = outputs.labeler[View.UNLABELED_WEAK].softmax(-1)
        missing = 1 - min(1.0, progress.step / max(1, self.config.ramp_up))
        weight = torch.full_like(target[..., 0], math.exp(-5 * missing**2) if self.config.ramp_up else 1.0)
        return [LossTerm(View.UNLABELED_STRONG, target, weight)]

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the squared error [rows, decisions] between predicted and target probabilities, averaged over choices.

        Decisions are patches, and choices are classes; if multi-label, each class of a patch is a decision.

        Args:
            logits: [rows, decisions, choices] logits for strongly augmented patches. Their softmax is compared with the
                target.
            target: [rows, decisions, choices] probabilities.
        """
        return squared_error(logits, target)
