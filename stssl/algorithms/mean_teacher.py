"""Implement mean teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780).

Probabilities on the strong view should equal the averaged labeler's probabilities on the weak view. The loss is the
squared error, averaged over choices, for all decisions. Its weight grows with the step t over the first T_r steps:

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
    """Configure mean teacher.

    Attributes:
        ramp_up: Number of steps (T_r) over which the weight grows; 0 gives full weight from the start.
    """

    name: Literal["mean_teacher"] = "mean_teacher"
    labeler: LabelerName = "ema"
    ramp_up: Annotated[int, Field(ge=0), Domain(0, 20_000)] = 4000


class MeanTeacher(Algorithm):
    """Make the predictions of a network with averaged weights the targets of all predictions on strong views."""

    config_type = MeanTeacherConfig
    config: MeanTeacherConfig

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return one loss term: on strong views, predict the probabilities of weak views, with this step's weight."""
        target = outputs.labeler[View.UNLABELED_WEAK].softmax(-1)
        missing = 1 - min(1.0, progress.step / max(1, self.config.ramp_up))
        weight = torch.full_like(target[..., 0], math.exp(-5 * missing**2) if self.config.ramp_up else 1.0)
        return [LossTerm(View.UNLABELED_STRONG, target, weight)]

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the squared error [rows, decisions] between probabilities and targets, averaged over choices.

        The probabilities are the softmax of the logits [rows, decisions, choices].
        """
        return squared_error(logits, target)
