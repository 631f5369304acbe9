"""Define the metrics that score predictions, such as accuracy and mAP.

To add a metric, write one function that takes `Predictions`, and add one line to `MULTILABEL` or `SINGLE_LABEL`. Put a
long function into its own file. Functions import torchmetrics when they run, because the import takes seconds.

In shapes such as [patches, decisions], a decision is one question about a patch: which class it has (single-label, one
question), or whether it has a class (multi-label, one question for each class). A choice id is the answer as a number:
the class number, or 1 (present) or 0 (absent).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from stssl.base.batch import IGNORED
from stssl.base.distributed import made_once
from stssl.base.labels import LabelSpace

Scores = dict[str, float]
"""Values of the scores (such as accuracy) by name."""
NAN = torch.tensor(torch.nan, dtype=torch.float64)
CONFIDENCE_BINS = 15
"""Number of bins into which the calibration error sorts predictions by confidence."""


class PartScores(NamedTuple):
    """Hold a network's scores by name: those over all classes, and those of each class by the name of the class."""

    scores: Scores
    per_class: dict[str, Scores]


@dataclass(frozen=True)
class Predictions:
    """Hold the predictions and labels of patches, from which metrics are computed.

    Each patch has at least one known label, and logits are finite.

    Attributes:
        logits: [patches, classes] logits as float64.
        targets: [patches, 1] class ids (single-label) or [patches, classes] zeros and ones (multi-label); `IGNORED` if
            unknown.
        space: Classes of the task, and whether it is single-label or multi-label.
    """

    logits: Tensor
    targets: Tensor
    space: LabelSpace

    @property
    def probabilities(self) -> Tensor:
        """Compute the predicted probability [patches, classes] of each class from the logits."""
        return self.space.probabilities(self.logits)

    @property
    def known(self) -> Tensor:
        """Return booleans with the shape of `targets`: true if the label is known."""
        return self.targets != IGNORED

    @cached_property
    def count(self) -> Tensor:
        """Return for each class the number [classes] of patches that have it as label."""
        return self.space.positives(self.targets).sum(0)

    @cached_property
    def average_precision(self) -> Tensor:
        """Compute the average precision [classes] of each class (multi-label only); NaN if no patch has the class."""
        return self._each(lambda logits, truth: _measure().binary_average_precision(_ranks(logits), truth))

    @cached_property
    def f1(self) -> Tensor:
        """Compute the F1 score [classes] of each class; NaN for a class that no patch has."""
        if self.space.multilabel:
            return self._each(lambda logits, truth: _measure().binary_f1_score((logits > 0).long(), truth))
        return self._each_choice(_measure().multiclass_f1_score)

    @cached_property
    def precision(self) -> Tensor:
        """Compute the precision [classes] of each class (single-label only); NaN for a class that no patch has."""
        return self._each_choice(_measure().multiclass_precision)

    @cached_property
    def recall(self) -> Tensor:
        """Compute the recall [classes] of each class (single-label only); NaN for a class that no patch has."""
        return self._each_choice(_measure().multiclass_recall)

    def _each(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Compute a metric of each class of a multi-label task, over the patches whose label for the class is known.

        Args:
            measure: Function that takes the logits and the labels (0 or 1) of one class, and returns the metric.

        Returns:
            [classes] metric of each class; NaN for a class that no patch has.
        """
        classes = zip(self.logits.T, self.targets.T, self.known.T, self.count, strict=True)
        return torch.stack(
            [measure(logits[own], truth[own]).double() if count else NAN for logits, truth, own, count in classes]
        )

    def _each_choice(self, measure: Callable[..., Tensor]) -> Tensor:
        classes = self.logits.shape[1]
        # torchmetrics refuses fewer than two classes, but a dataset may have one class.
        found = measure(self.logits.argmax(1), self.targets[:, 0], average=None, num_classes=max(2, classes))
        return torch.where(self.count > 0, found[:classes], NAN)


Metric = Callable[[Predictions], Tensor]
"""Function that takes predictions and returns a score. In `PER_CLASS`, it returns a score for each class."""


def mean_average_precision(predictions: Predictions) -> Tensor:
    """Compute mAP: the mean of the average precision over all classes that some patch has."""
    return predictions.average_precision.nanmean()


def micro_average_precision(predictions: Predictions) -> Tensor:
    """Compute the micro average precision: all pairs of patch and class with a known label are ranked together."""
    logits, truth = predictions.logits[predictions.known], predictions.targets[predictions.known]
    found: Tensor = _measure().binary_average_precision(_ranks(logits), truth)
    return found


def micro_f1(predictions: Predictions) -> Tensor:
    """Compute the micro F1 score: all pairs of patch and class with a known label are counted together.

    A class is predicted if its probability is above 0.5.
    """
    logits, truth = predictions.logits[predictions.known], predictions.targets[predictions.known]
    found: Tensor = _measure().binary_f1_score((logits > 0).long(), truth)
    return found


def accuracy(predictions: Predictions) -> Tensor:
    """Compute the accuracy: the share of the patches whose most probable class is their label."""
    return (predictions.logits.argmax(1) == predictions.targets[:, 0]).float().mean()


def label_calibration_error(predictions: Predictions) -> Tensor:
    """Compute the expected calibration error of a multi-label task, over all classes with a known label together.

    The error is the mean gap between predicted probabilities and the share of patches that have the class, in bins.
    """
    known = predictions.known
    found: Tensor = _measure().binary_calibration_error(
        predictions.probabilities[known], predictions.targets[known], n_bins=CONFIDENCE_BINS
    )
    return found


def choice_calibration_error(predictions: Predictions) -> Tensor:
    """Compute the expected calibration error of a single-label task, from the most probable class of each patch.

    The error is the mean gap between predicted probabilities and the share of right predictions, in bins.
    """
    right = (predictions.logits.argmax(1) == predictions.targets[:, 0]).long()
    found: Tensor = _measure().binary_calibration_error(
        predictions.probabilities.amax(1), right, n_bins=CONFIDENCE_BINS
    )
    return found


MULTILABEL: dict[str, Metric] = {
    "mAP": mean_average_precision,
    "mAP_micro": micro_average_precision,
    "F1": lambda predictions: predictions.f1.nanmean(),
    "F1_micro": micro_f1,
    "calibration_error": label_calibration_error,
}
"""Metrics of multi-label tasks, by name. Register a new metric here, and only here."""

SINGLE_LABEL: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": lambda predictions: predictions.recall.nanmean(),
    "precision": lambda predictions: predictions.precision.nanmean(),
    "recall": lambda predictions: predictions.recall.nanmean(),
    "F1": lambda predictions: predictions.f1.nanmean(),
    "calibration_error": choice_calibration_error,
}
"""Metrics of single-label tasks, by name. Register a new metric here, and only here."""

LOWER_IS_BETTER = ("loss", "calibration_error")
"""Scores for which a smaller value is better. For all other scores a larger value is better. List new errors here."""

HEADLINES: Mapping[bool, str] = {True: "mAP", False: "accuracy"}
"""Name of the score that chooses the best checkpoint, for multi-label (True) and single-label tasks (False)."""

PER_CLASS: Mapping[bool, dict[str, Metric]] = {
    True: {
        "AP": lambda predictions: predictions.average_precision,
        "F1": lambda predictions: predictions.f1,
        "count": lambda predictions: predictions.count,
    },
    False: {
        "recall": lambda predictions: predictions.recall,
        "F1": lambda predictions: predictions.f1,
        "count": lambda predictions: predictions.count,
    },
}
"""Metrics that score each class by itself, for multi-label tasks (True) and single-label tasks (False)."""


def score(logits: Tensor, targets: Tensor, space: LabelSpace) -> PartScores:
    """Compute all scores of a network's predictions that fit the kind of task (multi-label or single-label).

    Multi-label: `mAP` and `mAP_micro`, `F1` and `F1_micro` at probability 0.5. Single-label: `accuracy`,
    `balanced_accuracy`, `precision`, `recall` (equal to balanced accuracy) and `F1`. Both: `loss` (mean cross-entropy
    of the known labels) and `calibration_error` (expected, 15 bins). Means over classes leave out classes without a
    positive.

    If a logit for a known label is not finite, every score is NaN. Files write NaN as null.

    Args:
        logits: [patches, classes] logits.
        targets: [patches, 1] class ids (single-label) or [patches, classes] zeros and ones (multi-label); `IGNORED` if
            unknown. At least one must be known.
        space: Classes of the task, and whether it is single-label or multi-label.

    Returns:
        Scores over all classes and of each class. Multi-label classes have `AP`, `F1` and `count` (the number of
        patches with the class). Single-label classes have `recall`, `F1` and `count`.
    """
    logits, targets = logits.double().cpu(), targets.cpu()
    rows = (targets != IGNORED).any(1)
    logits, targets = logits[rows], targets[rows]
    counted = logits[targets != IGNORED] if space.multilabel else logits
    finite = bool(torch.isfinite(counted).all())
    predictions = Predictions(torch.where(torch.isfinite(logits), logits, 0.0), targets, space)
    grouped = space.grouped(predictions.logits)
    loss = functional.cross_entropy(grouped.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED)
    measured = {"loss": loss, **{name: metric(predictions) for name, metric in metrics_of(space).items()}}
    each = {name: metric(predictions) for name, metric in PER_CLASS[space.multilabel].items()}
    return PartScores(
        {name: float(value) if finite else nan for name, value in measured.items()},
        {
            one: {name: float(values[i]) if finite or name == "count" else nan for name, values in each.items()}
            for i, one in enumerate(space.classes)
        },
    )


def score_once(logits: Tensor, targets: Tensor, space: LabelSpace, device: torch.device) -> PartScores:
    """Compute all scores as `score` does, but only on rank 0, which sends them to the other ranks.

    All ranks (training processes) must call this together, and all return the same scores.

    Args:
        logits: [patches, classes] logits, the same on all ranks.
        targets: Labels of the patches as numbers, as `score` takes them.
        space: Classes of the task, and whether it is single-label or multi-label.
        device: Device of the tensors that the ranks exchange.
    """
    made = made_once(lambda: [dict(part) for part in score(logits, targets, space)], device)
    return PartScores(*cast(list[Any], made))


def diverged(scores: Scores) -> bool:
    """Return True if the scores are NaN because the network's predictions were not finite."""
    return isnan(scores.get("loss", 0.0))


def metrics_of(space: LabelSpace) -> dict[str, Metric]:
    """Return the metrics of a kind of task (multi-label or single-label), by name. The loss is not among them."""
    return MULTILABEL if space.multilabel else SINGLE_LABEL


def score_names(space: LabelSpace) -> tuple[str, ...]:
    """Return the names of all scores, such as `loss`, that the function `score` computes for a kind of task."""
    return ("loss", *metrics_of(space))


def headline(space: LabelSpace) -> str:
    """Return the name of the score that chooses the best checkpoint: `mAP` (multi-label) or `accuracy` (single-label).

    Higher is better.
    """
    return HEADLINES[space.multilabel]


def _measure() -> ModuleType:
    from torchmetrics.functional import classification

    return classification


def _ranks(logits: Tensor) -> Tensor:
    """Return numbers [n] in [0, 1] with the same order as the logits [n]. Equal logits give equal numbers.

    torchmetrics takes numbers in [0, 1] as they are, and would apply the sigmoid to others.
    """
    # Do not use the sigmoid: it is exactly 1 for all logits above about 37, so large logits would look equal.
    found: Tensor = torch.unique(logits, return_inverse=True)[1]
    return found.double() / max(1, len(logits))
