"""Define the algorithms, one file each, and the losses that they share.

An algorithm turns the labeler's predictions into loss terms; the step in `stssl/steps` carries them out. To add one,
see `names.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from stssl.algorithms.names import NAMES

if TYPE_CHECKING:
    from stssl.algorithms.base import Algorithm, DataFacts, LabelerOutputs, Logits, LossRole, LossTerm
    from stssl.algorithms.registry import ALGORITHMS, AlgorithmConfig
else:
    _HOMES = dict.fromkeys(("ALGORITHMS", "AlgorithmConfig"), "registry")
    _HOMES |= dict.fromkeys(("Algorithm", "DataFacts", "LabelerOutputs", "Logits", "LossRole", "LossTerm"), "base")

    def __getattr__(name):
        """Import a name on first use: all but `NAMES` need torch, which takes seconds to import."""
        if name not in _HOMES:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


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
