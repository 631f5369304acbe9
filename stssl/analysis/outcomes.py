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

    Attributes:
        probability: [labels] predicted probability of "present" if a patch may have several classes, else of the class
            with the highest probability.
        right: [labels] 1 if the label is this choice ("present", or this class), else 0.
        wrong: [patches] share of wrong predictions of each patch; NaN for a patch without a known label.
        predicted: [patches, decisions] predicted choice ids: class numbers, or for each class 1 (present) or 0.
        surest: [patches] highest probability that the network gave to a wrong choice it made; NaN without a mistake.
    """

    probability: AnyFloats
    right: AnyFloats
    wrong: AnyFloats
    predicted: Ints
    surest: AnyFloats


def compare_with_labels(logits: AnyFloats, targets: NDArray[np.signedinteger[Any]], space: LabelSpace) -> Comparison:
    """Find the right and wrong predictions of a network, and how probable it called them.

    Args:
        logits: [patches, classes] logits of the network.
        targets: [patches, labels a patch] choice ids of the labels; `IGNORED` if unknown.
        space: Classes and kind of task.
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
