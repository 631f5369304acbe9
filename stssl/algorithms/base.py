"""Define what an algorithm is: it turns the labeler's logits into loss terms, which say what predictions should match.

Shapes: B rows, G decisions of a row (1, or one for each class), K choices of a decision; see `LabelSpace`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.algorithms.losses import cross_entropy
from stssl.base.batch import IGNORED, Progress, View
from stssl.base.config import Config, Domain, Switch
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonObject
from stssl.base.labels import LabelSpace

Logits = Mapping[View, Tensor]
"""Logits [B, G, K] of each view."""

LossRole = Literal["labeler", "student"]
"""Part that a network plays in a loss.

`labeler` makes the pseudo-labels: the teacher, or the student if there is no teacher. `student` is the other network.
"""


LabelerName = Annotated[Literal["live", "ema"], Domain(choices=("live", "ema"))]
"""Weights that make pseudo-labels: `live` are those being trained, `ema` their running average."""


class BaseAlgorithmConfig(Config):
    """Configure what all algorithms share.

    Attributes:
        name: Algorithm to use; each algorithm's own configuration fixes it.
        labeler: Weights that make the pseudo-labels.
    """

    name: str
    labeler: LabelerName = "live"


class LabelConfig(BaseAlgorithmConfig):
    """Configure the kind of pseudo-label.

    Attributes:
        soft: True for probabilities as targets, False for the likeliest choice.
        temperature: Logits are divided by it before the softmax of soft targets; below 1 it sharpens them.
    """

    soft: Switch = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5

    def label(self, logits: Tensor) -> Tensor:
        """Turn logits [B, G, K] into targets: probabilities [B, G, K] if `soft`, else choice ids [B, G]."""
        return (logits / self.temperature).softmax(-1) if self.soft else choose(logits)


@dataclass(frozen=True)
class DataFacts:
    """Hold the facts about the data that an algorithm may know before the first step.

    Attributes:
        prior: [G, K] frequency of each choice among the labeled patches.
        unlabeled_count: Number of patches in the unlabeled stream.
    """

    prior: Tensor
    unlabeled_count: int


@dataclass(frozen=True)
class LabelerOutputs:
    """Hold what the networks predict for some rows, as logits without gradients.

    Attributes:
        labeler: The labeler's logits of the views in `Algorithm.views`.
        student: The student's logits of `UNLABELED_STRONG`; empty unless the algorithm `watches_student`.
        index: [B] positions of the unlabeled rows in the run's list of unlabeled patches.
        blank: [1, G, K] the labeler's logits of the blank image; None unless the algorithm `needs_blank`.
    """

    labeler: Logits
    student: Logits
    index: Tensor
    blank: Tensor | None = None


@dataclass(frozen=True)
class LossTerm:
    """State that predictions on a view should match a target.

    Attributes:
        view: View whose predictions enter the loss.
        target: [B, G] choice ids, or [B, G, K] distributions.
        weight: [B, G] factor of each decision's loss; 0 leaves the decision out.
        sign: 1, or -1 to subtract the term from the loss.
        by_weight: True to divide the sum by the total weight, False by the number of decisions.
    """

    view: View
    target: Tensor
    weight: Tensor
    sign: float = 1.0
    by_weight: bool = False


class Algorithm(nn.Module):
    """Say what predictions should match; this base class asks for nothing, and algorithms override what they need.

    State lives in persistent buffers, so that checkpoints keep it.

    Attributes:
        config_type: Class of the configuration, whose `name` is the algorithm's.
        config: This algorithm's configuration.
        views: Views that the labeler must predict; empty for an algorithm that uses labels only.
        smoke: Keys that `--smoke` changes in the configuration, so that a run of four steps uses every part.
        multilabel_only: True if a patch must be able to have several classes.
        stateful: True if `observe` must be called at each step.
        watches_student: True if `observe` needs the student's logits too.
        needs_blank: True if `observe` needs the labeler's logits of the blank image.
        strong_labeled: True if the supervised loss must be the mean over weak and strong views.
        regularized: True if `statistics` and `regularizer` add to the loss.
    """

    config_type: ClassVar[type[BaseAlgorithmConfig]] = BaseAlgorithmConfig
    config: BaseAlgorithmConfig
    # No ClassVar: algorithms with a configurable target set it for each instance.
    views: frozenset[View] = frozenset({View.UNLABELED_WEAK})
    smoke: ClassVar[JsonObject] = {}
    multilabel_only: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    watches_student: ClassVar[bool] = False
    needs_blank: ClassVar[bool] = False
    strong_labeled: ClassVar[bool] = False
    regularized: ClassVar[bool] = False

    def __init__(self, config: BaseAlgorithmConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Keep the configuration and start without state.

        Args:
            config: An instance of `config_type`.
            space: Classes and kind of task.
            facts: What is known of the data before the first step.

        Raises:
            ConfigError: The algorithm is for multi-label data only, and the task is single-label.
        """
        super().__init__()
        if self.multilabel_only and not space.multilabel:
            raise ConfigError(
                f"algorithm.name: {config.name} needs multi-label data. For single labels, take freematch."
            )
        self.config, self.space = config, space

    def waits(self, progress: Progress) -> bool:
        """True while the loss uses labels only. State is collected meanwhile, so that thresholds are ready after it."""
        return False

    @property
    def takes_votes(self) -> bool:
        """True if neighbor votes may change this algorithm's pseudo-label logits.

        False if it compares those logits with logits of other views, or with the student's, which have no votes in
        them.
        """
        return self.views == {View.UNLABELED_WEAK} and not self.watches_student

    @classmethod
    def unused_keys(cls) -> tuple[str, ...]:
        """List the recipe keys that change nothing with this algorithm, whatever its configuration.

        A search leaves these keys out while it tries the algorithm.
        """
        loss = () if cls.views else ("loss.unlabeled",)
        votes = () if cls.views == {View.UNLABELED_WEAK} and not cls.watches_student else ("votes",)
        return (*loss, *votes)

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update all state. Called once a step, with the rows of the whole global batch.

        Args:
            outputs: What the networks predict for the rows of all ranks.
            progress: The step about to be taken.
        """

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return the loss terms of some rows, without changing state. Pseudo-label metrics use the first term.

        Args:
            outputs: What the networks predict for some rows of this rank.
            progress: The step about to be taken.
        """
        return []

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [B, G] of labeled decisions from logits [B, G, K] and choice ids [B, G]."""
        return cross_entropy(logits, target)

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [B, G] of unlabeled decisions.

        Args:
            logits: [B, G, K] of the view in a loss term.
            target: The term's target: [B, G] choice ids, or [B, G, K] distributions.
        """
        return cross_entropy(logits, target)

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Adjust logits before they enter a loss, without changing state.

        Args:
            logits: [B, G, K] of one network and view.
            role: Part that the network plays.
            view: The view that the logits are of.
            progress: The step about to be taken.

        Returns:
            [B, G, K] adjusted logits.
        """
        return logits

    def statistics(self, logits: Tensor, term: LossTerm) -> Tensor:
        """Sum over rows what `regularizer` needs. The sums carry gradients, and ranks add theirs before it is called.

        Args:
            logits: [B, G, K] of the view in a loss term.
            term: The loss term.
        """
        return logits.new_zeros(())

    def regularizer(self, statistics: Tensor) -> Tensor:
        """Compute the term added to a network's loss from the statistics of the whole global batch."""
        return statistics.sum() * 0.0

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Correct a trained network's outputs [B, C] by its outputs [1, C] for the blank image."""
        return logits


