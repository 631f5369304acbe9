"""Train with labels only: the baseline without pseudo-labels.

With `model.metadata: direct`, the network also reads the metadata (place and date) of patches, as a second baseline.
"""

from typing import Literal

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig


class SupervisedConfig(BaseAlgorithmConfig):
    """Define the settings of supervised training, which has none of its own."""

    name: Literal["supervised"] = "supervised"


class Supervised(Algorithm):
    """Learn from labels only. This algorithm has no loss terms for unlabeled patches, and no state."""

    config_type = SupervisedConfig
    views = frozenset()
