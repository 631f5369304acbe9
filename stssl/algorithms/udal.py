"""Implement UDAL, unifying distribution alignment as a loss (Lazarow et al., WACV 2023).

FixMatch's targets, but logits are shifted before each loss by

    log(q / target^a),    a = 1 - (1 - a_min) * (t / T)^k,

with target^a normalized over choices. q is the target marginal in supervised losses and the network's own running
marginal in unlabeled ones. State: the labeler's marginal over its weak view, the student's over its strong view (both
start as the first batch's); with `target: predicted` also a running mean of labeled weak predictions. All are updated
before use. Multi-label: only the logit of "present" is shifted, as in the public implementation.

Departures from it: the student uses its own marginal, not the teacher's; q is bounded from below, so that a class
without labeled positives gives no NaN.
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
"""Least ratio whose logarithm is taken: a class without labeled positives has ratio 0."""


class UdalConfig(CutoffConfig):
    """Configure UDAL.

    Attributes:
        ema_decay: Share of the running marginals that a step keeps.
        least_exponent: a_min above, the exponent at the end of training.
        power: k above: a larger one moves the change of the exponent to the end.
        target: Marginal that predictions should have.
    """

    name: Literal["udal"] = "udal"
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.9, 0.9999)] = 0.999
    least_exponent: Annotated[float, Field(ge=0, le=1), Domain(0.0, 1.0)] = 0.5
    power: Annotated[float, Field(gt=0), Domain(1.0, 4.0)] = 2.0
    target: TargetName = "labeled"


class Udal(FixMatch):
    """Run FixMatch with logits that are shifted before each loss."""

    config_type = UdalConfig
    config: UdalConfig
    stateful: ClassVar[bool] = True
    watches_student: ClassVar[bool] = True

    def __init__(self, config: UdalConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Start the marginals with the first batch."""
        super().__init__(config, space, facts)
        self.target = TargetMarginal(config.target, config.ema_decay, space, facts)
        self.labeler = Running(config.ema_decay, (space.groups, space.choices))
        self.student = Running(config.ema_decay, (space.groups, space.choices))
        self.views = Algorithm.views | self.target.views

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the target's, the labeler's and the student's marginal."""
        self.target.observe(outputs)
        self.labeler.update(outputs.labeler[View.UNLABELED_WEAK].softmax(-1).mean(0))
        for strong in outputs.student.values():
            self.student.update(strong.softmax(-1).mean(0))

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Shift logits by the logarithm of a marginal over the target.

        Args:
            logits: [B, G, K] of one network and view.
            role: Part that the network plays; each has a marginal of its own.
            view: The view that the logits are of; labeled views use the target marginal.
            progress: The step about to be taken, which sets the exponent.

        Returns:
            [B, G, K] shifted logits.
        """
        own = self.labeler if role == "labeler" else self.student
        q = self.target.value if view.stream is Stream.LABELED else own.value
        shift = self.ratio(q, progress).clamp_min(FLOOR).log()
        # Multi-label: `outputs` keeps the shift of "present" alone, which is what the public implementation shifts.
        return logits + self.space.grouped(self.space.outputs(shift))

    def ratio(self, q: Tensor, progress: Progress) -> Tensor:
        """Divide a marginal [G, K] by the target raised to the exponent of this step."""
        exponent = 1 - (1 - self.config.least_exponent) * progress.fraction**self.config.power
        return q / (tempered(self.target.value, exponent) + FLOOR)
