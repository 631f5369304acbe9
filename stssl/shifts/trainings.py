"""List the trainings of a study of metadata under shift, and find those that are finished.

For each split and seed, a study trains three kinds of runs, which give five networks:

- `teacher`: the recipe as it is. It gives the teacher, which sees metadata, and the student, which sees images alone.
- `direct`: one network that sees metadata in training and at test, and makes its own pseudo-labels.
- `control`: the recipe without any metadata, with a teacher and a student. Its teacher never sees a place or a date,
  and no votes of neighboring patches change its pseudo-labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stssl.base.errors import RunError, StsslError
from stssl.base.logs import LOG
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data
from stssl.shifts.settings import ShiftOptions, ShiftSetting, ShiftSplit
from stssl.steps.votes import NoVotesConfig
from stssl.training.launch import check_run
from stssl.training.run_folder import RunFolder

TRAINED = ("teacher", "direct", "control")


@dataclass(frozen=True)
class Training:
    """Describe one training run of a study.

    Attributes:
        kind: `teacher`, `direct` or `control`.
        split: Split of the study on which the run trains.
        seed: Seed of the run and of the random choice of its labels.
        recipe: Recipe of the run.
    """

    kind: str
    split: ShiftSplit
    seed: int
    recipe: Recipe


def trainings_of(recipe: Recipe, setting: ShiftSetting, options: ShiftOptions, storage: Path) -> list[Training]:
    """Return all trainings of a study: one for each seed, split and kind. Train nothing.

    Args:
        recipe: Recipe of the study, with a teacher that sees metadata.
        setting: Splits of the study.
        options: Options of the study, of which the number of seeds is used.
        storage: Folder into which the runs write.
    """
    return [
        Training(kind, split, seed, _recipe(recipe, kind, split, seed, storage))
        for seed in range(recipe.seed, recipe.seed + options.seeds)
        for split in setting.splits
        for kind in TRAINED
    ]


def _recipe(recipe: Recipe, kind: str, split: ShiftSplit, seed: int, storage: Path) -> Recipe:
    """Return the recipe of one training of a study: the study's recipe, changed for this kind, split and seed.

    Args:
        recipe: Recipe of the study.
        kind: `teacher`, `direct` or `control`.
        split: Split on which the run trains.
        seed: Seed of the run and of the random choice of its labels.
        storage: Folder into which the run writes.
    """
    changes: dict[str, object] = {"name": f"{split.slug}-{kind}-s{seed}", "seed": seed}
    changes["labels"] = recipe.labels.model_copy(update={"seed": seed})
    changes["data"] = recipe.data.model_copy(update={"split": split.config})
    # Train each run in one process, without Ray: the study itself trains several runs at a time on the machine.
    changes["launch"] = recipe.launch.model_copy(update={"workers": 0, "storage": str(storage)})
    changes["logging"] = recipe.logging.model_copy(update={"tensorboard": False, "mlflow": None})
    if kind == "direct":
        changes["model"] = recipe.model.model_copy(update={"metadata": "direct"})
    if kind == "control":
        encoder = recipe.model.encoder.model_copy(update={"place": False, "date": False})
        changes["model"] = recipe.model.model_copy(update={"encoder": encoder})
        # Neighboring patches vote on pseudo-labels by their distance, so votes would bring places into the control.
        changes["votes"] = NoVotesConfig()
    return recipe.model_copy(update=changes)


def check_trainings(trainings: Sequence[Training], finished: Mapping[str, RunFolder]) -> list[str]:
    """Check before a study starts that data and networks fit all its trainings that are not finished.

    Args:
        trainings: All trainings of the study.
        finished: Folders of the finished runs by the hash of their recipe.

    Returns:
        Lines for the user on the data of the first run to train: patches of each part, labels and bands.

    Raises:
        StsslError: A training cannot run. The message says which.
    """
    lines, seen = list[str](), set[str]()
    for training in trainings:
        if training.recipe.hash() in finished:
            continue
        try:
            RunFolder.of(training.recipe).refuse_others(training.recipe)
        except RunError:
            raise RunError(
                f"{RunFolder.of(training.recipe).path} holds a run of another recipe. Give this study another folder "
                "(--out), or delete that one."
            ) from None
        try:
            if training.kind not in seen:
                told = check_run(training.recipe)
                lines = lines or told
            elif training.kind == "teacher":
                open_data(training.recipe)
        except StsslError as error:
            raise type(error)(f"split {training.split.name}, seed {training.seed}: {error}") from None
        seen.add(training.kind)
    return lines


def finished_runs(storage: Path) -> dict[str, RunFolder]:
    """Return the folders of the finished training runs below the folder `storage`, by the hash of their recipe.

    Leave out runs that cannot be read, with a warning.
    """
    found: dict[str, RunFolder] = {}
    for file in sorted(storage.glob("*/done.json")):
        folder = RunFolder(file.parent)
        try:
            recipe = folder.recipe()
            if isinstance(recipe, Recipe) and folder.finished():
                found.setdefault(recipe.hash(), folder)
        except StsslError as error:
            LOG.warning("left out: %s", error)
    return found
