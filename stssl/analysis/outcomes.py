"""Compare a network's predictions with the known labels of patches."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.analysis.drawing import AnyFloats
from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace


class Comparison(NamedTuple):
    """Hold the comparison of a network's predictions with all known labels.

    A single-label patch has one label, its class. A multi-label patch has one label for each class: present or absent.

    Attributes:
        probability: [labels] predicted probability for each known label: that the class is present (multi-label), or
            that of the most probable class (single-label).
        right: [labels] 1 if the class is present (multi-label), or if the most probable class is the label
            (single-label); else 0.
        wrong: [patches] share of the patch's known labels that are predicted wrong; NaN without a known label.
        predicted: [patches, 1] predicted class ids (single-label) or [patches, classes] zeros and ones (multi-label).
        surest: [patches] highest probability among the patch's wrong predictions; NaN without a wrong prediction.
    """

    probability: AnyFloats
    right: AnyFloats
    wrong: AnyFloats
    predicted: Ints
    surest: AnyFloats


def compare_with_labels(logits: AnyFloats, targets: NDArray[np.signedinteger[Any]], space: LabelSpace) -> Comparison:
    """Compare the predictions of a network with all known labels, and return the comparison.

    Args:
        logits: [patches, classes] logits of the network.
        targets: Labels: [patches, 1] class ids (single-label) or [patches, classes] zeros and ones (multi-label);
            `IGNORED` if unknown.
        space: Classes of the task, and whether it is single-label or multi-label.
    """
    choices = space.grouped(torch.from_numpy(logits).double()).softmax(-1).numpy()
    best = choices.argmax(-1).astype(np.int64)
    known = targets != IGNORED
    mistaken = (best != targets) & known
    count = known.sum(1)
    wrong = np.where(count > 0, mistaken.sum(1) / np.maximum(count, 1), np.nan)
    surest = np.where(mistaken, choices.max(-1), -1.0).max(1)
    chosen = np.ones_like(best) if space.choices == 2 and space.multilabel else best
    probability = np.take_along_axis(choices, chosen[..., None], -1)[..., 0]
    return Comparison(
        probability[known],
        (targets == chosen)[known].astype(float),
        wrong,
        best,
        np.where(surest < 0, np.nan, surest),
    )
