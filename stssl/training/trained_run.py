"""Runs that were trained: their networks back from a checkpoint, scored on any part of their split."""

from pathlib import Path

import torch

from stssl import __version__
from stssl.base.batch import Progress
from stssl.base.errors import ConfigError, RunError
from stssl.base.paths import store_given
from stssl.base.whole_files import is_there
from stssl.data.views import PixelScaler
from stssl.models.layout import placed
from stssl.recipes.build import as_trained, build_pixels, build_step
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import RunData, open_data
from stssl.scoring.evaluation import Evaluation, evaluate, save_evaluations
from stssl.scoring.metrics import diverged
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.training.checkpoint import CheckpointState, UnusableError, does_not_fit, read_state, require_state
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import log
from stssl.training.teacher_student_task import calibrate


def load_run(
    folder: RunFolder, checkpoint: str, device: torch.device, store: str | None = None
) -> tuple[Recipe, RunData, TeacherStudentStep, PixelScaler, int]:
    """Load a run's recipe, data, trained step, scaling, and the checkpoint's step.

    Args:
        folder: Folder of the run.
        checkpoint: `best` or `last`.
        device: Device of the networks.
        store: Where the run's store lies now, if not where it was trained.

    Raises:
        RunError: There is no such checkpoint, it is damaged, or the store is not the one that the run was trained on.
    """
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"unknown checkpoint '{checkpoint}': give best or last")
    path = folder.checkpoints.path(checkpoint)
    if not is_there(path):
        if not folder.checkpoints.exist():
            raise RunError(f"{folder.path} has no {checkpoint} checkpoint yet. Train it to its first evaluation.")
        if checkpoint == "best" and never_finite(folder):
            raise RunError(
                f"{folder.path} has no best checkpoint: no validation had finite predictions so far. Give --checkpoint "
                "last to see the last one."
            )
    recipe = folder.recipe_as(Recipe)
    expected = recipe.hash()
    if store is not None:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"store": store_given(store, "--store")})}
        )
    data = open_data(recipe)
    folder.require_store(data.store)
    state = read_own_state(folder, path, expected)
    step = build_step(as_trained(recipe), data)
    weights = {name: value for name, value in state["step"].items() if not str(name).startswith("votes.")}
    try:
        step.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise does_not_fit(path, state, error) from None
    memory = placed(step, device)
    pixels = build_pixels(recipe.data, recipe.model.image_size, data, memory).to(device)
    return recipe, data, step, pixels, int(state["progress"]["step"])


def never_finite(folder: RunFolder) -> bool:
    """True if a run has come to a checkpoint, and to none with finite predictions, which could be the best."""
    states = [state for _, state in folder.checkpoints.newest() if not isinstance(state, UnusableError)]
    return bool(states) and not dict(states[0].get("position", {})).get("best_step")


def read_own_state(folder: RunFolder, path: Path, recipe: str, advice: str = "") -> CheckpointState:
    """A run's checkpoint; one that an earlier version wrote may know the recipe by the hash of that time.

    Args:
        folder: Of the run.
        path: Of the checkpoint; for the best one, another that is the same serves as well.
        recipe: Hash of the run's recipe.
        advice: What to do where it cannot be used, if not to evaluate another one.

    Raises:
        RunError: It is damaged, or another run's; says what can be used instead.
    """
    best = path == folder.checkpoints.path("best")
    try:
        state = folder.checkpoints.best() if best else require_state(read_state(path), path)
        earlier = folder.recorded()[1].get("recipe_hash") if state.get("written_by") != __version__ else None
        return require_state(state, path, recipe if state["recipe"] != earlier else None)
    except UnusableError as error:
        other = "last" if best else "best"
        whole = f"Give --checkpoint {other}, or put" if is_there(folder.checkpoints.path(other)) else "Put"
        raise RunError(f"{error}. {advice or f'{whole} a whole one back.'}") from None


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
        if diverged(results[network].scores):
            log().warning("the %s's predictions on %s are not finite, so they have no scores", network, part)
    about = {"checkpoint": checkpoint, "step": at, "recipe_hash": recipe.hash(), "name": recipe.name}
    save_evaluations(results, data, part, folder.path / "evaluation" / f"{part}.json", about)
    return {network: result.scores for network, result in results.items()}


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{name}': give cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that PyTorch can use: give device cpu or auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
