"""Implement UDAL, unifying distribution alignment as a loss (Lazarow et al., WACV 2023).

UDAL makes the same targets as FixMatch. But before each loss, it adds this to the logits at step t of T:

    log(q / target^a),    a = 1 - (1 - a_min) * (t / T)^k

The target is the marginal (the distribution over choices) that predictions should have; target^a is normalized over
choices. In supervised losses, q is the target. In unlabeled losses, q is the network's own running marginal: the
running mean of the probabilities that it predicts. Multi-label: only the logit of "present" is shifted, as in the
public implementation.

State: the labeler's marginal over weak views, and the student's marginal over strong views. Both start with the
marginal of the first batch. `target: predicted` adds a running mean of predictions on labeled weak views. All state is
updated before use.

Differences from the public implementation: the student uses its own marginal, not that of the teacher. The ratio has a
lower bound, so a class without labeled positives gives no NaN.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, DataFacts, LabelerOutputs, LossRole, Running
from stssl.algorithms.fixmatch import CutoffConfig, FixMatch
from stssl.algorithms.marginal import TargetMarginal, TargetName, tempered
from stssl.base.batch import Progress, Stream, View
from stssl.base.config import Domain
from stssl.base.labels import LabelSpace

FLOOR = 1e-9
"""Lower bound of a ratio before its logarithm. Without it, a class without labeled positives gives log(0)."""


class UdalConfig(CutoffConfig):
    """Define the settings of UDAL, which shifts logits toward a target class distribution.

    Attributes:
        absent_below: Multi-label: select "absent" if the probability of "present" is at most this. If this or
            `present_above` is None, both choices use `threshold`.
        present_above: Multi-label: select "present" if the probability of "present" is at least this.
        ema_decay: Share of the old running marginals that a step keeps.
        least_exponent: Exponent of the target at the end of training (a_min).
        power: Shape of the change of the exponent (k). With a larger value, the exponent changes later in training.
        target: Class distribution (marginal) that predictions should have.
    """

    name: Literal["udal"] = "udal"
    absent_below: Annotated[float, Field(ge=0, le=1), Domain(0.005, 0.3)] | None = None
    present_above: Annotated[float, Field(ge=0, le=1), Domain(0.5, 0.98)] | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.9, 0.9999)] = 0.999
    least_exponent: Annotated[float, Field(ge=0, le=1), Domain(0.0, 1.0)] = 0.5
    power: Annotated[float, Field(gt=0), Domain(1.0, 4.0)] = 2.0
    target: TargetName = "labeled"


class Udal(FixMatch):
    """Run FixMatch, but shift logits before each loss so that predictions follow a wanted class distribution."""

    config_type = UdalConfig
    config: UdalConfig
    stateful: ClassVar[bool] = True
    watches_student: ClassVar[bool] = True

    def __init__(self, config: UdalConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Create the class distribution that predictions should have, and the networks' running mean predictions.

        There is one mean for the labeler (the network that makes the pseudo-labels), and one for the student. The means
        have no values before the first batch.
        """
        super().__init__(config, space, facts)
        self.target = TargetMarginal(config.target, config.ema_decay, space, facts)
        self.labeler = Running(config.ema_decay, (space.groups, space.choices))
        self.student = Running(config.ema_decay, (space.groups, space.choices))
        self.views = Algorithm.views | self.target.views

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the wanted class distribution, and the running mean predictions of the labeler and of the student.

        `outputs` has the logits of both networks for the batch.
        """
        self.target.observe(outputs)
        self.labeler.update(outputs.labeler[View.UNLABELED_WEAK].softmax(-1).mean(0))
        for strong in outputs.student.values():
            self.student.update(strong.softmax(-1).mean(0))

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Return logits with log(q / target^a) added, where q is a class distribution and a this step's exponent.

        The target is the class distribution that predictions should have. For views of unlabeled patches, q is the
        running mean prediction of the network; for views of labeled patches, it is the target.

        Args:
            logits: [rows, decisions, choices] logits of one network for one view.
            role: `labeler` if the network makes the pseudo-labels, else `student`.
            view: Augmented view that the network predicted.
            progress: Number of the current step and of all steps, which set the exponent.

        Returns:
            [rows, decisions, choices] shifted logits.
        """
        own = self.labeler if role == "labeler" else self.student
        q = self.target.value if view.stream is Stream.LABELED else own.value
        shift = self.ratio(q, progress).clamp_min(FLOOR).log()
        # Multi-label: shift only the logit of "present", as the public implementation does; `outputs` drops the other.
        return logits + self.space.grouped(self.space.outputs(shift))

    def ratio(self, q: Tensor, progress: Progress) -> Tensor:
        """Return the ratio q / target^a of two class distributions, [decisions, choices].

        The target is the class distribution that predictions should have; target^a is normalized over the choices. The
        logarithm of the ratio is added to logits.

        Args:
            q: [decisions, choices] class distribution: [1, classes] or, if multi-label, [classes, 2].
            progress: Number of the current step and of all steps, which set the exponent a.
        """
        exponent = 1 - (1 - self.config.least_exponent) * progress.fraction**self.config.power
        return q / (tempered(self.target.value, exponent) + FLOOR)
