"""Define what an algorithm is. It turns the labeler's logits into loss terms: targets that predictions should match.

In shapes, B is the number of rows, G of decisions for each row, and K of choices for each decision. Single-label tasks
have one decision; multi-label tasks have one for each class. See `LabelSpace`.
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
"""Role of a network in a loss.

`labeler` makes the pseudo-labels: the teacher, or the student if a run has no teacher. `student` is the other network.
"""


LabelerName = Annotated[Literal["live", "ema"], Domain(choices=("live", "ema"))]
"""Weights that make pseudo-labels: `live` are the trained weights, `ema` their running average."""


class BaseAlgorithmConfig(Config):
    """Configure what all algorithms share.

    Attributes:
        name: Name of the algorithm. Each algorithm's configuration allows one name.
        labeler: Weights that make the pseudo-labels.
    """

    name: str
    labeler: LabelerName = "live"


class LabelConfig(BaseAlgorithmConfig):
    """Configure the kind of pseudo-label.

    Attributes:
        soft: True to use probabilities as targets, False to use the most probable choice.
        temperature: Divisor of the logits before the softmax of soft targets. A value below 1 sharpens them.
    """

    soft: Switch = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5

    def label(self, logits: Tensor) -> Tensor:
        """Turn logits [B, G, K] into targets: probabilities [B, G, K] if `soft`, else choice ids [B, G]."""
        return (logits / self.temperature).softmax(-1) if self.soft else choose(logits)


@dataclass(frozen=True)
class DataFacts:
    """Hold what an algorithm may know about the data before the first step.

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
        labeler: The labeler's logits for the views in `Algorithm.views`.
        student: The student's logits for `UNLABELED_STRONG`. Empty if `watches_student` is False.
        index: [B] positions of the unlabeled rows in the run's list of unlabeled patches.
        blank: [1, G, K] the labeler's logits for the blank image. None if `needs_blank` is False.
    """

    labeler: Logits
    student: Logits
    index: Tensor
    blank: Tensor | None = None


@dataclass(frozen=True)
class LossTerm:
    """Describe one part of the loss: predictions on a view should match a target.

    Attributes:
        view: View to predict.
        target: [B, G] choice ids, or [B, G, K] distributions.
        weight: [B, G] factor for the loss of each decision; 0 leaves the decision out.
        sign: 1 to add the term to the loss, -1 to subtract it.
        by_weight: True to divide the sum of losses by the sum of weights, False to divide by the number of decisions.
    """

    view: View
    target: Tensor
    weight: Tensor
    sign: float = 1.0
    by_weight: bool = False


class Algorithm(nn.Module):
    """Say what predictions should match. This base class has no loss terms; algorithms override what they need.

    Keep state in persistent buffers: checkpoints save these.

    Attributes:
        config_type: Class of the configuration. Its field `name` is the name of the algorithm.
        config: This algorithm's configuration.
        views: Views that the labeler must predict; empty for an algorithm that uses labels only.
        smoke: Configuration keys that `--smoke` changes, with their values. With them, four steps use every part.
        multilabel_only: True if the algorithm works for multi-label tasks only.
        stateful: True if `observe` must be called at each step.
        watches_student: True if `observe` needs the student's logits too.
        needs_blank: True if `observe` needs the labeler's logits of the blank image.
        strong_labeled: True if the supervised loss must be the mean over weak and strong views.
        regularized: True if `statistics` and `regularizer` add to the loss.
    """

    config_type: ClassVar[type[BaseAlgorithmConfig]] = BaseAlgorithmConfig
    config: BaseAlgorithmConfig
    # Not a ClassVar: some algorithms set it for each instance, because it depends on their configuration.
    views: frozenset[View] = frozenset({View.UNLABELED_WEAK})
    smoke: ClassVar[JsonObject] = {}
    multilabel_only: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    watches_student: ClassVar[bool] = False
    needs_blank: ClassVar[bool] = False
    strong_labeled: ClassVar[bool] = False
    regularized: ClassVar[bool] = False

    def __init__(self, config: BaseAlgorithmConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Store the configuration; start without state.

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
        """Return True while the loss uses labels only. `observe` still runs: it prepares the thresholds."""
        return False

    @property
    def takes_votes(self) -> bool:
        """Return True if neighbor votes may change the logits of this algorithm's pseudo-labels.

        Return False if the algorithm compares these logits with others (of another view or of the student), because
        votes do not change the others.
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
        """Update all state. The step calls this once, with all rows of the global batch.

        Args:
            outputs: Predictions of the networks for the rows of all ranks.
            progress: Current step.
        """

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return the loss terms of some rows. Do not change state. Metrics of pseudo-labels use the first term.

        Args:
            outputs: Predictions of the networks for some rows of this rank.
            progress: Current step.
        """
        return []

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [B, G] of labeled decisions from logits [B, G, K] and choice ids [B, G]."""
        return cross_entropy(logits, target)

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss [B, G] of unlabeled decisions.

        Args:
            logits: [B, G, K] logits for the view of a loss term.
            target: Target of the term: [B, G] choice ids, or [B, G, K] distributions.
        """
        return cross_entropy(logits, target)

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Adjust logits before a loss uses them. Do not change state.

        Args:
            logits: [B, G, K] logits of one network for one view.
            role: Role of the network.
            view: View that the network predicted.
            progress: Current step.

        Returns:
            [B, G, K] adjusted logits.
        """
        return logits

    def statistics(self, logits: Tensor, term: LossTerm) -> Tensor:
        """Sum what `regularizer` needs over rows, with gradients. The step adds these sums over ranks.

        Args:
            logits: [B, G, K] logits for the view of a loss term.
            term: The loss term.
        """
        return logits.new_zeros(())

    def regularizer(self, statistics: Tensor) -> Tensor:
        """Compute a term to add to a network's loss, from the statistics of the whole global batch."""
        return statistics.sum() * 0.0

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Correct the outputs [B, C] of a trained network by its outputs [1, C] for the blank image; C classes."""
        return logits


class Running(nn.Module):
    """Keep an exponential moving average in a persistent buffer."""

    def __init__(self, decay: float, shape: tuple[int, ...], start: float | None = None) -> None:
        """Make the average.

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
        """Move the average toward `new`, and return the average. Entries where `where` is false stay as they are."""
        # Use `torch.where`, not `if`: with `if`, the host would wait for the device at each step.
        new = torch.where(self.started, torch.lerp(new, self.value, self.decay), new)
        self.value.copy_(new if where is None else torch.where(where, new, self.value))
        self.started.fill_(True)
        return self.value


