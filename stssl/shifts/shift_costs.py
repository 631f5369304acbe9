"""Say before a study of metadata under shift starts which runs it has, and how long they will take."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stssl.analysis.costs import CostEstimate
from stssl.analysis.planning import machines_for, plan_run
from stssl.base.logs import LOG
from stssl.base.whole_files import as_size, free_room, nearest_folder
from stssl.shifts.evaluated import MOST_UNLABELED, sees_metadata
from stssl.shifts.settings import ShiftSetting
from stssl.shifts.trainings import TRAINED, Training
from stssl.training.run_folder import RunFolder

COPIES_KEPT = 2
"""Largest number of checkpoints that a finished run of a study has on disk: last and best."""
TIMED_STEPS = 3
"""Number of steps that are timed for each kind of training."""


def describe_study(
    trainings: Sequence[Training], finished: Mapping[str, RunFolder], setting: ShiftSetting, storage: Path
) -> str:
    """Return text on a study's runs and their time, estimated from a few steps of each kind of training.

    These steps are taken and timed in this process. Write no files.

    Args:
        trainings: All trainings of the study.
        finished: Folders of the finished runs by the hash of their recipe. These runs need no more time.
        setting: Splits of the study, and changes of the metadata at test.
        storage: Folder into which the runs write. It need not exist.

    Returns:
        Text for the user, with the splits, the changes, the runs, their hours, and the disk room for their checkpoints.

    Raises:
        StsslError: A run does not fit into memory.
    """
    left = [one for one in trainings if one.recipe.hash() not in finished]
    lines = [
        f"splits     {', '.join(split.name for split in setting.splits)}",
        f"metadata   {', '.join(map(str, setting.changes))}",
        *(f"note       {words}" for words in setting.notes),
        f"runs       {len(trainings)}: {', '.join(TRAINED)} for each split and each of "
        f"{len({one.seed for one in trainings})} seeds; {len(trainings) - len(left)} are finished",
    ]
    total, room, known = 0.0, 0, dict[str, CostEstimate]()
    for kind in TRAINED:
        own = [one for one in left if one.kind == kind]
        if not own:
            continue
        # `teacher` and `control` have the same `model.metadata` and train networks of the same size: time only one.
        like = own[0].recipe.model.metadata
        if like not in known:
            known[like] = plan_run(own[0].recipe, machines_for(own[0].recipe, 1, None, 10.0), TIMED_STEPS)
        found = known[like]
        scoring = _scoring_hours(own[0], setting, found.validation)
        total += len(own) * (found.hours + scoring)
        room += len(own) * COPIES_KEPT * found.checkpoint
        lines.append(
            f"{kind:<10} {len(own)} runs, each {found.hours:.3f} hours of training and {scoring:.3f} of scoring"
        )
    lines.append(f"together   {total:.2f} hours, one run at a time in one process like this one")
    lines.append(f"disk       up to {as_size(room)} for checkpoints of finished runs; {free_room(storage)}")
    if room > shutil.disk_usage(nearest_folder(storage)).free:
        LOG.warning("the study needs up to %s for checkpoints of finished runs; %s", as_size(room), free_room(storage))
    return "\n".join(lines)


def _scoring_hours(training: Training, setting: ShiftSetting, validation: float) -> float:
    """Return the estimated hours to score the networks of one run of a study, once it is trained.

    Args:
        training: Training of the run.
        setting: Splits of the study, and changes of the metadata at test.
        validation: Seconds of one validation, which scores one network on validation patches.
    """
    parts, recipe = training.split.parts, training.recipe
    scored = len(parts.validation) if recipe.evaluation.limit is None else recipe.evaluation.limit
    networks = 2 if recipe.model.metadata == "teacher" else 1
    changes = len(setting.changes) - 1 if sees_metadata(recipe) else 0
    patches = (networks + changes) * len(parts.test) + networks * min(len(parts.train), MOST_UNLABELED)
    return validation * patches / max(1, scored) / 3600
