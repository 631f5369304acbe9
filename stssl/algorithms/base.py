"""Define the base class of algorithms, and functions that they share.

An algorithm turns the logits of the labeler (the network that makes the pseudo-labels) into loss terms, which are
targets for predictions.

In shapes, a row is one patch of a batch. A single-label task has one decision for each row, with one choice for each
class. A multi-label task has one decision for each class, with the choices "absent" and "present". The number of a
choice is its choice id. See `LabelSpace`.
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
    """Define the settings that all algorithms of semi-supervised training share.

    Attributes:
        name: Name of the algorithm. Each algorithm's configuration allows one name.
        labeler: Weights of the network that make the pseudo-labels: `live` (current) or `ema` (averaged).
    """

    name: str
    labeler: LabelerName = "live"


class LabelConfig(BaseAlgorithmConfig):
    """Define the settings that say whether pseudo-labels are probabilities, or the most probable class.

    Attributes:
        soft: True to use probabilities as targets, False to use the most probable choice: a class or, in multi-label
            tasks, "absent" or "present".
        temperature: Divisor of the logits before the softmax of soft targets. A value below 1 sharpens them.
    """

    soft: Switch = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5

    def label(self, logits: Tensor) -> Tensor:
        """Return the pseudo-labels that the labeler's logits give, as targets of a loss.

        If `soft` is True, they are probabilities [rows, decisions, choices], else ids of choices [rows, decisions].

        Args:
            logits: [rows, decisions, choices] logits of the network that makes the pseudo-labels. Decisions are patches
                or, if multi-label, classes of patches.
        """
        return (logits / self.temperature).softmax(-1) if self.soft else choose(logits)


@dataclass(frozen=True)
class DataFacts:
    """Hold facts about a run's training data that algorithms get when they are created, before the first step.

    Attributes:
        prior: [decisions, choices] share of labeled patches with each choice: [1, classes] or, if multi-label,
            [classes, 2] for "absent" and "present".
        unlabeled_count: Number of patches that the run uses as unlabeled data.
    """

    prior: Tensor
    unlabeled_count: int


@dataclass(frozen=True)
class LabelerOutputs:
    """Hold the networks' logits for some patches of a batch, from which an algorithm makes pseudo-labels.

    The logits [rows, decisions, choices] have no gradients. Decisions are patches or, if multi-label, classes of
    patches.

    Attributes:
        labeler: Logits of the labeler (the network that makes the pseudo-labels), by view (kind of augmented patches).
            The algorithm's attribute `views` names these views.
        student: The student's logits for strongly augmented unlabeled patches, by view. Empty if the algorithm's
            attribute `watches_student` is False.
        index: [rows] positions of the unlabeled patches in the run's list of unlabeled patches.
        blank: [1, decisions, choices] the labeler's logits for the blank image. None if the algorithm's attribute
            `needs_blank` is False.
    """

    labeler: Logits
    student: Logits
    index: Tensor
    blank: Tensor | None = None


@dataclass(frozen=True)
class LossTerm:
    """Describe one part of the training loss: which targets (pseudo-labels) a network must predict on which view.

    A decision is a patch or, if multi-label, a class of a patch.

    Attributes:
        view: Augmented view of the patches on which the network must predict the targets.
        target: [rows, decisions] ids of choices, or [rows, decisions, choices] distributions over choices.
        weight: [rows, decisions] factor for the loss of each decision; 0 leaves the decision out.
        sign: 1 to add this part to the loss, -1 to subtract it.
        by_weight: True to divide the sum of losses by the sum of weights, False to divide by the number of decisions.
    """

    view: View
    target: Tensor
    weight: Tensor
    sign: float = 1.0
    by_weight: bool = False


class Algorithm(nn.Module):
    """Make the loss terms for unlabeled patches from the labeler's predictions, at each training step.

    This base class makes no term; algorithms override the methods that they need. They store their state in persistent
    buffers, so that checkpoints save it.

    Attributes:
        config_type: Class of the configuration. Its field `name` is the name of the algorithm.
        config: This algorithm's configuration.
        views: Augmented views that the labeler must predict; empty for an algorithm that uses labels only.
        smoke: Configuration keys that `--smoke` changes, with their values. A run of four steps then reaches all code
            of the algorithm.
        multilabel_only: True if the algorithm works for multi-label tasks only.
        stateful: True if `observe` must be called at each step.
        watches_student: True if `observe` needs the student's logits too.
        needs_blank: True if `observe` needs the labeler's logits of the blank image.
        strong_labeled: True if the supervised loss must be the mean over weak and strong views.
        regularized: True if `statistics` and `regularizer` add to the loss.
    """

    config_type: ClassVar[type[BaseAlgorithmConfig]] = BaseAlgorithmConfig
    config: BaseAlgorithmConfig
    # `views` is no ClassVar, because in some algorithms it depends on the configuration of the instance.
    views: frozenset[View] = frozenset({View.UNLABELED_WEAK})
    smoke: ClassVar[JsonObject] = {}
    multilabel_only: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    watches_student: ClassVar[bool] = False
    needs_blank: ClassVar[bool] = False
    strong_labeled: ClassVar[bool] = False
    regularized: ClassVar[bool] = False

    def __init__(self, config: BaseAlgorithmConfig, space: LabelSpace, facts: DataFacts) -> None:
        """Store the configuration and the classes. Algorithms with a state (such as running means) also create it.

        Args:
            config: Configuration, an instance of `config_type`.
            space: Classes of the task, and whether it is single-label or multi-label.
            facts: Facts about the training data, such as the frequency of each class.

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
        """Return True if the current training step must learn from labels only, without the algorithm's loss terms.

        `observe` still updates the state in such steps. This base class always returns False.

        Args:
            progress: Number of the current step, and number of all steps.
        """
        return False

    @property
    def takes_votes(self) -> bool:
        """Return True if votes (predictions for nearby patches) may change the logits that make the pseudo-labels.

        Return False if the algorithm also uses the labeler's logits for other views, or the student's logits: votes do
        not change those, and the algorithm could not compare both.
        """
        return self.views == {View.UNLABELED_WEAK} and not self.watches_student

    @classmethod
    def unused_keys(cls) -> tuple[str, ...]:
        """Return the dotted recipe keys, such as `loss.unlabeled`, that change nothing if a run uses this algorithm.

        A search over recipes does not vary these keys while it tries the algorithm.
        """
        loss = () if cls.views else ("loss.unlabeled",)
        votes = () if cls.views == {View.UNLABELED_WEAK} and not cls.watches_student else ("votes",)
        return (*loss, *votes)

    def observe(self, outputs: LabelerOutputs, progress: Progress) -> None:
        """Update the algorithm's state, such as running means. Each training step calls this once, before `terms`.

        Args:
            outputs: Logits of the networks for the batch's patches of all ranks (training processes).
            progress: Number of the current step, and number of all steps.
        """

    def terms(self, outputs: LabelerOutputs, progress: Progress) -> list[LossTerm]:
        """Return the loss terms for some patches: pseudo-labels, and the views on which a network must predict them.

        This changes no state. Metrics of pseudo-labels use the first term.

        Args:
            outputs: Logits of the networks for some of this rank's patches.
            progress: Number of the current step, and number of all steps.
        """
        return []

    def supervised_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss on true labels: the cross-entropy, unless an algorithm overrides it.

        Args:
            logits: [rows, decisions, choices] logits of a network. Decisions are patches or, if multi-label, classes of
                patches.
            target: [rows, decisions] labels as ids of choices; `IGNORED` if unknown.

        Returns:
            [rows, decisions] loss of each decision; 0 for unknown labels.
        """
        return cross_entropy(logits, target)

    def unlabeled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss on pseudo-labels: the cross-entropy, unless an algorithm overrides it.

        Args:
            logits: [rows, decisions, choices] a network's logits for the view of a loss term. Decisions are patches or,
                if multi-label, classes of patches.
            target: Target of the term: [rows, decisions] ids of choices, or [rows, decisions, choices] distributions.

        Returns:
            [rows, decisions] loss of each decision.
        """
        return cross_entropy(logits, target)

    def adjust(self, logits: Tensor, role: LossRole, view: View, progress: Progress) -> Tensor:
        """Return a network's logits in the form that a loss must use: unchanged, unless an algorithm overrides this.

        This must not change the algorithm's state.

        Args:
            logits: [rows, decisions, choices] logits of one network for one view. Decisions are patches or, if
                multi-label, classes of patches.
            role: `labeler` if the network makes the pseudo-labels, else `student`.
            view: Augmented view that the network predicted.
            progress: Number of the current step, and number of all steps.

        Returns:
            [rows, decisions, choices] adjusted logits.
        """
        return logits

    def statistics(self, logits: Tensor, term: LossTerm) -> Tensor:
        """Return the sums over a rank's patches from which `regularizer` computes a further loss, with gradients.

        The training step adds the sums of all ranks (training processes).

        Args:
            logits: [rows, decisions, choices] a network's logits for the view of a loss term.
            term: Loss term that the network learns from.

        Returns:
            Tensor of sums, with the shape that the algorithm's `regularizer` takes; one 0 in this base class.
        """
        return logits.new_zeros(())

    def regularizer(self, statistics: Tensor) -> Tensor:
        """Return a scalar to add to a network's loss; 0 in this base class.

        Args:
            statistics: Sums that the method `statistics` returned, added over all ranks (training processes).
        """
        return statistics.sum() * 0.0

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Return a trained network's logits at test time, corrected by its logits for a blank image.

        Return them unchanged unless an algorithm overrides this.

        Args:
            logits: [rows, classes] logits of the patches to predict.
            blank: [1, classes] the same network's logits of the blank image, which has no content.
        """
        return logits


class Running(nn.Module):
    """Store and update an exponential moving average of a tensor, in a buffer that checkpoints save."""

    def __init__(self, decay: float, shape: tuple[int, ...], start: float | None = None) -> None:
        """Create the moving average of a tensor.

        Args:
            decay: Share of the old value that an update keeps, 0..1.
            shape: Shape of the tensor.
            start: First value of all entries. If None, the first update sets the value.
        """
        super().__init__()
        self.decay = decay
        self.value: Tensor
        self.started: Tensor
        self.register_buffer("value", torch.full(shape, 0.0 if start is None else start))
        self.register_buffer("started", torch.tensor(start is not None))

    def update(self, new: Tensor, where: Tensor | None = None) -> Tensor:
        """Move the average toward the tensor `new`, and return the new average (not a copy).

        Do not change entries for which the mask `where` is False. None changes all entries.
        """
        # Use `torch.where`, not `if`: with `if`, the CPU would wait for the GPU at each step.
        new = torch.where(self.started, torch.lerp(new, self.value, self.decay), new)
        self.value.copy_(new if where is None else torch.where(where, new, self.value))
        self.started.fill_(True)
        return self.value


def confident(probability: Tensor, threshold: float, band: tuple[float, float] | None) -> Tensor:
    """Select the decisions (patches or, if multi-label, classes of patches) whose prediction is confident.

    Args:
        probability: [rows, decisions, choices] probability of each choice.
        threshold: Least probability of the most probable choice. Used if `band` is None.
        band: Two cut-offs on the probability of "present". A decision is selected as "absent" at or below the first,
            and as "present" at or above the second.

    Returns:
        [rows, decisions] booleans, True for selected decisions.
    """
    if band is None:
        return probability.amax(-1) >= threshold
    present = probability[..., -1]
    return (present <= band[0]) | (present >= band[1])


def choose(logits: Tensor) -> Tensor:
    """Return the predicted choice in each decision: the id of the choice with the largest logit, [rows, decisions].

    If several choices share the largest logit, return the last of them. Decisions are patches, and choices are classes.
    If multi-label, decisions are classes of patches, and choices are "absent" (0) and "present" (1).

    Args:
        logits: [rows, decisions, choices] logits or probabilities.
    """
    # `argmax` returns the first of equal values, but a multi-label logit of 0 must mean "present", the last choice.
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


def of_choice(values: Tensor, choices: Tensor) -> Tensor:
    """Look up a value, such as a threshold, for the class that is predicted for each patch.

    If multi-label, look it up for the prediction ("absent" or "present") of each class of each patch.

    Args:
        values: [decisions, choices] values: [1, classes] or, if multi-label, [classes, 2] for "absent" and "present".
        choices: [rows, decisions] ids of the predicted choices, with one row for each patch.

    Returns:
        [rows, decisions] values.
    """
    return values.expand(len(choices), -1, -1).gather(-1, choices[..., None])[..., 0]


def share(choices: Tensor, count: int) -> Tensor:
    """Compute for each class the share of patches that have it.

    If multi-label, compute for each class the shares of patches for which it is "absent" and "present".

    Args:
        choices: [rows, decisions] ids of the patches' choices: classes (one decision) or, if multi-label, 0 or 1 for
            each class.
        count: Number of choices: number of classes or, if multi-label, 2.

    Returns:
        [decisions, choices] shares, 0..1.
    """
    return nn.functional.one_hot(choices, count).float().mean(0)


def known(targets: Tensor) -> Tensor:
    """Return which targets of a loss are known, as floats [rows, decisions]: 1 if known, 0 if `IGNORED`.

    Decisions are patches or, if multi-label, classes of patches.

    Args:
        targets: [rows, decisions] ids of choices, or [rows, decisions, choices] distributions, which are always known.
    """
    if targets.dtype.is_floating_point:
        return torch.ones_like(targets[..., 0])
    return (targets != IGNORED).float()
