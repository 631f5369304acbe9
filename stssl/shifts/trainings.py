"""List the trainings of a study, and find those that are finished.

Three trainings of one recipe, one split and one seed give five networks:

- `teacher`: the recipe as it is. It gives the teacher and the student.
- `direct`: one network that sees metadata in training and at test, and makes its own pseudo-labels.
- `control`: the recipe without any metadata. Its teacher never sees a place or a date, and no neighbors vote.
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
    """Describe one training of a study.

    Attributes:
        kind: `teacher`, `direct` or `control`.
        split: Split of the data.
        seed: Seed of the run and of its drawn labels.
        recipe: Recipe of the run.
    """

    kind: str
    split: ShiftSplit
    seed: int
    recipe: Recipe


def trainings_of(recipe: Recipe, setting: ShiftSetting, options: ShiftOptions, storage: Path) -> list[Training]:
    """List all trainings of a study: for each seed, each split and each kind.

    Args:
        recipe: Recipe with a teacher.
        setting: Splits of the study.
        options: Number of seeds.
        storage: Folder of the runs.
    """
    return [
        Training(kind, split, seed, _recipe(recipe, kind, split, seed, storage))
        for seed in range(recipe.seed, recipe.seed + options.seeds)
        for split in setting.splits
        for kind in TRAINED
    ]


def _recipe(recipe: Recipe, kind: str, split: ShiftSplit, seed: int, storage: Path) -> Recipe:
    """Change the seeds, the split, the metadata, the name and the folder of a recipe."""
    changes: dict[str, object] = {"name": f"{split.slug}-{kind}-s{seed}", "seed": seed}
    changes["labels"] = recipe.labels.model_copy(update={"seed": seed})
    changes["data"] = recipe.data.model_copy(update={"split": split.config})
    # Each run trains in one process: the study runs several at a time.
    changes["launch"] = recipe.launch.model_copy(update={"workers": 0, "storage": str(storage)})
    changes["logging"] = recipe.logging.model_copy(update={"tensorboard": False, "mlflow": None})
    if kind == "direct":
        changes["model"] = recipe.model.model_copy(update={"metadata": "direct"})
    if kind == "control":
        encoder = recipe.model.encoder.model_copy(update={"place": False, "date": False})
        changes["model"] = recipe.model.model_copy(update={"encoder": encoder})
        changes["votes"] = NoVotesConfig()  # votes know places
    return recipe.model_copy(update=changes)


def check_trainings(trainings: Sequence[Training], finished: Mapping[str, RunFolder]) -> list[str]:
    """Check before the first run starts that data and networks fit all trainings that are not finished.

    Args:
        trainings: The runs.
        finished: Finished runs by the hash of their recipe.

    Returns:
        Lines for the user on what the first run trains on.

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
    """Find the finished training runs in a folder, by the hash of their recipe."""
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
