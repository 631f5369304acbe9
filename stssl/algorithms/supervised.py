"""Supervised training: labels only. With `model.metadata: direct` it is the baseline that reads metadata itself."""

from typing import Literal

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig


class SupervisedConfig(BaseAlgorithmConfig):
    """Nothing to set."""

    name: Literal["supervised"] = "supervised"


class Supervised(Algorithm):
    """No unlabeled terms and no state."""

    views = frozenset()
