"""The stage of teacher-student runs."""

from collections.abc import Iterator
from math import isnan
from typing import Any

import torch
from torch import Tensor

from stssl.base.batch import Batch, Progress, View
from stssl.base.distributed import rank, world_size
from stssl.data.views import PixelScaler, RawBatch, ViewMaker
from stssl.models.ema import average_batchnorm
from stssl.models.layout import placed
from stssl.recipes.build import build_loader, build_pixels, build_step
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import RunData, open_data
from stssl.scoring.evaluation import Evaluation, evaluate
from stssl.scoring.metrics import diverged, headline
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.training.checkpoint import Checkpoints, export_weights
from stssl.training.task import Task

STUDENT = "averages.student.network."


class TeacherStudentTask(Task):
    """Labeled and unlabeled streams through a teacher-student step."""

    recipe: Recipe
    step: TeacherStudentStep
    data: RunData

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """Build this rank's parts.

        Raises:
            ConfigError: The recipe asks for what the store or the networks cannot give.
            DataError: The store cannot be read.
        """
        self.recipe, self.device = recipe, device
        self.data = open_data(recipe, device)
        self.step = build_step(recipe, self.data)
        memory = placed(self.step, device)
        self.views = ViewMaker(build_pixels(recipe.data, recipe.model.image_size, self.data, memory)).to(device)
        self.loader = build_loader(recipe, self.data, self._views_at, rank(), world_size())

    def _views_at(self, step: int) -> frozenset[View]:
        return self.step.views_at(Progress(step, self.recipe.schedule.steps))

    def batch(self, raw: RawBatch) -> Batch:
        """The views that were drawn: those that the step looks at."""
        made: Batch = self.views(raw)
        return made

    def micro_batches(self, batch: Batch, progress: Progress) -> list[tuple[Any, ...]]:
        """Micro-batches where the recipe asks for them, with what each is to match."""
        micro, most = self.recipe.batch.micro, -(-self.recipe.batch.labeled // world_size())
        if micro is None or most <= micro:  # decided by the largest rank: all ranks plan, or none does
            return [(batch, progress)]
        parts = max(1, -(-len(batch.labels) // micro))
        plans = self.step.plan(batch, progress, parts)
        return [(small, progress, plan) for small, plan in zip(batch.split(parts), plans, strict=True)]

    def looks(self, step: int) -> int:
        """Fewer in a supervised start than after it."""
        return len(self._views_at(step))

    def validate(self, progress: Progress) -> tuple[dict[str, float], float | None]:
        """Score the averaged student, its BatchNorm statistics estimated anew."""
        average_batchnorm(self.step)
        scores = self.evaluate_student("validation", progress).scores
        score = scores[headline(self.data.space)]
        # No class has a positive in this part: there is nothing to choose by.
        return scores, None if isnan(score) and not diverged(scores) else score

    def evaluate_student(self, part: str, progress: Progress) -> Evaluation:
        """Score the averaged student on one part of the split; `progress` is the step that was taken last."""
        options, pixels = self.recipe.evaluation, self.views.pixels
        calibrate(self.step, self.recipe, self.data, pixels, progress)
        predictor = self.step.predictor("student")
        return evaluate(predictor, self.data, pixels, part, batch=options.batch, limit=options.limit)

    def export(self, checkpoints: Checkpoints) -> None:
        """Write the best student, what users ship, as `student.safetensors`.

        `backbone.` is timm's network; `site.` and the like are what the recipe's injection and metadata add to it.
        """
        export_weights(checkpoints, STUDENT, "student")

    def about(self) -> dict[str, Any]:
        """Store, parts and number of labels."""
        return self.data.about(world_size()) | {"labeled": len(self.data.labeled)}

    def labels(self) -> dict[str, Any]:
        """The drawn labels: the rule, store rows, patch names, class frequencies and choice ids."""
        data = self.data
        names = data.store.column("patch_id")[data.labeled]
        return {
            "rule": self.recipe.labels.model_dump(),
            "rows": data.labeled.tolist(),
            "patches": [str(name) for name in names],
            "prior": [round(float(value), 6) for value in data.space.outputs(data.prior())],
            "targets": data.targets[data.labeled].tolist(),
        }


def calibrate(step: TeacherStudentStep, recipe: Recipe, data: RunData, pixels: PixelScaler, progress: Progress) -> None:
    """Estimate BatchNorm statistics for averaged weights from training batches, the same on every rank.

    `progress` is the step that the weights took last: of a supervised start the batches have labeled patches alone.

    Batches must be composed as in training (views and classes mixed, in micro-batches where there are any), since that
    is what the weights are used to: neighboring store rows would often share a class, and unaugmented ones alone cost
    points of accuracy. With `evaluation.batchnorm_batches: 0` the averages keep the networks' own running statistics.

    Args:
        step: Networks and averages.
        recipe: Recipe of the run.
        data: Training patches.
        pixels: Scales stored bands to images.
        progress: The step that the weights took last.
    """
    if not recipe.evaluation.batchnorm_batches:
        return
    views = step.views_at(progress) - {View.UNLABELED_WEAK}
    loader, maker = build_loader(recipe, data, lambda _: views), ViewMaker(pixels)
    parts = -(-recipe.batch.labeled // (recipe.batch.micro or recipe.batch.labeled))

    def mixed() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(recipe.evaluation.batchnorm_batches):
            for batch in maker(loader.load(number)).split(parts):
                metadata = torch.cat([batch.metadata[view.stream] for view in batch.images])
                yield torch.cat(list(batch.images.values())), metadata

    step.reestimate_batchnorm(mixed)
