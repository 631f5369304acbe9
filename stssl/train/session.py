"""Everything that one rank trains with, built from the recipe; knows no Ray."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stssl.build import RunData, build_loader, build_pixels, build_step, open_data
from stssl.data.loader import Loader
from stssl.distributed import rank, world_size
from stssl.recipe import Recipe
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.train.folder import RunFolder
from stssl.train.journal import Journal
from stssl.train.optim import adamw
from stssl.views import ViewMaker


@dataclass
class Position:
    """How far a run is, and its best validation score so far."""

    step: int = 0
    best: float | None = None
    best_step: int = 0

    def exhausted(self, patience: int | None) -> bool:
        """Whether `patience` steps went by without a better score."""
        return patience is not None and self.best is not None and self.step - self.best_step >= patience


@dataclass
class Session:
    """One rank's parts of a run."""

    recipe: Recipe
    folder: RunFolder
    journal: Journal
    data: RunData
    step: TeacherStudentStep
    model: nn.Module
    optimizer: torch.optim.Optimizer
    views: ViewMaker
    loader: Loader
    position: Position
    device: torch.device

    def autocast(self) -> AbstractContextManager[None]:
        """The recipe's arithmetic."""
        if self.recipe.compute.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def state(self) -> dict[str, Any]:
        """What exact resume needs: networks, EMA, algorithm buffers, optimiser, position. Orders follow from it."""
        return {
            "recipe": self.recipe.hash(),
            "position": asdict(self.position),
            "step": self.step.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint, if there is one; returns what was wrong with newer ones."""
        found = self.folder.checkpoints.latest()
        problems = [] if found is None else self._load(*found)
        tensorboard = self.recipe.logging.tensorboard
        self.journal = Journal(self.folder, writes=rank() == 0, tensorboard=tensorboard, step=self.position.step)
        return problems

    def _load(self, state: dict[str, Any], problems: list[str]) -> list[str]:
        self.step.load_state_dict(state["step"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])
        return problems


def open_session(recipe: Recipe, device: torch.device) -> Session:
    """Build one rank's parts.

    Raises:
        ConfigError: The recipe asks for what the store or the networks cannot give.
        DataError: The store cannot be read.
    """
    if recipe.compute.threads is not None:
        torch.set_num_threads(recipe.compute.threads)
    data = open_data(recipe, device)
    step = build_step(recipe, data).to(device).to(memory_format=torch.channels_last)
    ddp = DistributedDataParallel(step, broadcast_buffers=False) if world_size() > 1 else step
    lr, decay = recipe.optimizer.lr, recipe.optimizer.weight_decay
    folder = RunFolder.of(recipe)
    return Session(
        recipe=recipe,
        folder=folder,
        journal=Journal(folder, writes=False, tensorboard=False, step=0),
        data=data,
        step=step,
        model=ddp,
        optimizer=adamw(step, lr, decay),
        views=ViewMaker(build_pixels(recipe, data)).to(device),
        loader=build_loader(recipe, data, step.views_needed, rank(), world_size()),
        position=Position(),
        device=device,
    )
