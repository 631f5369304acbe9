"""Supervised training: labels only. With `model.metadata: direct` it is the baseline that reads metadata itself."""

from typing import ClassVar, Literal

from stssl.algorithms.base import Algorithm, AlgorithmConfig
from stssl.batch import View


class SupervisedConfig(AlgorithmConfig):
    """Nothing to set."""

    name: Literal["supervised"] = "supervised"


class Supervised(Algorithm):
    """No unlabeled terms and no state."""

    views: ClassVar[frozenset[View]] = frozenset()
