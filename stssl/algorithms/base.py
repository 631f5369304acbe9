"""Define the base class of algorithms. An algorithm turns logits into loss terms: targets for the predictions.

The logits come from the labeler, which is the network that makes the pseudo-labels. In shapes, a row is one patch of a
batch. A single-label task has one decision for each row, with one choice for each class. A multi-label task has one
decision for each class, with the choices "absent" and "present". See `LabelSpace`.
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
"""Logits [rows, decisions, choices] of each view, such as the weakly augmented unlabeled patches."""

LossRole = Literal["labeler", "student"]
"""Role of a network in a loss.

`labeler` is the network that makes the pseudo-labels: the teacher, or the student if a run has no teacher. `student` is
the other network.
"""


LabelerName = Annotated[Literal["live", "ema"], Domain(choices=("live", "ema"))]
"""Weights that make pseudo-labels: `live` are the trained weights, `ema` their running average."""


class BaseAlgorithmConfig(Config):
    """Define the settings that all algorithms share.

    Attributes:
        name: Name of the algorithm. Each algorithm's configuration allows one name.
        labeler: Which weights of the network make the pseudo-labels: `live` (current) or `ema` (averaged).
    """

    name: str
    labeler: LabelerName = "live"


class LabelConfig(BaseAlgorithmConfig):
    """Define the settings for the kind of pseudo-label: probabilities, or the most probable choice.

    Attributes:
        soft: True to use probabilities as targets, False to use the most probable choice.
        temperature: Divisor of the logits before the softmax of soft targets. A value below 1 sharpens them.
    """

    soft: Switch = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5

    def label(self, logits: Tensor) -> Tensor:
        """Turn logits [rows, decisions, choices] into targets for a loss.

        The targets are probabilities [rows, decisions, choices] if `soft` is True, else choice ids [rows, decisions].
        """
        return (logits / self.temperature).softmax(-1) if self.soft else choose(logits)


@dataclass(frozen=True)
class DataFacts:
    """Hold facts about the training data that an algorithm may use before the first step.

    Attributes:
        prior: [decisions, choices] frequency of each choice among the labeled patches.
        unlabeled_count: Number of patches that the run uses as unlabeled data.
    """

    prior: Tensor
    unlabeled_count: int


@dataclass(frozen=True)
class LabelerOutputs:
    """Hold the logits that the networks predict for some rows of a batch, without gradients.

    Attributes:
        labeler: Logits of the network that makes the pseudo-labels, for the views in `Algorithm.views`.
        student: The student's logits for `UNLABELED_STRONG`. Empty if `watches_student` is False.
        index: [rows] positions of the unlabeled rows in the run's list of unlabeled patches.
        blank: [1, decisions, choices] the labeler's logits for the blank image. None if `needs_blank` is False.
    """

    labeler: Logits
    student: Logits
    index: Tensor
    blank: Tensor | None = None


@dataclass(frozen=True)
class LossTerm:
    """Describe one part of the loss, which compares predictions on a view with a target.

    Attributes:
        view: View on which the network must predict the target.
        target: [rows, decisions] choice ids, or [rows, decisions, choices] distributions.
        weight: [rows, decisions] factor for the loss of each decision; 0 leaves the decision out.
        sign: 1 to add the term to the loss, -1 to subtract it.
        by_weight: True to divide the sum of losses by the sum of weights, False to divide by the number of decisions.
    """

    view: View
    target: Tensor
    weight: Tensor
    sign: float = 1.0
    by_weight: bool = False


class Algorithm(nn.Module):
    """Make loss terms for unlabeled patches. This base class makes none; algorithms override the methods they need.

    Algorithms store their state in persistent buffers, so that checkpoints save it.

    Attributes:
        config_type: Class of the configuration. Its field `name` is the name of the algorithm.
        config: This algorithm's configuration.
        views: Views that the labeler must predict; empty for an algorithm that uses labels only.
        smoke: Configuration keys that `--smoke` changes, with their values. Four steps then run all its code.
        multilabel_only: True if the algorithm works for multi-label tasks only.
        stateful: True if `observe` must be called at each step.
        watches_student: True if `observe` needs the student's logits too.
        needs_blank: True if `observe` needs the labeler's logits of the blank image.
        strong_labeled: True if the supervised loss must be the mean over weak and strong views.
        regularized: True if `statistics` and `regularizer` add to the loss.
    """

    config_type: ClassVar[type[BaseAlgorithmConfig]] = BaseAlgorithmConfig
    config: BaseAlgorithmConfig
    # This is no ClassVar, because in some algorithms it depends on the configuration of the instance.
    views: frozenset[View] = frozenset({View.UNLABELED_WEAK})
    smoke: ClassVar[JsonObject] = {}
    multilabel_only: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    watches_student: ClassVar[bool] = False
    needs_blank: ClassVar[bool] = False
    strong_labeled: ClassVar[bool] = False
    regularized: ClassVar[bool] = False

    def __init__(self, config: BaseAlgorithmConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Store the configuration of the algorithm. The algorithm has no state yet.

        Args:
            config: An instance of `config_type`.
            space: Classes and kind of task.
            facts: Facts about the data that are known before the first step.

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
        """Return True in steps that must learn from labels only. `observe` still runs in these steps."""
        return False

    @property
    def takes_votes(self) -> bool:
        """Return True if neighbor votes may change the logits of this algorithm's pseudo-labels.

        Neighbor votes are predictions for nearby patches. Return False if the algorithm compares these logits with
        logits of another view or of the student: votes do not change those, so both would not fit together.
        """
        return self.views == {View.UNLABELED_WEAK} and not self.watches_student

    @classmethod
    def unused_keys(cls) -> tuple[str, ...]:
        """List the recipe keys that never change anything with this algorithm.

        A search leaves these keys out while it tries the algorithm.
        """
        loss = () if cls.views else ("loss.unlabeled",)
        votes = () if cls.views == {View.UNLABELED_WEAK} and not cls.watches_student else ("votes",)
        return (*loss, *votes)

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the algorithm's state, such as running means. Each step calls this once, with the rows of all ranks.

        Args:
            outputs: Predictions of the networks for the rows of all ranks.
            progress: Current step.
        """

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return the loss terms for some rows, and do not change state. Metrics of pseudo-labels use the first term.

        Args:
            outputs: Predictions of the networks for some rows of this rank.
            progress: Current step.
        """
        return []

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [rows, decisions] on true labels.

        The logits have the shape [rows, decisions, choices]. The target holds choice ids [rows, decisions].
        """
        return cross_entropy(logits, target)

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [rows, decisions] on pseudo-labels, one value for each decision.

        Args:
            logits: [rows, decisions, choices] logits for the view of a loss term.
            target: Target of the term: [rows, decisions] choice ids, or [rows, decisions, choices] distributions.
        """
        return cross_entropy(logits, target)

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Adjust the logits of one network before a loss uses them. Do not change state.

        Args:
            logits: [rows, decisions, choices] logits of one network for one view.
            role: Role of the network.
            view: View that the network predicted.
            progress: Current step.

        Returns:
            [rows, decisions, choices] adjusted logits.
        """
        return logits

    def statistics(self, logits: Tensor, term: LossTerm) -> Tensor:
        """Compute the sums over rows that `regularizer` needs, with gradients. The step adds these sums over ranks.

        Args:
            logits: [rows, decisions, choices] logits for the view of a loss term.
            term: The loss term.
        """
        return logits.new_zeros(())

    def regularizer(self, statistics: Tensor) -> Tensor:
        """Compute a scalar to add to a network's loss, from the sums of `statistics` over the whole global batch."""
        return statistics.sum() * 0.0

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Correct a trained network's logits at test time by its logits for a blank image.

        The logits have the shapes [rows, classes] and [1, classes].
        """
        return logits


class Running(nn.Module):
    """Store and update an exponential moving average of a tensor, in a buffer that checkpoints save."""

    def __init__(self, decay: float, shape: tuple[int, ...], start: float | None = None) -> None:
        """Create the buffer of the moving average.

        Args:
            decay: Share of the old value that an update keeps, 0..1.
            shape: Shape of the value.
            start: First value of the average. If None, the first update sets it.
        """
        super().__init__()
        self.decay = decay
        self.value: Tensor
        self.started: Tensor
        self.register_buffer("value", torch.full(shape, 0.0 if start is None else start))
        self.register_buffer("started", torch.tensor(start is not None))

    def update(self, new: Tensor, where: Tensor | None = None) -> Tensor:
        """Move the average toward `new` and return it. Do not change entries for which the mask `where` is False."""
        # Use `torch.where`, not `if`: with `if`, the host would wait for the device at each step.
        new = torch.where(self.started, torch.lerp(new, self.value, self.decay), new)
        self.value.copy_(new if where is None else torch.where(where, new, self.value))
        self.started.fill_(True)
        return self.value


def confident(probability: Tensor, threshold: float, band: tuple[float, float] | None) -> Tensor:
    """Select the decisions with a confident prediction, by fixed cut-offs on the probability.

    Args:
        probability: [rows, decisions, choices] probability of each choice.
        threshold: Least probability of the most probable choice. Used if `band` is None.
        band: Two cut-offs on the probability of "present". A decision is selected as "absent" at or below the first,
            and as "present" at or above the second.

    Returns:
        [rows, decisions] booleans, true for selected decisions.
    """
    if band is None:
        return probability.amax(-1) >= threshold
    present = probability[..., -1]
    return (present <= band[0]) | (present >= band[1])


def choose(logits: Tensor) -> Tensor:
    """Return the ids [rows, decisions] of the choices with the largest logits.

    If several choices share the largest logit, return the last of them.
    """
    # `argmax` returns the first of equal values, but a multi-label logit of 0 must mean "present", the last choice.
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


def of_choice(values: Tensor, choices: Tensor) -> Tensor:
    """Look up one value for each chosen choice.

    The values are a table [decisions, choices], the choice ids [rows, decisions]. The result is [rows, decisions].
    """
    return values.expand(len(choices), -1, -1).gather(-1, choices[..., None])[..., 0]


def share(choices: Tensor, count: int) -> Tensor:
    """Compute the share of rows with each of `count` choices.

    The choice ids have the shape [rows, decisions], the result [decisions, choices].
    """
    return nn.functional.one_hot(choices, count).float().mean(0)


def known(targets: Tensor) -> Tensor:
    """Return floats [rows, decisions]: 1 for a known target, 0 for an `IGNORED` one.

    Targets are choice ids [rows, decisions], or distributions [rows, decisions, choices], which are always known.
    """
    if targets.dtype.is_floating_point:
        return torch.ones_like(targets[..., 0])
    return (targets != IGNORED).float()
