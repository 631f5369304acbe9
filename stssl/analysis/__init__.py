"""Examine runs, recipes and weights: probe features, report and draw scores, and plan what a run will cost.

`probe` scores a pretrained backbone of a run, `weights_probe` one from a file. `weight_report` describes such a file.
`comparison` compares recipes by the scores of their runs. `report` writes an HTML page about runs; it uses `figures`
and `page`. `planning` times a few training steps, and `costs` estimates the cost of a whole run from these times.

The names below are imported at their first use: their modules import torch, which takes seconds.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.analysis.comparison import ComparisonOptions, Difference, compare_runs
    from stssl.analysis.costs import CostEstimate, Machines, describe_costs
    from stssl.analysis.planning import plan_run
    from stssl.analysis.probe import Probed, probe_run
    from stssl.analysis.report import write_report

__all__ = [
    "ComparisonOptions",
    "CostEstimate",
    "Difference",
    "Machines",
    "Probed",
    "compare_runs",
    "describe_costs",
    "plan_run",
    "probe_run",
    "write_report",
]

_MODULES = {
    "comparison": ("ComparisonOptions", "Difference", "compare_runs"),
    "costs": ("CostEstimate", "Machines", "describe_costs"),
    "planning": ("plan_run",),
    "probe": ("Probed", "probe_run"),
    "report": ("write_report",),
}

__getattr__ = lazy_names(__name__, _MODULES)
