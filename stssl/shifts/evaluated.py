"""Train one run of a study and score its networks, or read what an earlier start scored."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.analysis.run_views import read_arrays
from stssl.base.arrays import Ints
from stssl.base.errors import RunError
from stssl.base.exclusive import alone
from stssl.base.whole_files import is_there
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import RunData
from stssl.scoring.changed_metadata import MetadataChange
from stssl.scoring.evaluation import Evaluation, spread
from stssl.training.launch import run
from stssl.training.run_files import ScoresFile, read_run_file
from stssl.training.run_folder import RunFolder
from stssl.training.teacher_student_task import calibrate
from stssl.training.trained_run import evaluation_file, load_run, save_results, score_networks

UNLABELED = "unlabeled"
"""Name of the training patches without a drawn label among the parts. Pseudo-labels are made for them."""
MOST_UNLABELED = 4000
"""Largest number of unlabeled patches to score. They are spread evenly."""
TRUE = MetadataChange()


@dataclass(frozen=True)
class ScoredPart:
    """Hold the scores and predictions of a run's networks on some patches, as read from two files.

    Attributes:
        file: Scores of each network, from the JSON file.
        arrays: Arrays of the `.npz` file by name, such as `rows` (in the store), `targets` (labels) and
            `logits_student`.
    """

    file: ScoresFile
    arrays: Mapping[str, NDArray[Any]]


def read_scored(folder: Path, part: str, change: MetadataChange) -> ScoredPart:
    """Read the scores and predictions of the networks in a run's best checkpoint, and return them.

    Args:
        folder: Folder of the run.
        part: Scored patches: `test` or `unlabeled`.
        change: Change of the metadata that the networks got.

    Raises:
        RunError: These patches were not scored with this change, or a file is damaged or of another checkpoint.
    """
    path = evaluation_file(folder, part, change)
    advice = "Remove it: the same `stssl shift` scores the run again."
    if not is_there(path):
        raise RunError(f"there is no {path}: the same `stssl shift` writes it")
    file, tree = read_run_file(ScoresFile, path, advice)
    if file.checkpoint != "best" or tree.get("metadata", "true") != str(change):
        raise RunError(f"{path} is of another checkpoint or other metadata. {advice}")
    return ScoredPart(file, read_arrays(path.with_suffix(".npz"), file, advice))


def complete_run(recipe: Recipe, folder: Path | None, changes: Sequence[MetadataChange]) -> Path:
    """Train one run of a study to its end, and score its networks. Leave out what is done already.

    Delete the checkpoint `previous` then: a study has many runs, and this checkpoint is of no more use.

    Args:
        recipe: Recipe of the run.
        folder: Folder of the run if it is trained already; None trains it.
        changes: Changes of the metadata that the networks get on test patches, one evaluation for each.

    Returns:
        Folder of the run.

    Raises:
        StsslError: Training failed, or the networks cannot be scored.
    """
    if folder is None:
        place = RunFolder.of(recipe).path
        # Lock the folder: after a kill, a worker of the earlier start may live on for a moment and still write to it.
        with alone(place, "training"):
            folder = run(recipe).path
    wanted = [("test", change) for change in changes if change == TRUE or sees_metadata(recipe)]
    missing = [(part, change) for part, change in [*wanted, (UNLABELED, TRUE)] if not _scored(folder, part, change)]
    if missing:
        _score(folder, missing)
    RunFolder(folder).checkpoints.drop_previous()
    return folder


def sees_metadata(recipe: Recipe) -> bool:
    """Return True if a run of this recipe trains a network that sees places or dates."""
    encoder = recipe.model.encoder
    return recipe.model.metadata != "none" and (encoder.place or encoder.date)


def _scored(folder: Path, part: str, change: MetadataChange) -> bool:
    try:
        read_scored(folder, part, change)
    except RunError:
        return False
    return True


def _score(folder: Path, missing: Sequence[tuple[str, MetadataChange]]) -> None:
    trained = load_run(folder)
    calibrate(trained.step, trained.recipe, trained.data, trained.pixels, trained.progress)
    rows = {"test": trained.data.split.test, UNLABELED: unlabeled_rows(trained.data)}
    known = dict[str, Evaluation]()
    for part, change in sorted(missing, key=lambda one: one[1] != TRUE):
        results = score_networks(trained, part, rows[part], change, known if change != TRUE else None)
        if (part, change) == ("test", TRUE) and len(results) > 1:
            # Reuse the student's evaluation for all changes of metadata: beside a teacher, it sees images alone.
            known = {"student": results["student"]}
        save_results(trained, results, part, change, "best")


def unlabeled_rows(data: RunData) -> Ints:
    """Return the numbers, in the store, of the training patches whose labels the training does not use.

    If there are more than `MOST_UNLABELED`, return only so many, evenly spread.
    """
    return spread(np.setdiff1d(data.split.train, data.labeled), MOST_UNLABELED)


def limit_threads(recipe: Recipe, cpus: float) -> None:
    """Let this process compute with one thread for each of the `cpus` that it may use.

    If the recipe of the run sets a number of threads, PyTorch uses that number.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(cpus))))
    torch.set_num_threads(recipe.compute.threads or max(1, int(cpus)))
