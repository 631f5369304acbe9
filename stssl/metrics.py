"""Scores of a split's predictions; torchmetrics computes what it has, imported when asked since that takes seconds."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stssl.batch import IGNORED
from stssl.labels import LabelSpace

Scores = dict[str, float]
NAN = torch.tensor(torch.nan, dtype=torch.float64)


def score(logits: Tensor, targets: Tensor, space: LabelSpace) -> tuple[Scores, dict[str, Scores]]:
    """Score predictions.

    Multi-label: `mAP` and `mAP_micro`, `F1` and `F1_micro` at probability 0.5. Single-label: `accuracy`,
    `balanced_accuracy`, `precision`, `recall` (the same as balanced accuracy) and `F1`. Both: `loss` (mean
    cross-entropy of the known labels) and `calibration_error` (expected, 15 bins). Means over classes are over those
    that have a positive.

    Args:
        logits: [N, C].
        targets: [N, G] way ids, `IGNORED` where unknown; some must be known.
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

    known, positives = targets != IGNORED, (targets == 1).sum(0)
    rows = [(values[here], ways[here]) for values, ways, here in zip(probabilities.T, targets.T, known.T, strict=True)]
    average_precision = torch.stack(
        [measure.binary_average_precision(*row) if count else NAN for row, count in zip(rows, positives, strict=True)]
    )
    f1 = torch.stack(
        [measure.binary_f1_score(*row).double() if count else NAN for row, count in zip(rows, positives, strict=True)]
    )
    flat, ways = probabilities[known], targets[known]
    return {
        "mAP": average_precision.nanmean(),
        "mAP_micro": measure.binary_average_precision(flat, ways),
        "F1": f1.nanmean(),
        "F1_micro": measure.binary_f1_score(flat, ways),
        "calibration_error": measure.binary_calibration_error(flat, ways, n_bins=15),
    }, {"AP": average_precision, "F1": f1, "count": positives}


def _multiclass(probabilities: Tensor, targets: Tensor) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    from torchmetrics.functional import classification as measure

    target = targets[:, 0]
    options = {"num_classes": probabilities.shape[1]}
    count = torch.bincount(target, minlength=probabilities.shape[1])
    measured = {"precision": measure.multiclass_precision, "recall": measure.multiclass_recall}
    measured |= {"F1": measure.multiclass_f1_score}
    each = {
        name: torch.where(count > 0, function(probabilities, target, average=None, **options), NAN)
        for name, function in measured.items()
    }
    macro = {name: values.nanmean() for name, values in each.items()}
    return {
        "accuracy": measure.multiclass_accuracy(probabilities, target, average="micro", **options),
        "balanced_accuracy": macro["recall"],
        **macro,
        "calibration_error": measure.multiclass_calibration_error(probabilities, target, n_bins=15, **options),
    }, {"recall": each["recall"], "F1": each["F1"], "count": count}


_TASKS: dict[bool, Callable[[Tensor, Tensor], tuple[dict[str, Any], Mapping[str, Tensor]]]] = {
    True: _multilabel,
    False: _multiclass,
}
