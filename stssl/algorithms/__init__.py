"""Algorithms by name."""

from typing import Annotated

from pydantic import Field

from stssl.algorithms.base import Algorithm, DataFacts, Term
from stssl.algorithms.fixmatch import FixMatch, FixMatchConfig
from stssl.algorithms.supervised import Supervised, SupervisedConfig

ALGORITHMS: dict[str, type[Algorithm]] = {"supervised": Supervised, "fixmatch": FixMatch}
AlgorithmConfig = Annotated[SupervisedConfig | FixMatchConfig, Field(discriminator="name")]

__all__ = ["ALGORITHMS", "Algorithm", "AlgorithmConfig", "DataFacts", "Term"]
