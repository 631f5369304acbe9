"""Define the task of a `Recipe`: semi-supervised training of a student and, if the recipe has one, a teacher."""

from collections.abc import Iterator
from functools import partial
from math import isnan, nan

import torch
from torch import Tensor

from stssl.base.batch import Batch, Progress, View
from stssl.base.distributed import rank, world_size
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.data.loader import prefetch
from stssl.data.views import PixelScaler, RawBatch, ViewMaker
from stssl.models.ema import average_batchnorm
from stssl.models.layout import placed
from stssl.recipes.build import build_loader, build_pixels, build_step, check_recipe
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import RunData, open_data
from stssl.recipes.starting import Start
from stssl.scoring.evaluation import Evaluation, score_part
from stssl.scoring.metrics import diverged, headline
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.students.description import KEY
from stssl.students.samples import SAMPLES_FILE, write_samples
from stssl.training.checkpoints import Checkpoints, export_weights
from stssl.training.describe import describe_student, take_samples
from stssl.training.task import Task, Validation

STUDENT = "averages.student.network."


class TeacherStudentTask(Task[Recipe, RawBatch, Batch]):
    """Train a student and an optional teacher on labeled and unlabeled patches, with averages of their weights."""

    step: TeacherStudentStep
    data: RunData

    def __init__(self, recipe: Recipe, device: torch.device, recorded: JsonMapping | None = None) -> None:
        """Open the data, and build networks and loader for one rank (training process).

        Args:
            recipe: Recipe to build from.
            device: Device of the networks.
            recorded: The run's record, if the run resumes. It says how images are scaled.
        """
        self.recipe, self.device = recipe, device
        self.data = open_data(recipe, device)
        self.start = Start(recipe, self.data, recorded)
        self.step = build_step(recipe, self.data, self.start.weights)
        memory = placed(self.step, device)
        pixels = build_pixels(recipe.data, recipe.model.image_size, self.data, memory, self.start.scaling)
        self.views = ViewMaker(pixels).to(device)
        self.loader = build_loader(recipe, self.data, self._views_at, rank(), world_size())

    @classmethod
    def check(cls, recipe: Recipe) -> list[str]:
        """Check before a run starts that data and networks fit the recipe. Train nothing.

        Return lines of text for the user that say what the run trains on.
        """
        return check_recipe(recipe)

    def _views_at(self, step: int) -> frozenset[View]:
        return self.step.views_at(Progress(step, self.recipe.schedule.steps))

    def batch(self, raw: RawBatch) -> Batch:
        """Return the augmented views of a step, on the networks' device, made from the stored patches in `raw`.

        The loader has already made all random choices for the views, and stored them in `raw`.
        """
        made: Batch = self.views(raw)
        return made

    def micro_batches(self, batch: Batch, progress: Progress) -> list[tuple[object, ...]]:
        """Divide a batch into micro-batches if the recipe asks for them, or make one micro-batch of all patches.

        Return for each micro-batch a tuple with the arguments of the training step. If there are several, these
        arguments include pseudo-labels, which the algorithm makes from all patches of the batch at once.

        Args:
            batch: Augmented views of the step's patches.
            progress: Number of the step to take, and number of all steps.
        """
        micro, most = self.recipe.batch.micro, -(-self.recipe.batch.labeled // world_size())
        # Compare with `most`, the largest number of labeled patches of any rank: all ranks must decide the same. `plan`
        # exchanges data between ranks. If one rank did not call it, the others would wait forever.
        if micro is None or most <= micro:
            return [(batch, progress)]
        parts = max(1, -(-len(batch.labels) // micro))
        plans = self.step.plan(batch, progress, parts)
        return [(small, progress, plan) for small, plan in zip(batch.split(parts), plans, strict=True)]

    def view_count(self, step: int) -> int:
        """Return how many kinds of augmented views step `step` uses. Steps that learn from labels only use fewer."""
        return len(self._views_at(step))

    def validate(self, progress: Progress) -> Validation:
        """Compute the BatchNorm statistics of the averaged student anew, and score it on the validation patches.

        Return the scores by name, and the one that chooses the best checkpoint. The averaged teacher is scored, too.
        Its scores have names such as `teacher_mAP`, and choose no checkpoint.

        With `evaluation.checkpoint: last`, the scores only inform users, and the newest checkpoint with finite
        predictions counts as the best. Without validation patches, the scores are empty, and weights must be finite.

        Args:
            progress: The last step that was taken.
        """
        average_batchnorm(self.step)
        if not len(self.data.split.validation):
            return Validation({}, None if self._finite() else nan)
        scores = self.evaluate_student("validation", progress).scores
        score = scores[headline(self.data.space)]
        shown = {**scores, **self._teacher_scores()}
        if self.recipe.evaluation.checkpoint == "last":
            return Validation(shown, nan if diverged(scores) else None)
        # Return None if the score is NaN but predictions are finite: no validation patch has any class, so there is
        # nothing to score, and the newest checkpoint must count as the best.
        return Validation(shown, None if isnan(score) and not diverged(scores) else score)

    def _teacher_scores(self) -> dict[str, float]:
        """Return the averaged teacher's validation scores, by names such as `teacher_mAP`.

        Return an empty dict for a run without a teacher.
        """
        if "teacher" not in self.step.averages:
            return {}
        found = self._scored("teacher", "validation").scores
        return {f"teacher_{name}": value for name, value in found.items()}

    def _finite(self) -> bool:
        """Return True if all weights of the averaged student are finite, so that they can be used."""
        return all(bool(torch.isfinite(value).all()) for value in self.step.averaged_network("student").parameters())

    def evaluate_student(self, part: str, progress: Progress) -> Evaluation:
        """Compute the BatchNorm statistics of the averaged student anew, and score it on a part of the data.

        Return its scores and its logits.

        Args:
            part: `train`, `validation` or `test`.
            progress: The last step that was taken.
        """
        calibrate(self.step, self.recipe, self.data, self.views.pixels, progress)
        return self._scored("student", part)

    def _scored(self, network: str, part: str) -> Evaluation:
        options = self.recipe.evaluation
        predictor = self.step.predictor(network)
        return score_part(predictor, self.data, self.views.pixels, part, batch=options.batch, limit=options.limit)

    def export(self, checkpoints: Checkpoints) -> None:
        """Write the student in the best of `checkpoints` as `student.safetensors`, the file that users ship.

        The file lies beside the checkpoints. Write a file with sample patches, too. The header of `student.safetensors`
        describes the student. Weights with names that start with `backbone.` belong to timm's network. Other names,
        such as `site.`, belong to layers that inject metadata into this network.
        """
        cdmad = self.step.algorithm.needs_blank
        description = describe_student(self.recipe, self.data, self.views.pixels, cdmad)
        write_samples(checkpoints.folder / SAMPLES_FILE, take_samples(self.data, description))
        export_weights(checkpoints, STUDENT, "student", {KEY: description.text()})

    def about(self) -> JsonObject:
        """Return a description of the data for the run's record: the store, and the number of patches in each part.

        It also has the number of labeled patches, and how images are scaled.
        """
        return self.data.about(world_size()) | {"labeled": len(self.data.labeled)} | self.start.about()

    def labels(self) -> JsonObject:
        """Return a description of the labeled patches for `labels.json`.

        It has the rule that chose these patches, their numbers in the store, their names and targets, and the frequency
        of each class.
        """
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
    """Compute the BatchNorm statistics of networks with averaged weights from training batches, and store them there.

    All ranks call this together. Each runs its share of the batches through the networks, and all get the same result.
    If `evaluation.batchnorm_batches` is 0, the averages keep the networks' own running statistics.

    Args:
        step: Training step with the networks and the averages of their weights, which this function changes.
        recipe: Recipe of the run.
        data: Training patches.
        pixels: Module that scales stored bands to images.
        progress: Point of training that the weights have reached. It decides the batches: in a supervised start they
            have only labeled patches.
    """
    if not recipe.evaluation.batchnorm_batches:
        return
    # Use batches with the same mix of views and classes as those on which the weights were trained. Neighboring patches
    # of the store often share a class, and patches without augmentation cost points of accuracy.
    views = step.views_at(progress) - {View.UNLABELED_WEAK}
    loader, maker = build_loader(recipe, data, lambda _: views), ViewMaker(pixels)
    parts = -(-recipe.batch.labeled // (recipe.batch.micro or recipe.batch.labeled))

    def mixed() -> Iterator[tuple[Tensor, Tensor]]:
        numbers = range(rank(), recipe.evaluation.batchnorm_batches, world_size())
        for raw in prefetch((partial(loader.load, number) for number in numbers), 2):
            for batch in maker(raw).split(parts):
                metadata = torch.cat([batch.metadata[view.stream] for view in batch.images])
                yield torch.cat(list(batch.images.values())), metadata

    step.reestimate_batchnorm(mixed)
