"""Define the training step of semi-supervised runs: forward passes, losses, distillation, pseudo-labels.

All semi-supervised algorithms use `TeacherStudentStep` in `teacher_student.py`. `base.py` defines what the training
loop needs from every kind of step.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.steps.base import StepOutput, TrainingStep
    from stssl.steps.teacher_student import LossConfig, TeacherStudentStep
    from stssl.steps.votes import AnyVotesConfig, NoVotesConfig, Votes

__all__ = [
    "AnyVotesConfig",
    "LossConfig",
    "NoVotesConfig",
    "StepOutput",
    "TeacherStudentStep",
    "TrainingStep",
    "Votes",
]

_MODULES = {
    "base": ("StepOutput", "TrainingStep"),
    "teacher_student": ("LossConfig", "TeacherStudentStep"),
    "votes": ("AnyVotesConfig", "NoVotesConfig", "Votes"),
}

__getattr__ = lazy_names(__name__, _MODULES)
