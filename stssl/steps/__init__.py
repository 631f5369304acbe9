"""Take the training step of semi-supervised runs: forward passes, losses, distillation, votes on pseudo-labels.

`TeacherStudentStep` in `teacher_student.py` is the step of all algorithms; `base.py` defines what the training loop
needs of any step.
"""

__all__: list[str] = []