class Running(nn.Module):
    """Keep an exponential moving average in a persistent buffer; without a start value the first value starts it."""

    def __init__(self, decay: float, shape: tuple[int, ...], start: float | None = None) -> None:
        """Make the average.

        Args:
            decay: Share of the old value that an update keeps, 0..1.
            shape: Shape of the value.
            start: First value, or None to take that of the first update.
        """
        super().__init__()
        self.decay = decay
        self.value: Tensor
        self.started: Tensor
        self.register_buffer("value", torch.full(shape, 0.0 if start is None else start))
        self.register_buffer("started", torch.tensor(start is not None))

    def update(self, new: Tensor, where: Tensor | None = None) -> Tensor:
        """Move the average toward `new`, only at the entries where `where` is true, and return it."""
        # `torch.where` and no `if`: reading the flag on the host would wait for the device at each step.
        new = torch.where(self.started, torch.lerp(new, self.value, self.decay), new)
        self.value.copy_(new if where is None else torch.where(where, new, self.value))
        self.started.fill_(True)
        return self.value


def confident(probability: Tensor, threshold: float, band: tuple[float, float] | None) -> Tensor:
    """Select the decisions that are confident by fixed cut-offs.

    Args:
        probability: [B, G, K] of each choice.
        threshold: Least probability of the likeliest choice, if `band` is None.
        band: Cut-offs on the probability of "present" for decisions of two choices: "absent" is selected at or below
            the first, "present" at or above the second.

    Returns:
        [B, G], true where the decision is selected.
    """
    if band is None:
        return probability.amax(-1) >= threshold
    present = probability[..., -1]
    return (present <= band[0]) | (present >= band[1])


def choose(logits: Tensor) -> Tensor:
    """Return the id [B, G] of the likeliest choice; of several equal ones the last, so a logit of 0 means "present"."""
    # `argmax` returns the first of equal values, so look from the other end.
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


def of_choice(values: Tensor, choices: Tensor) -> Tensor:
    """Look up the value [B, G] of each chosen choice in values [G, K], by choice ids [B, G]."""
    return values.expand(len(choices), -1, -1).gather(-1, choices[..., None])[..., 0]


def share(choices: Tensor, count: int) -> Tensor:
    """Compute how often each choice occurs among choice ids [B, G]: shares [G, K]."""
    return nn.functional.one_hot(choices, count).float().mean(0)


def known(targets: Tensor) -> Tensor:
    """Return 1 where a target is known and 0 where it is `IGNORED`: [B, G] float from [B, G] ids or distributions."""
    if targets.dtype.is_floating_point:
        return torch.ones_like(targets[..., 0])
    return (targets != IGNORED).float()
