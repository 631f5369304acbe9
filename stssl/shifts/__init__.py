"""Study what metadata is worth under shift: train with and without it, and test it true, absent, shuffled and moved.

`settings` chooses splits and metadata. `trainings` lists the runs, `ray_tasks` and `evaluated` complete them.
`effects`, `distances` and `claims` compare their networks. `files` and `shift_report` write what was found. `run` calls
all of these.

The names below are imported at their first use, since they import torch.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.shifts.run import ShiftStudy, plan_shift, run_shift
    from stssl.shifts.settings import ShiftOptions

__all__ = ["ShiftOptions", "ShiftStudy", "plan_shift", "run_shift"]

_MODULES = {"run": ("ShiftStudy", "plan_shift", "run_shift"), "settings": ("ShiftOptions",)}

__getattr__ = lazy_names(__name__, _MODULES)
