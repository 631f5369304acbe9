"""Define the base class of tasks: what the training loop needs to know about one kind of recipe.

A task opens the data, builds the networks, makes batches, and scores and exports the networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

from stssl.base.batch import Progress
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.recipes.recipe import R
from stssl.recipes.run_data import PixelData
from stssl.steps.base import TrainingStep
from stssl.training.checkpoints import Checkpoints

Loaded = TypeVar("Loaded")
"""Type of the batches that a loader delivers: stored pixels in host memory."""
Raw_co = TypeVar("Raw_co", covariant=True)
Made = TypeVar("Made")
"""Type of the batches that a training step takes: normalized views on the device."""


class BatchLoader(Protocol[Raw_co]):
    """Define the interface of loaders, which read the patches that one rank (training process) gets in each step.

    Attributes:
        ranks: Number of this rank, counted from 0, and number of all ranks.
    """

    ranks: tuple[int, int]

    def batches(self, start: int, stop: int) -> Iterator[Raw_co]:
        """Yield, for each step from `start` to `stop` - 1, the patches that this rank reads."""
        ...

    def rows_at(self, step: int) -> int:
        """Return how many patches all ranks together read in a step."""
        ...

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Return the numbers of the patches in the store that all ranks together read in step `step`.

        The dict has a list of numbers for each kind of patches, such as `labeled` and `unlabeled`.
        """
        ...


class Validation(NamedTuple):
    """Describe the result of a validation: its scores, and the one score that chooses the best checkpoint.

    Attributes:
        scores: Value of each score by name.
        score: The score that chooses the best checkpoint; higher is better. NaN if predictions are not finite: the
            checkpoint is never the best. None if nothing can be scored: the newest checkpoint is the best.
    """

    scores: dict[str, float]
    score: float | None


class Task(ABC, Generic[R, Loaded, Made]):
    """Define the part of training that depends on the kind of recipe: data, batches, networks and scores.

    Attributes:
        recipe: Recipe of the run.
        step: Module with the networks, their losses and all other state of training.
        loader: Loader of this rank's patches of the global batches.
        device: Device of the networks.
        data: Open store, the row numbers of its training, validation and test patches, and the reader of pixels.
    """

    recipe: R
    step: TrainingStep
    loader: BatchLoader[Loaded]
    device: torch.device
    data: PixelData

    @abstractmethod
    def __init__(self, recipe: R, device: torch.device, recorded: JsonMapping | None = None) -> None:
        """Open the data, and build networks and loader for one rank (training process).

        Args:
            recipe: Recipe to build from.
            device: Device of the networks.
            recorded: The run's record, if the run resumes. It says how images are scaled.

        Raises:
            ConfigError: The store or the networks cannot do what the recipe asks for.
            DataError: The store cannot be read.
        """

    @classmethod
    @abstractmethod
    def check(cls, recipe: R) -> list[str]:
        """Check before a run starts that data and networks fit the recipe. Train nothing.

        Returns:
            Lines for the user on what the run trains on: number of patches in each part of the data, labels and bands.

        Raises:
            ConfigError: Data or networks do not fit the recipe. The message says what would fit.
            DataError: The store cannot be read, or a class has no label.
        """

    @property
    def rows(self) -> int:
        """Return how many patches the largest global batch has, which is that of the last step."""
        return self.loader.rows_at(self.recipe.schedule.steps - 1)

    @abstractmethod
    def batch(self, raw: Loaded) -> Made:
        """Return augmented, normalized views of the patches in `raw`, which the loader delivers.

        The views are on the device of the networks.
        """

    def micro_batches(self, batch: Made, progress: Progress) -> list[tuple[object, ...]]:
        """Divide a batch into micro-batches. Return for each of them the arguments of the training step, as a tuple.

        This default makes one micro-batch with all patches.

        Args:
            batch: Views that `batch` has made.
            progress: Number of the step to take, and number of all steps.
        """
        return [(batch, progress)]

    @abstractmethod
    def validate(self, progress: Progress) -> Validation:
        """Score the networks on the validation patches, and return the scores. All ranks call this together.

        Args:
            progress: The last step that was taken.
        """

    def view_count(self, step: int) -> int:
        """Return how many kinds of augmented views a step uses. Later steps never use fewer kinds than earlier ones.

        This default returns 1.
        """
        return 1

    @abstractmethod
    def export(self, checkpoints: Checkpoints) -> None:
        """Write the files with weights that users need, from the checkpoints of the finished run."""

    @abstractmethod
    def about(self) -> JsonObject:
        """Return facts about the data for the run's record, by name, such as the number of patches in each part."""

    def labels(self) -> JsonObject | None:
        """Return the names, row numbers and targets of the labeled patches for `labels.json`; None without labels."""
        return None


AnyTask = Task[Any, Any, Any]
"""Task of any kind. The loop passes a task's batches only to the same task, so it does not need their types."""
