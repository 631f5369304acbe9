"""Train with labels only: the baseline without pseudo-labels.

With `model.metadata: direct`, this is a baseline: its network reads the metadata of labeled patches.
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
