"""Scores of a split's predictions; torchmetrics computes what it has, imported when asked since that takes seconds."""

from collections.abc import Callable, Mapping
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace

Scores = dict[str, float]
NAN = torch.tensor(torch.nan, dtype=torch.float64)


def score(logits: Tensor, targets: Tensor, space: LabelSpace) -> tuple[Scores, dict[str, Scores]]:
    """Score predictions.

    Multi-label: `mAP` and `mAP_micro`, `F1` and `F1_micro` at probability 0.5. Single-label: `accuracy`,
    `balanced_accuracy`, `precision`, `recall` (the same as balanced accuracy) and `F1`. Both: `loss` (mean
    cross-entropy of the known labels) and `calibration_error` (expected, 15 bins). Means over classes are over those
    that have a positive. Classes are ranked and decided by logits, since probabilities of large ones are equal.

    Where a prediction for a known label is not finite, every score is NaN: files have null there.

    Args:
        logits: [N, C].
        targets: [N, G] choice ids, `IGNORED` where unknown; some must be known.
        space: The kind of task.

    Returns:
        The scores, and for each class its own (`AP` and `F1`, or `recall` and `F1`, and `count` of positives).
    """
    logits, targets = logits.double().cpu(), targets.cpu()
    known = targets != IGNORED
    rows = known.any(1)
    logits, targets = logits[rows], targets[rows]
    seen = logits[targets != IGNORED] if space.multilabel else logits
    finite = bool(torch.isfinite(seen).all())
    logits = torch.where(torch.isfinite(logits), logits, 0.0)
    grouped = space.grouped(logits)
    loss = functional.cross_entropy(grouped.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED)
    scores, per_class = _TASKS[space.multilabel](logits, space.probabilities(logits), targets)
    classes = {
        name: {key: float(values[i]) if finite or key == "count" else nan for key, values in per_class.items()}
        for i, name in enumerate(space.classes)
    }
    measured = {"loss": loss, **scores}
    return {name: float(value) if finite else nan for name, value in measured.items()}, classes


def diverged(scores: Scores) -> bool:
    """True if scores are missing because predictions were not finite."""
    return isnan(scores.get("loss", 0.0))


def headline(space: LabelSpace) -> str:
    """Name of the score that chooses the best checkpoint: higher is better."""
    return "mAP" if space.multilabel else "accuracy"


def _multilabel(logits: Tensor, probabilities: Tensor, targets: Tensor) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    from torchmetrics.functional import classification as measure

    known, positives = targets != IGNORED, (targets == 1).sum(0)
    rows = [(values[here], choices[here]) for values, choices, here in zip(logits.T, targets.T, known.T, strict=True)]
    counted = list(zip(rows, positives, strict=True))
    average_precision = torch.stack(
        [measure.binary_average_precision(_ranks(row[0]), row[1]).double() if n else NAN for row, n in counted]
    )
    f1 = torch.stack(
        [measure.binary_f1_score((row[0] > 0).long(), row[1]).double() if n else NAN for row, n in counted]
    )
    flat, choices = logits[known], targets[known]
    return {
        "mAP": average_precision.nanmean(),
        "mAP_micro": measure.binary_average_precision(_ranks(flat), choices),
        "F1": f1.nanmean(),
        "F1_micro": measure.binary_f1_score((flat > 0).long(), choices),
        "calibration_error": measure.binary_calibration_error(probabilities[known], choices, n_bins=15),
    }, {"AP": average_precision, "F1": f1, "count": positives}


def _ranks(logits: Tensor) -> Tensor:
    """Numbers in [0, 1] in the order of logits [n], equal where those are: sigmoids are 1 from about 37 on."""
    found: Tensor = torch.unique(logits, return_inverse=True)[1]
    return found.double() / max(1, len(logits))


def _multiclass(logits: Tensor, probabilities: Tensor, targets: Tensor) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    from torchmetrics.functional import classification as measure

    target, chosen, classes = targets[:, 0], logits.argmax(1), logits.shape[1]
    options = {"num_classes": max(2, classes)}  # torchmetrics knows no fewer
    count = torch.bincount(target, minlength=classes)
    measured = {"precision": measure.multiclass_precision, "recall": measure.multiclass_recall}
    measured |= {"F1": measure.multiclass_f1_score}
    each = {
        name: torch.where(count > 0, function(chosen, target, average=None, **options)[:classes], NAN)
        for name, function in measured.items()
    }
    macro = {name: values.nanmean() for name, values in each.items()}
    return {
        "accuracy": measure.multiclass_accuracy(chosen, target, average="micro", **options),
        "balanced_accuracy": macro["recall"],
        **macro,
        "calibration_error": measure.binary_calibration_error(
            probabilities.amax(1), (chosen == target).long(), n_bins=15
        ),
    }, {"recall": each["recall"], "F1": each["F1"], "count": count}


_TASKS: dict[bool, Callable[[Tensor, Tensor, Tensor], tuple[dict[str, Any], Mapping[str, Tensor]]]] = {
    True: _multilabel,
    False: _multiclass,
}
