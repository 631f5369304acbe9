"""The stage of each kind of run."""

from collections.abc import Callable
from typing import Any

import torch

from stssl.recipes import build
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.training import contrastive_task as contrasting
from stssl.training.contrastive_task import Contrasting
from stssl.training.task import Stage
from stssl.training.teacher_student_task import Teaching

STAGES: dict[type[RunRecipe], tuple[Callable[[Any, torch.device], Stage], Callable[[Any], None]]] = {
    Recipe: (Teaching, build.check),
    PretrainRecipe: (Contrasting, contrasting.check),
}


def open_stage(recipe: RunRecipe, device: torch.device) -> Stage:
    """Build one rank's parts of a run.

    Raises:
        ConfigError: The recipe asks for what the store or the networks cannot give.
        DataError: The store cannot be read.
    """
    return STAGES[type(recipe)][0](recipe, device)


def check(recipe: RunRecipe) -> None:
    """Find out before anything starts whether data and networks can be what the recipe says.

    Raises:
        ConfigError: They cannot; says what would fit.
        DataError: The store cannot be read, or a class has no label.
    """
    STAGES[type(recipe)][1](recipe)
