"""Offer the functions of `import stssl`, such as `stssl.train`. The command line has a subcommand for most of them.

`stssl/__init__.py` and this file import these functions at their first use, to keep `import stssl` fast. A new function
needs an entry in both files.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.api.data_functions import convert, open_store, synthesize
    from stssl.api.scoring_functions import compare, evaluate, inspect_weights, probe, report
    from stssl.api.student_functions import embed, export, load_student, predict
    from stssl.api.training_functions import load_recipe, plan, pretrain, shift, sweep, train

__all__ = [
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
    "report",
    "shift",
    "sweep",
    "synthesize",
    "train",
]

_MODULES = {
    "data_functions": ("convert", "open_store", "synthesize"),
    "scoring_functions": ("compare", "evaluate", "inspect_weights", "probe", "report"),
    "student_functions": ("embed", "export", "load_student", "predict"),
    "training_functions": ("load_recipe", "plan", "pretrain", "shift", "sweep", "train"),
}

__getattr__ = lazy_names(__name__, _MODULES)
