"""Search recipe keys: train one recipe many times with other values. Optuna chooses the values; Ray Tune trains.

`spec` reads a sweep file. `domains` and `space` make its search space. `study` keeps the trials. `tuning` and `trials`
train them. `results`, `report` and `charts` show them. `confirmation` trains the best trials again. `run` calls all of
these.

The names below are imported at their first use, since they import torch, and some of them Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stssl.sweeps.domains import build_space
    from stssl.sweeps.run import SweepFiles, run_sweep, search
    from stssl.sweeps.space import Space
    from stssl.sweeps.spec import Sweep, SweepConfig, load_sweep

__all__ = ["Space", "Sweep", "SweepConfig", "SweepFiles", "build_space", "load_sweep", "run_sweep", "search"]

_MODULES = {
    "domains": ("build_space",),
    "run": ("SweepFiles", "search", "run_sweep"),
    "space": ("Space",),
    "spec": ("Sweep", "SweepConfig", "load_sweep"),
}


def __getattr__(name: str) -> object:
    """Import a public name from its module at its first use."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
