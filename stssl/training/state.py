"""Everything that one rank trains with, built from the recipe; knows no Ray."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stssl import __version__
from stssl.base.batch import Progress
from stssl.base.distributed import rank, world_size
from stssl.models.ema import KeptStatistics
from stssl.recipes.recipe import RunRecipe
from stssl.training.checkpoint import UnusableError, does_not_fit, none_whole, read_state, require_state, write_state
from stssl.training.compiling import compile_blocks
from stssl.training.guard import FILE, Guard
from stssl.training.journal import Journal
from stssl.training.optim import make_optimizer
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import keep_memory
from stssl.training.task import Task
from stssl.training.tasks import open_task

BUCKET_MB = 100
"""Gradients that DDP reduces at once: few large buckets, whatever the networks' sizes."""


@dataclass
class RunProgress:
    """Track how far a run is, and its best validation score so far."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    left_out: int = 0

    def better(self, score: float | None) -> bool:
        """Take in a validation score; whether it is the best so far.

        Args:
            score: NaN where predictions were not finite, which is never the best; None where nothing is scored, so that
                the newest is.
        """
        if score is not None and math.isnan(score):
            return False
        if self.best is not None and (score is None or score <= self.best):
            return False
        self.best, self.best_step = score, self.step
        return True

    def exhausted(self, patience: int | None) -> bool:
        """True if `patience` steps went by without a better score."""
        return patience is not None and self.step - self.best_step >= patience


@dataclass
class TrainState:
    """One rank's parts of a run."""

    recipe: RunRecipe
    folder: RunFolder
    journal: Journal
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    progress: RunProgress
    guard: Guard
    statistics: KeptStatistics

    @property
    def next_step(self) -> Progress:
        """The step about to be taken."""
        return Progress(self.progress.step, self.recipe.schedule.steps)

    def autocast(self) -> AbstractContextManager[None]:
        """The recipe's arithmetic."""
        if self.recipe.compute.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.task.device.type, torch.bfloat16)

    def synchronized(self, last: bool) -> AbstractContextManager[None]:
        """Ranks add up gradients with the last micro-batch only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def checkpoint_state(self) -> dict[str, Any]:
        """Collect what exact resume needs: networks, averages, algorithm buffers, optimizer, progress."""
        return {
            "recipe": self.recipe.hash(),
            "written_by": __version__,
            "progress": asdict(self.progress),
            "step": self.task.step.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self) -> list[str]:
        """Go on from the newest checkpoint that can be used, if there is one; returns what was wrong with others.

        Raises:
            RunError: No checkpoint can be used, or the store is not the one that the run was started on.
        """
        problems: list[str] = []
        for path, found in self.folder.checkpoints.newest(self.recipe.hash()):
            try:
                self._load(path, found)
            except UnusableError as error:
                problems.append(str(error))
            else:
                problems = [f"{problem}; going on from the one before" for problem in problems]
                problems += self._check_best()
                break
        else:
            if problems:
                raise none_whole(problems, self.folder.path)
        self.journal = Journal(self.folder, self.recipe, writes=rank() == 0, step=self.progress.step)
        return problems

    def _load(self, path: Path, found: dict[str, Any] | UnusableError) -> None:
        if isinstance(found, UnusableError):
            raise found
        self.folder.require_store(self.task.data.store)
        try:
            self.task.step.load_state_dict(found["step"])
            self.optimizer.load_state_dict(found["optimizer"])
            self.progress = RunProgress(**found["progress"])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise does_not_fit(path, found, error) from None
        if rank() == 0:
            self.folder.checkpoints.mend(found, best=self.progress.best_step == self.progress.step)

    def _check_best(self) -> list[str]:
        """Write the best checkpoint of an earlier step again where it is lost, or choose another; what was wrong."""
        progress, checkpoints, recipe = self.progress, self.folder.checkpoints, self.recipe.hash()
        path = checkpoints.path("best")
        if progress.best_step in (0, progress.step):
            return []
        try:
            require_state(read_state(path), path, recipe)
        except UnusableError as error:
            same, state = checkpoints.same_as_best(recipe)
            if state is not None:
                if rank() == 0:
                    write_state(state, path)
                return [f"{error}; written again, since {checkpoints.path(same)} is the same checkpoint"]
            if progress.step < self.recipe.schedule.steps:
                progress.best, progress.best_step = None, 0
                return [f"{error}; the best checkpoint is chosen anew among those from step {progress.step} on"]
        return []  # of a run that is trained, the export says that its best weights are lost

    def tell_of_bad_steps(self) -> None:
        """Write down steps that were left out since the last call, with their patches.

        Raises:
            RunError: They are too many.
        """
        findings, loader = self.guard.findings(), self.task.loader
        self.progress.left_out += len(findings)
        for found in findings if self.journal.writes else ():
            self.journal.note(FILE, found | {"rows": loader.global_rows(found["step"])})
        if findings:
            self.guard.stop_if_too_many(self.progress.left_out, str(self.folder.path / FILE), findings[-1])


def open_train_state(recipe: RunRecipe, device: torch.device) -> TrainState:
    """Build one rank's parts.

    Raises:
        ConfigError: The recipe asks for what the store or the networks cannot give.
        DataError: The store cannot be read.
    """
    if recipe.compute.threads is not None:
        torch.set_num_threads(recipe.compute.threads)
    keep_memory()
    folder = RunFolder.of(recipe)
    task = open_task(folder.going_on(recipe), device)
    if recipe.compute.compile:
        for backbone in task.step.backbones():
            compile_blocks(backbone)
    return TrainState(
        recipe=recipe,
        folder=folder,
        journal=Journal(folder, recipe, writes=False, step=0),
        task=task,
        model=_shared(task.step),
        optimizer=make_optimizer(task.step.networks, recipe.optimizer),
        progress=RunProgress(),
        guard=Guard(recipe.compute.nonfinite_steps),
        statistics=KeptStatistics(task.step),
    )


def _shared(step: nn.Module) -> nn.Module:
    """The step under DDP where there are several ranks; buffers are equal by construction, so none are broadcast."""
    if world_size() == 1:
        return step
    return DistributedDataParallel(
        step, forward_sync_buffers=False, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
    )
