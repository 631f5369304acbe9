"""Study whether metadata (place and date) helps networks if test patches differ from training patches: `stssl shift`.

A study trains networks with and without metadata on several splits. It tests them with true, absent, shuffled and moved
metadata, and compares their scores.

`settings` chooses the splits and the metadata at test. `trainings` lists the training runs; `ray_tasks` and `evaluated`
train and score them. `effects`, `distances` and `claims` compare the networks. `files` and `shift_report` write the
results. `run` calls all of these.

The names below are imported at their first use, because their modules import torch, which takes seconds.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.shifts.run import ShiftStudy, plan_shift, run_shift
    from stssl.shifts.settings import ShiftOptions

__all__ = ["ShiftOptions", "ShiftStudy", "plan_shift", "run_shift"]

_MODULES = {"run": ("ShiftStudy", "plan_shift", "run_shift"), "settings": ("ShiftOptions",)}

__getattr__ = lazy_names(__name__, _MODULES)
