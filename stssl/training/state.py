"""Build and resume everything that one rank (training process) trains with: networks, optimizer, data, progress.

To train in Python, call `train_state = open_train_state(recipe, device)`, `train_state.resume()`,
`end = train_to_end(train_state, report)` and `train_state.finish(end)`. `launch.run` does the same, also on Ray.
"""

import contextlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stssl import __version__
from stssl.base.batch import Progress
from stssl.base.distributed import rank, world_size
from stssl.base.errors import RunError, StsslError
from stssl.base.json_types import JsonObject
from stssl.models.ema import KeptStatistics, statistics_of_ranks, take_statistics
from stssl.recipes.fine_tuning import about_fine_tuning
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.training.checkpoints import (
    CheckpointState,
    UnusableError,
    does_not_fit,
    no_usable_checkpoint,
    write_state,
)
from stssl.training.contrastive_task import ContrastiveTask
from stssl.training.journal import Journal
from stssl.training.optim import make_optimizer
from stssl.training.precision import PRECISION, Precision, choose_precision, computing_in
from stssl.training.rates import layer_rates
from stssl.training.run_files import RunEnd
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import compile_blocks, keep_memory
from stssl.training.task import AnyTask
from stssl.training.teacher_student_task import TeacherStudentTask

TASKS: dict[type[RunRecipe], type[AnyTask]] = {Recipe: TeacherStudentTask, PretrainRecipe: ContrastiveTask}
"""Task class of each kind of recipe. A new kind of run adds its line here."""
BUCKET_MB = 100
"""Size in MB of the buckets in which DDP sends gradients between ranks. Larger buckets mean fewer transfers."""


