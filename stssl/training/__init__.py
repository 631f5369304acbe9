"""Train the networks of a recipe, save the run in a folder, and load it again.

`launch.run` trains a recipe to its end, in this process or on Ray. `loop` is the training loop. `state` builds the
networks, data and optimizer of one rank (training process). `task` is the base of `teacher_student_task` and
`contrastive_task`, one for each kind of run. `run_folder`, `run_files`, `checkpoints` and `journal` write a run to
disk. `trained_run` loads it again.

A module imports only modules to its right: `launch` > `loop` > `state` > tasks > `journal` > `run_folder` >
`checkpoints` > `run_files`.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.training.launch import check_run, run
    from stssl.training.loop import train_step, train_to_end, validate_and_save
    from stssl.training.run_folder import RunFolder
    from stssl.training.state import TrainState, open_train_state
    from stssl.training.trained_run import EvaluationFiles, TrainedRun, evaluate_fully, evaluate_run, load_run

__all__ = [
    "EvaluationFiles",
    "RunFolder",
    "TrainState",
    "TrainedRun",
    "check_run",
    "evaluate_fully",
    "evaluate_run",
    "load_run",
    "open_train_state",
    "run",
    "train_step",
    "train_to_end",
    "validate_and_save",
]

_MODULES = {
    "launch": ("check_run", "run"),
    "loop": ("train_to_end", "train_step", "validate_and_save"),
    "run_folder": ("RunFolder",),
    "state": ("TrainState", "open_train_state"),
    "trained_run": ("EvaluationFiles", "TrainedRun", "evaluate_fully", "evaluate_run", "load_run"),
}

__getattr__ = lazy_names(__name__, _MODULES)
