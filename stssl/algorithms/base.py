"""Define algorithms: each turns the labeler's logits into loss terms, i.e. which predictions should match what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.algorithms.losses import cross_entropy
from stssl.base.batch import IGNORED, Progress, View
from stssl.base.config import Config, Domain, Switch
from stssl.base.labels import LabelSpace

Logits = Mapping[View, Tensor]
"""Of each view [B, G, K], grouped."""

LossRole = Literal["labeler", "student"]
"""`labeler`: the network that makes pseudo-labels (the teacher, or a student without one). `student`: the other one."""


LabelerName = Annotated[Literal["live", "ema"], Domain(choices=("live", "ema"))]
"""Whether pseudo-labels come from the weights as they are, or from their running average."""


class BaseAlgorithmConfig(Config):
    """Configure what all algorithms share: which weights make the pseudo-labels."""

    labeler: LabelerName = "live"


class LabelConfig(BaseAlgorithmConfig):
    """The kind of pseudo-label: choice ids, or (`soft`) probabilities at a temperature."""

    soft: Switch = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5

    def label(self, logits: Tensor) -> Tensor:
        """Targets [B, G] or [B, G, K] from logits [B, G, K]."""
        return (logits / self.temperature).softmax(-1) if self.soft else choose(logits)


@dataclass(frozen=True)
class DataFacts:
    """Hold the facts about the data that an algorithm may know before the first step.

    Attributes:
        prior: [G, K] frequency of each choice among the labeled rows.
        unlabeled_count: Patches in the unlabeled stream.
    """

    prior: Tensor
    unlabeled_count: int


@dataclass(frozen=True)
class LabelerOutputs:
    """Hold the networks' logits of some rows, without gradients.

    Attributes:
        labeler: The labeler's logits of the views in `Algorithm.views`.
        student: Logits of `UNLABELED_STRONG` by the network that is not the labeler, where `watches_student`.
        index: [B] positions of the unlabeled rows in the run's list.
        blank: [1, G, K] the labeler's logits of the blank image, where `needs_blank`.
    """

    labeler: Logits
    student: Logits
    index: Tensor
    blank: Tensor | None = None


@dataclass(frozen=True)
class LossTerm:
    """Predictions on `view` should match `target`, as much as `weight` says.

    Attributes:
        view: Whose predictions.
        target: [B, G] choice ids, or [B, G, K] distributions.
        weight: [B, G].
        sign: 1, or -1 where the term is subtracted.
        by_weight: Whether the sum is divided by the total weight instead of the number of decisions.
    """

    view: View
    target: Tensor
    weight: Tensor
    sign: float = 1.0
    by_weight: bool = False


class Algorithm(nn.Module):
    """Matches nothing; algorithms override what they need. State lives in persistent buffers.

    Attributes:
        views: What the labeler must look at.
        smoke: What `--smoke` changes in this algorithm's configuration, so that four steps do all that it does.
        stateful: Whether `observe` must be called.
        watches_student: Whether `observe` must see what the student says, too.
        needs_blank: Whether `observe` must see the labeler's logits of the blank image.
        strong_labeled: Whether the supervised loss must be the mean over weak and strong views.
        regularized: Whether `statistics` and `regularizer` add to the loss.
    """

    views: frozenset[View] = frozenset({View.UNLABELED_WEAK})
    smoke: ClassVar[dict[str, Any]] = {}
    stateful: ClassVar[bool] = False
    watches_student: ClassVar[bool] = False
    needs_blank: ClassVar[bool] = False
    strong_labeled: ClassVar[bool] = False
    regularized: ClassVar[bool] = False

    def __init__(self, config: Any, space: LabelSpace, facts: DataFacts) -> None:
        """Start with the configuration of this algorithm."""
        super().__init__()
        self.config, self.space = config, space

    def waits(self, progress: Progress) -> bool:
        """True while the loss uses labels only; state is collected nevertheless."""
        return False

    @property
    def takes_votes(self) -> bool:
        """True if neighbor votes may change this algorithm's pseudo-label logits.

        Not where it compares them with logits of other views, or takes them for a network's own.
        """
        return self.views == {View.UNLABELED_WEAK} and not self.watches_student

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update all state, once a step, from the rows of the whole global batch."""

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return the loss terms of some rows without changing state. Pseudo-label metrics use the first term."""
        return []

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each labeled decision: [B, G] from [B, G, K] and [B, G] ids."""
        return cross_entropy(logits, target)

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each unlabeled decision: [B, G] from [B, G, K] and [B, G] ids or [B, G, K] distributions."""
        return cross_entropy(logits, target)

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Adjust logits [B, G, K] before they enter a loss; changes no state.

        Args:
            logits: [B, G, K] of one network and view.
            role: `labeler` or `student`.
            view: The view that the logits are of.
            progress: The step about to be taken.
        """
        return logits

    def statistics(self, logits: Tensor, term: LossTerm) -> Tensor:
        """Sum over rows what the regularizer needs; the sums carry gradients."""
        return logits.new_zeros(())

    def regularizer(self, statistics: Tensor) -> Tensor:
        """Compute the term added to a network's loss from the statistics of the whole global batch."""
        return statistics.sum() * 0.0

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Outputs [B, C] of a trained network, given its outputs [1, C] for the blank image."""
        return logits


class Running(nn.Module):
    """An exponential moving average in a persistent buffer; without a start it begins as the first value."""

    def __init__(self, decay: float, shape: tuple[int, ...], start: float | None = None) -> None:
        """Keep `decay` of the old value at each update."""
        super().__init__()
        self.decay = decay
        self.value: Tensor
        self.started: Tensor
        self.register_buffer("value", torch.full(shape, 0.0 if start is None else start))
        self.register_buffer("started", torch.tensor(start is not None))

    def update(self, new: Tensor, where: Tensor | None = None) -> Tensor:
        """Move toward `new` (only at the entries `where` says); returns the value now."""
        new = torch.where(self.started, torch.lerp(new, self.value, self.decay), new)
        self.value.copy_(new if where is None else torch.where(where, new, self.value))
        self.started.fill_(True)
        return self.value


def confident(probability: Tensor, threshold: float, band: tuple[float, float] | None) -> Tensor:
    """Select decisions by a fixed cut-off: [B, G] booleans from probabilities [B, G, K].

    Args:
        probability: Of each choice.
        threshold: Least probability of the chosen way.
        band: two-choice decisions may have cut-offs of their own: "absent" at or below the first probability of
            presence, "present" at or above the second.
    """
    if band is None:
        return probability.amax(-1) >= threshold
    present = probability[..., -1]
    return (present <= band[0]) | (present >= band[1])


def choose(logits: Tensor) -> Tensor:
    """The likeliest way [B, G]; the last of several equal ones, so that a logit of 0 means "present"."""
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


def of_choice(values: Tensor, choices: Tensor) -> Tensor:
    """The value [B, G] of each chosen way, from values [G, K] and choice ids [B, G]."""
    return values.expand(len(choices), -1, -1).gather(-1, choices[..., None])[..., 0]


def share(choices: Tensor, count: int) -> Tensor:
    """[G, K] share of each choice among choice ids [B, G]."""
    return nn.functional.one_hot(choices, count).float().mean(0)


def known(targets: Tensor) -> Tensor:
    """1 where a target counts: [B, G] float."""
    if targets.dtype.is_floating_point:
        return torch.ones_like(targets[..., 0])
    return (targets != IGNORED).float()
