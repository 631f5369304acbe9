"""Define the training step of semi-supervised runs: forward passes, losses, distillation, pseudo-labels.

All algorithms use `TeacherStudentStep` in `teacher_student.py`. `base.py` defines what the training loop needs from
every step.
"""

__all__: list[str] = []
