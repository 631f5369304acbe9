"""Define the algorithms of semi-supervised training, one file each, and the losses that they share.

An algorithm turns predictions on weakly augmented patches into pseudo-labels, and these into loss terms. The training
step in `stssl/steps` computes the losses from these terms. `names.py` says how to add an algorithm.

Python imports each name below at its first use: all names except `NAMES` need torch, which is slow to import.
"""

from typing import TYPE_CHECKING

from stssl.algorithms.names import NAMES
from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.algorithms.base import Algorithm, DataFacts, LabelerOutputs, Logits, LossRole, LossTerm
    from stssl.algorithms.registry import ALGORITHMS, AlgorithmConfig

__all__ = [
    "ALGORITHMS",
    "NAMES",
    "Algorithm",
    "AlgorithmConfig",
    "DataFacts",
    "LabelerOutputs",
    "Logits",
    "LossRole",
    "LossTerm",
]

_MODULES = {
    "base": ("Algorithm", "DataFacts", "LabelerOutputs", "Logits", "LossRole", "LossTerm"),
    "registry": ("ALGORITHMS", "AlgorithmConfig"),
}

__getattr__ = lazy_names(__name__, _MODULES)
