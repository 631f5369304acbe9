"""Search for good values of recipe keys: train one recipe many times with other values (trials).

Optuna chooses the values; Ray Tune trains. `spec` reads a sweep file, which describes a search. `domains` and `space`
build the search space from it. `study` records the trials. `tuning` and `trials` train them. `results`, `report` and
`charts` show them. `confirmation` trains the best trials again with other seeds. `run` calls all of these modules.

The names in `__all__` are imported only at their first use, because their modules import torch, and some of them Ray.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

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

__getattr__ = lazy_names(__name__, _MODULES)