@dataclass
class RunProgress:
    """Count the steps that a run has taken, and record its best validation score.

    Attributes:
        step: Number of steps taken.
        best: Best score; None if no validation gave a score.
        best_step: Number of steps taken at the best checkpoint; 0 if there is none yet.
        left_out: Number of steps left out because their gradients were not finite.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    left_out: int = 0

    def better(self, score: float | None) -> bool:
        """Record a validation score, and return True if it is the best so far.

        Args:
            score: Validation score. NaN if predictions were not finite: it is never the best. None if nothing can be
                scored: it counts as the best if no earlier validation had a score.
        """
        if score is not None and math.isnan(score):
            return False
        if self.best is not None and (score is None or score <= self.best):
            return False
        self.best, self.best_step = score, self.step
        return True

    def exhausted(self, patience: int | None) -> bool:
        """Return True if at least `patience` steps passed since the best score. If `patience` is None, return False."""
        return patience is not None and self.step - self.best_step >= patience


@dataclass
class TrainState:
    """Combine everything that one rank (training process) needs to train a run.

    Attributes:
        recipe: Recipe of the run.
        folder: Folder of the run.
        journal: Writer of metrics. It does nothing before `resume`.
        task: Object with the data and networks of the run, which scores and exports them for its kind of recipe.
        model: Training step of the task. It is wrapped in DDP if the run has several ranks.
        optimizer: Optimizer of the networks.
        progress: Steps taken and best score.
        statistics: BatchNorm statistics, saved before each step and restored after a step with bad gradients.
        precision: Number format in which networks compute.
    """

    recipe: RunRecipe
    folder: RunFolder
    journal: Journal
    task: AnyTask
    model: nn.Module
    optimizer: torch.optim.Optimizer
    progress: RunProgress
    statistics: KeptStatistics
    precision: Precision

    @property
    def next_step(self) -> Progress:
        """Return the number of the next step (from 0) and the number of all steps, as a `Progress`."""
        return Progress(self.progress.step, self.recipe.schedule.steps)

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which networks compute in the run's number format."""
        return computing_in(self.precision, self.task.device, bool(self.recipe.compute.compile))

    def synchronized(self, last: bool) -> AbstractContextManager[None]:
        """Return a context in which ranks sum their gradients only if `last` is True: in a step's last micro-batch."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def checkpoint_state(self) -> CheckpointState:
        """Return the contents of a checkpoint: networks, averages, algorithm state, optimizer and progress.

        All ranks call this together, because they exchange their BatchNorm statistics.
        """
        # Store no states of random generators: the recipe's seed and the step determine all random numbers.
        state: CheckpointState = {
            "recipe": self.recipe.hash(),
            "written_by": __version__,
            "progress": asdict(self.progress),
            "step": self.task.step.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        statistics = statistics_of_ranks(self.task.step)
        return state if statistics is None else {**state, "ranks": statistics}

    def resume(self) -> list[str]:
        """Continue the run from its newest usable checkpoint. Without a checkpoint, start at step 0.

        Rank 0 writes `recipe.yaml`, which reserves the folder for this run, and `record.json`. From now on, the journal
        of rank 0 writes metrics.

        Returns:
            A sentence for each checkpoint that could not be used.

        Raises:
            RunError: The folder has a run of another recipe or of a release that is too old. Or no checkpoint can be
                used. Or the store has changed since the start of the run.
        """
        if rank() == 0:
            self.folder.claim(self.recipe)
            self.folder.checkpoints.begin_sending()
            self.folder.begin_sending()
        problems: list[str] = []
        for path, found in self.folder.checkpoints.newest(self.recipe.hash()):
            try:
                self._load(path, found)
            except UnusableError as error:
                problems.append(str(error))
            else:
                problems = [f"{problem}; continuing from the one before" for problem in problems]
                problems += self._check_best()
                break
        else:
            if problems:
                raise no_usable_checkpoint(problems, self.folder.place)
        self.journal = Journal(self.folder, self.recipe, writes=rank() == 0, step=self.progress.step)
        if rank() == 0:
            about: JsonObject = self.task.about() | about_fine_tuning(self.recipe) | {PRECISION: self.precision}
            step = self.progress.step
            self.folder.write_record(self.recipe, about, self.task.labels(), world=world_size(), step=step)
        return problems

    def _load(self, path: Path, found: CheckpointState | UnusableError) -> None:
        """Load the checkpoint `found` into networks, optimizer and progress. Raise it if it is an error.

        `path` is the file from which it was read.

        Raises:
            RunError: The store has changed since the start of the run.
            UnusableError: The checkpoint is damaged or does not fit. The networks may then be half loaded.
        """
        if isinstance(found, UnusableError):
            raise found
        self.folder.require_store(self.task.data.store)
        try:
            self.task.step.load_state_dict(found["step"])
            self.optimizer.load_state_dict(found["optimizer"])
            if "ranks" in found:
                take_statistics(self.task.step, found["ranks"])
            self.progress = RunProgress(**found["progress"])
        except torch.OutOfMemoryError:  # must not count as damage of the checkpoint, although it is a RuntimeError
            raise
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise does_not_fit(path, found, error) from None
        if rank() == 0:
            self.folder.checkpoints.mend(found, best=self.progress.best_step == self.progress.step)

    def _check_best(self) -> list[str]:
        """Check the file of the best checkpoint.

        If it is lost, write it again from `last` or `previous`, if one of them is the same checkpoint. Otherwise,
        forget the best score, so that a later validation chooses a new best checkpoint.

        Returns:
            A list with one sentence about the damage of `best`; empty if the file is whole.
        """
        progress, checkpoints, recipe = self.progress, self.folder.checkpoints, self.recipe.hash()
        path = checkpoints.path("best")
        if progress.best_step in (0, progress.step):
            return []
        try:
            checkpoints.read("best", recipe)
        except UnusableError as error:
            same, state = checkpoints.same_as_best(recipe)
            if state is not None:
                if rank() == 0:
                    write_state(state, path)
                return [f"{error}; written again, since {checkpoints.path(same)} is the same checkpoint"]
            if progress.step < self.recipe.schedule.steps:
                progress.best, progress.best_step = None, 0
                return [f"{error}; the best checkpoint is chosen anew among those from step {progress.step} on"]
            # Keep the score at the run's last step: no validation follows, and the export reports the lost weights.
        return []

    def finish(self, end: RunEnd) -> None:
        """Write the files with the weights that users need, and mark the run as finished.

        Only rank 0 calls this, after the last step. `end` has the number of steps and the best score.

        Raises:
            RunError: No validation had finite predictions, or a file cannot be written.
        """
        if not self.progress.best_step:
            raise RunError(
                f"no validation of {self.folder.place} had finite predictions, so there is no best checkpoint. Lower "
                "optimizer.lr, set optimizer.clip=1.0, or use compute.precision=fp32, under another name (name=...)."
            )
        self.task.export(self.folder.checkpoints)
        self.folder.finish(end)
        self.close()

    def close(self) -> None:
        """Wait for the last checkpoint, and send remaining files to the object store. Call this after errors, too."""
        with contextlib.suppress(StsslError):  # a failed write must not hide the error that ended the run
            self.folder.checkpoints.wait()
        self.folder.end_sending()


def open_train_state(recipe: RunRecipe, device: torch.device) -> TrainState:
    """Build and return everything with which one rank (training process) trains on `device`, at step 0.

    Call the result's method `resume` before training: it loads a checkpoint, if the run has one.

    Write nothing to the run's folder.

    Raises:
        ConfigError: The store or the networks cannot do what the recipe asks for.
        DataError: The store cannot be read.
    """
    if recipe.compute.threads is not None:
        torch.set_num_threads(recipe.compute.threads)
    keep_memory()
    folder = RunFolder.of(recipe)
    folder.refresh()
    recorded = folder.start_record()
    task = TASKS[type(recipe)](folder.recipe_to_build(recipe) if recorded is not None else recipe, device, recorded)
    if recipe.compute.compile:
        for backbone in task.step.backbones():
            compile_blocks(backbone, graphs=recipe.compute.graphs)
    return TrainState(
        recipe=recipe,
        folder=folder,
        journal=Journal(folder, recipe, writes=False, step=0),
        task=task,
        model=_shared(task.step),
        optimizer=make_optimizer(task.step.networks, recipe.optimizer, layer_rates(task.step.networks, recipe)),
        progress=RunProgress(),
        statistics=KeptStatistics(task.step),
        precision=choose_precision(recipe, device, recorded),
    )


class _Shared(nn.Module):
    """Call a training step. Called without arguments, only use all of its parameters once."""

    def __init__(self, step: nn.Module) -> None:
        """Store the training step to call."""
        super().__init__()
        self.step = step

    def forward(self, *part: object) -> object:
        """Return what the step computes from `part`. Without arguments, return 0, as a function of all parameters."""
        if part:
            return self.step(*part)
        return torch.stack([0 * value.sum().float() for value in self.step.parameters() if value.requires_grad]).sum()


def _shared(step: nn.Module) -> nn.Module:
    """Return the training step, wrapped in DDP if the run has several ranks, so that the ranks exchange gradients."""
    if world_size() == 1:
        return step
    # Do not broadcast buffers in each step. The algorithm's buffers are equal on all ranks already, because each rank
    # updates them from the patches of all ranks. BatchNorm statistics may differ until a validation averages them.
    model = DistributedDataParallel(
        _Shared(step), forward_sync_buffers=False, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
    )
    # After its first step, DDP sorts the parameters anew, by the order in which their gradients came. The place of a
    # parameter in the buckets decides in which order three or more ranks are summed, and so how sums are rounded.
    # Without this empty step, the first step of a resumed run would round otherwise than in an unbroken run.
    model().backward()
    model.zero_grad(set_to_none=True)
    return model
