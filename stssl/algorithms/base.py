"""What an algorithm is: it looks at the labeler's logits and says which predictions should match what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stssl.batch import IGNORED, Progress, View
from stssl.config import Config
from stssl.labels import LabelSpace
from stssl.losses import cross_entropy

Logits = Mapping[View, Tensor]
"""Of each view [B, G, K], grouped."""


class AlgorithmConfig(Config):
    """What every algorithm's configuration has: who makes the pseudo-labels."""

    labeler: Literal["live", "ema"] = "live"


@dataclass(frozen=True)
class DataFacts:
    """What an algorithm may know of the data before the first step.

    Attributes:
        prior: [G, K] frequency of each way among the labeled rows.
        unlabeled_count: Patches in the unlabeled stream.
    """

    prior: Tensor
    unlabeled_count: int


@dataclass(frozen=True)
class Term:
    """Predictions on `view` should match `target`, as much as `weight` says.

    Attributes:
        view: Whose predictions.
        target: [B, G] way ids, or [B, G, K] distributions.
        weight: [B, G].
        sign: 1, or -1 where the term is subtracted.
        by_weight: Whether the sum is divided by the total weight instead of the number of decisions.
    """

    view: View
    target: Tensor
    weight: Tensor
    sign: float = 1.0
    by_weight: bool = False


class Algorithm(nn.Module):
    """Matches nothing; algorithms override what they need. State lives in persistent buffers."""

    views: ClassVar[frozenset[View]] = frozenset({View.UNLABELED_WEAK})
    stateful: ClassVar[bool] = False

    def __init__(self, config: Any, space: LabelSpace, facts: DataFacts) -> None:
        """Start with the configuration of this algorithm."""
        super().__init__()
        self.config, self.space = config, space

    def observe(self, logits: Logits, index: Tensor, progress: Progress) -> None:
        """Update all state, once a step, from the labeler's logits of the whole global batch."""

    def terms(self, logits: Logits, progress: Progress) -> list[Term]:
        """What to match, from the labeler's logits of some rows; changes nothing."""
        return []

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each decision: [B, G] from [B, G, K] and [B, G] ids or [B, G, K] distributions."""
        return cross_entropy(logits, target)

    def calibrate(self, logits: Tensor, blank: Tensor) -> Tensor:
        """Logits of a trained network, given its logits of the blank image; CDMAD subtracts the bias."""
        return logits


def confident(probability: Tensor, threshold: float, band: tuple[float, float] | None) -> Tensor:
    """Which decisions a fixed cut-off selects: [B, G] from probabilities [B, G, K].

    Args:
        probability: Of each way.
        threshold: Least probability of the chosen way.
        band: Two-way decisions may have cut-offs of their own: "absent" at or below the first probability of
            presence, "present" at or above the second.
    """
    if band is None:
        return probability.amax(-1) >= threshold
    present = probability[..., -1]
    return (present <= band[0]) | (present >= band[1])


def hard_or_soft(logits: Tensor, soft: bool, temperature: float) -> Tensor:
    """Targets from logits [B, G, K]: way ids, or probabilities sharpened by a temperature."""
    return (logits / temperature).softmax(-1) if soft else logits.argmax(-1)


def known(targets: Tensor) -> Tensor:
    """1 where a target counts: [B, G] float."""
    if targets.dtype.is_floating_point:
        return torch.ones_like(targets[..., 0])
    return (targets != IGNORED).float()
