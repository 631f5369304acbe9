"""The stage of each kind of run."""

from collections.abc import Callable
from typing import Any

import torch

from stssl.recipes import build
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.training import contrastive_task as contrasting
from stssl.training.contrastive_task import ContrastiveTask
from stssl.training.task import Task
from stssl.training.teacher_student_task import TeacherStudentTask

STAGES: dict[type[RunRecipe], tuple[Callable[[Any, torch.device], Task], Callable[[Any], None]]] = {
    Recipe: (TeacherStudentTask, build.check_recipe),
    PretrainRecipe: (ContrastiveTask, contrasting.check_pretraining),
}


def open_task(recipe: RunRecipe, device: torch.device) -> Task:
    """Build one rank's parts of a run.

    Raises:
        ConfigError: The recipe asks for what the store or the networks cannot give.
        DataError: The store cannot be read.
    """
    return STAGES[type(recipe)][0](recipe, device)


def check_run(recipe: RunRecipe) -> None:
    """Find out before anything starts whether data and networks can be what the recipe says.

    Raises:
        ConfigError: They cannot; says what would fit.
        DataError: The store cannot be read, or a class has no label.
    """
    STAGES[type(recipe)][1](recipe)
