"""Define tasks, i.e. what the loop trains: batches, a step, a score. Each kind of recipe has its task."""

from abc import ABC, abstractmethod
from typing import Any

import torch

from stssl.base.batch import Progress
from stssl.contrastive.pairs import PairLoader
from stssl.data.loader import Loader
from stssl.recipes.recipe import RunRecipe
from stssl.recipes.run_data import PixelData
from stssl.steps.base import TrainingStep
from stssl.training.checkpoint import Checkpoints


class Task(ABC):
    """One rank's parts of a run that depend on its kind.

    Attributes:
        recipe: Of the run.
        step: What is trained.
        loader: This rank's part of the global batches.
        device: Of the networks.
        data: The store, its split, and what reads it.
    """

    recipe: RunRecipe
    step: TrainingStep
    loader: Loader | PairLoader
    device: torch.device
    data: PixelData

    @property
    def rows(self) -> int:
        """Patches of a global batch of the last step, which looks at all that any does."""
        return self.loader.rows_at(self.recipe.schedule.steps - 1)

    @abstractmethod
    def batch(self, raw: Any) -> Any:
        """Turn what the loader delivered into normalized views on the device."""

    def micro_batches(self, batch: Any, progress: Progress) -> list[tuple[Any, ...]]:
        """Arguments of `step` for each micro-batch; one for the whole batch where a stage has no other way."""
        return [(batch, progress)]

    @abstractmethod
    def validate(self, progress: Progress) -> tuple[dict[str, float], float | None]:
        """Scores on the validation part, and the one that tells the best checkpoint; ranks call this together.

        That one is NaN where predictions are not finite, and None where there is nothing to choose by.

        Args:
            progress: The step that was taken last.
        """

    def looks(self, step: int) -> int:
        """Count the kinds of views a step uses; the count never falls from one step to the next."""
        return 1

    @abstractmethod
    def export(self, checkpoints: Checkpoints) -> None:
        """Write what users take from the finished run."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Describe the data for the run's record."""

    def labels(self) -> dict[str, Any] | None:
        """List the patches that kept their label, for `labels.json`; None if no labels are used."""
        return None
