"""Runs that were trained: their networks back from a checkpoint, scored on any part of their split."""

from pathlib import Path

import torch

from stssl.batch import Progress
from stssl.build import as_trained, build_pixels, build_step
from stssl.errors import ConfigError, RunError
from stssl.evaluate import Evaluation, evaluate, save_evaluations
from stssl.models.layout import placed
from stssl.paths import store_given
from stssl.recipe import Recipe
from stssl.rundata import RunData, open_data
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.train.checkpoint import read_state
from stssl.train.folder import RunFolder
from stssl.train.teaching import calibrate
from stssl.views import Pixels


def load_run(
    folder: RunFolder, checkpoint: str, device: torch.device, store: str | None = None
) -> tuple[Recipe, RunData, TeacherStudentStep, Pixels, int]:
    """A run's recipe, data, trained step, scaling, and the checkpoint's step; `store` is where its store lies now.

    Raises:
        RunError: There is no such checkpoint, it is damaged, or the store is not the one that the run was trained on.
    """
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"unknown checkpoint '{checkpoint}': give best or last")
    path = folder.checkpoints.path(checkpoint)
    if not path.exists():
        raise RunError(f"{folder.path} has no {checkpoint} checkpoint yet. Train it to its first evaluation.")
    recipe = folder.recipe_as(Recipe)
    if store is not None:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"store": store_given(store, "--store")})}
        )
    data = open_data(recipe)
    folder.require_store(data.store)
    state = read_state(path)
    step = build_step(as_trained(recipe), data)
    step.load_state_dict({name: value for name, value in state["step"].items() if not name.startswith("neighbours.")})
    memory = placed(step, device)
    pixels = build_pixels(recipe.data, recipe.model.image_size, data, memory).to(device)
    return recipe, data, step, pixels, int(state["position"]["step"])


def evaluate_run(
    path: str | Path, part: str, checkpoint: str = "best", device: str = "auto", store: str | None = None
) -> dict[str, dict[str, float]]:
    """Score the networks of a run on all of a part and write `evaluation/<part>.json` (and logits beside it).

    Args:
        path: The run's folder.
        part: `train`, `validation` or `test`.
        checkpoint: `best` or `last`.
        device: `cpu`, `cuda` or `auto`.
        store: Where the run's store lies now, if not where it was trained.

    Returns:
        Scores of the student (averaged weights), and of the teacher where there is one.

    Raises:
        ConfigError: Unknown part, checkpoint or device.
        DataError: No patch of the part has a known label.
        RunError: There is no such checkpoint, or the store is not the one that the run was trained on.
    """
    folder = RunFolder.existing(path)
    recipe, data, step, pixels, at = load_run(folder, checkpoint, _device(device), store)
    data.split.part(part)
    calibrate(step, recipe, data, pixels, Progress(at - 1, recipe.schedule.steps))
    results: dict[str, Evaluation] = {}
    for network in ("student", "teacher")[: len(step.networks)]:
        predictor = step.predictor(network)
        results[network] = evaluate(predictor, data, pixels, part, batch=recipe.evaluation.batch, limit=None)
    about = {"checkpoint": checkpoint, "step": at, "recipe_hash": recipe.hash(), "name": recipe.name}
    save_evaluations(results, data, part, folder.path / "evaluation" / f"{part}.json", about)
    return {network: result.scores for network, result in results.items()}


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{name}': give cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that PyTorch can use: give device cpu or auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
