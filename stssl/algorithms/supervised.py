"""Train with labels only.

With `model.metadata: direct`, this is a baseline: its network reads the metadata of labeled patches.
"""

from typing import Literal

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig


class SupervisedConfig(BaseAlgorithmConfig):
    """Configure supervised training; it has no settings of its own."""

    name: Literal["supervised"] = "supervised"


class Supervised(Algorithm):
    """Use labels only: return no loss terms and keep no state."""

    config_type = SupervisedConfig
    views = frozenset()
