"""Train land-cover classifiers from few labels and many unlabeled satellite patches.

    import stssl

    run = stssl.train(stssl.load_recipe("eurosat/fixmatch_cpu", ["data.store=eurosat.zarr"]))
    print(stssl.evaluate(run, "test")["student"]["accuracy"])

Names are imported when they are first used: `import stssl` alone loads neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stssl.api import (
        compare,
        convert,
        embed,
        evaluate,
        export,
        inspect_weights,
        load_recipe,
        load_student,
        open_store,
        plan,
        predict,
        pretrain,
        probe,
        report,
        shift,
        sweep,
        synthesize,
        train,
    )
    from stssl.api.run import Run
    from stssl.base.errors import ConfigError, DataError, RunError, StsslError
    from stssl.recipes.catalog import recipe_names
    from stssl.store.store import Store
    from stssl.students.student import Student

__version__ = "0.2.0"

__all__ = [
    "ConfigError",
    "DataError",
    "Run",
    "RunError",
    "Store",
    "StsslError",
    "Student",
    "__version__",
    "compare",
    "convert",
    "embed",
    "evaluate",
    "export",
    "inspect_weights",
    "load_recipe",
    "load_student",
    "open_store",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "recipe_names",
    "report",
    "shift",
    "sweep",
    "synthesize",
    "train",
]

_MODULES = {"Run": "stssl.api.run", "Store": "stssl.store.store", "Student": "stssl.students.student"}
_MODULES |= dict.fromkeys(("ConfigError", "DataError", "RunError", "StsslError"), "stssl.base.errors")
_MODULES["recipe_names"] = "stssl.recipes.catalog"
"""Modules of the names that `stssl.api` does not have."""


def __getattr__(name: str) -> object:
    """Import a public name, such as `train`, when it is first used, and return the object with this name."""
    if name in __all__:
        return getattr(import_module(_MODULES.get(name, "stssl.api")), name)
    raise AttributeError(f"module 'stssl' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names of the package, also those that are not imported yet, for `dir(stssl)`."""
    return __all__
