"""Scores of a split's predictions; torchmetrics computes what it has, imported when asked since that takes seconds."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stssl.batch import IGNORED
from stssl.labels import LabelSpace

Scores = dict[str, float]


def score(logits: Tensor, targets: Tensor, space: LabelSpace) -> tuple[Scores, dict[str, Scores]]:
    """Score predictions.

    Multi-label: `mAP` (macro over classes that have a positive) and `mAP_micro`, `F1` and `F1_micro` at probability
    0.5. Single-label: `accuracy`, `balanced_accuracy`, macro `precision`, `recall` and `F1`. Both: `loss` (mean
    cross-entropy of the known labels) and `calibration_error` (expected, 15 bins).

    Args:
        logits: [N, C].
        targets: [N, G] way ids, `IGNORED` where unknown.
        space: The kind of task.

    Returns:
        The scores, and for each class its own (`AP` and `F1`, or `recall` and `F1`, and `count` of positives).
    """
    logits, targets = logits.double().cpu(), targets.cpu()
    known = targets != IGNORED
    rows = known.any(1)
    logits, targets = logits[rows], targets[rows]
    grouped = space.grouped(logits)
    loss = functional.cross_entropy(grouped.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED)
    scores, per_class = _TASKS[space.multilabel](space.probabilities(logits), targets)
    classes = {
        name: {key: float(values[i]) for key, values in per_class.items()} for i, name in enumerate(space.classes)
    }
    return {"loss": float(loss), **{name: float(value) for name, value in scores.items()}}, classes


def headline(space: LabelSpace) -> str:
    """Name of the score that chooses the best checkpoint: higher is better."""
    return "mAP" if space.multilabel else "accuracy"


def _multilabel(probabilities: Tensor, targets: Tensor) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    from torchmetrics.functional import classification as measure

    options = {"num_labels": probabilities.shape[1], "ignore_index": IGNORED}
    positives = (targets == 1).sum(0)
    with warnings.catch_warnings():
        # A class without positives is left out of the mean below; torchmetrics warns of each.
        warnings.simplefilter("ignore")
        average_precision = measure.multilabel_average_precision(probabilities, targets, average=None, **options)
    average_precision = torch.where(positives > 0, average_precision, torch.nan)
    flat, known = probabilities.flatten(), targets.flatten()
    return {
        "mAP": average_precision.nanmean(),
        "mAP_micro": measure.multilabel_average_precision(probabilities, targets, average="micro", **options),
        "F1": measure.multilabel_f1_score(probabilities, targets, average="macro", **options),
        "F1_micro": measure.binary_f1_score(flat, known, ignore_index=IGNORED),
        "calibration_error": measure.binary_calibration_error(flat, known, n_bins=15, ignore_index=IGNORED),
    }, {
        "AP": average_precision,
        "F1": measure.multilabel_f1_score(probabilities, targets, average=None, **options),
        "count": positives,
    }


def _multiclass(probabilities: Tensor, targets: Tensor) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    from torchmetrics.functional import classification as measure

    target = targets[:, 0]
    options = {"num_classes": probabilities.shape[1]}
    count = torch.bincount(target, minlength=probabilities.shape[1])
    recall = measure.multiclass_recall(probabilities, target, average=None, **options)
    return {
        "accuracy": measure.multiclass_accuracy(probabilities, target, average="micro", **options),
        "balanced_accuracy": recall[count > 0].mean(),
        "precision": measure.multiclass_precision(probabilities, target, average="macro", **options),
        "recall": measure.multiclass_recall(probabilities, target, average="macro", **options),
        "F1": measure.multiclass_f1_score(probabilities, target, average="macro", **options),
        "calibration_error": measure.multiclass_calibration_error(probabilities, target, n_bins=15, **options),
    }, {
        "recall": torch.where(count > 0, recall, torch.nan),
        "F1": measure.multiclass_f1_score(probabilities, target, average=None, **options),
        "count": count,
    }


_TASKS: dict[bool, Callable[[Tensor, Tensor], tuple[dict[str, Any], Mapping[str, Tensor]]]] = {
    True: _multilabel,
    False: _multiclass,
}