def confident(probability: Tensor, threshold: float, band: tuple[float, float] | None) -> Tensor:
    """Select the confident decisions by fixed cut-offs.

    Args:
        probability: [B, G, K] probability of each choice.
        threshold: Least probability of the most probable choice. Used if `band` is None.
        band: Two cut-offs on the probability of "present". A decision is selected as "absent" at or below the first,
            and as "present" at or above the second.

    Returns:
        [B, G] booleans, true for selected decisions.
    """
    if band is None:
        return probability.amax(-1) >= threshold
    present = probability[..., -1]
    return (present <= band[0]) | (present >= band[1])


def choose(logits: Tensor) -> Tensor:
    """Return the ids [B, G] of the most probable choices. Of equal choices, take the last: logit 0 means "present"."""
    # `argmax` returns the first of equal values, so flip the choices.
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


def of_choice(values: Tensor, choices: Tensor) -> Tensor:
    """Look up choice ids [B, G] in a table of values [G, K]; return values [B, G]."""
    return values.expand(len(choices), -1, -1).gather(-1, choices[..., None])[..., 0]


def share(choices: Tensor, count: int) -> Tensor:
    """Compute the share [G, K] of each choice among the choice ids [B, G]; `count` is K."""
    return nn.functional.one_hot(choices, count).float().mean(0)


def known(targets: Tensor) -> Tensor:
    """Return floats [B, G]: 1 for a known target, 0 for an `IGNORED` one.

    Targets are choice ids [B, G], or distributions [B, G, K], which are always known.
    """
    if targets.dtype.is_floating_point:
        return torch.ones_like(targets[..., 0])
    return (targets != IGNORED).float()
