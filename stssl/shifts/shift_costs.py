"""Say before a study starts which runs it has, and what they will cost."""

from collections.abc import Mapping, Sequence

from stssl.analysis.costs import CostEstimate
from stssl.analysis.planning import machines_for, plan_run
from stssl.shifts.evaluated import MOST_UNLABELED, sees_metadata
from stssl.shifts.settings import ShiftSetting
from stssl.shifts.trainings import TRAINED, Training
from stssl.training.run_folder import RunFolder

TIMED_STEPS = 3
"""Number of steps that are timed for each kind of training."""


def describe_study(trainings: Sequence[Training], finished: Mapping[str, RunFolder], setting: ShiftSetting) -> str:
    """Time a few steps of each kind of training in this process, and estimate the time of a study. Write nothing.

    Args:
        trainings: The runs.
        finished: Finished runs by the hash of their recipe.
        setting: Splits and metadata of the study.

    Returns:
        Text for the user.

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
    total, known = 0.0, dict[str, CostEstimate]()
    for kind in TRAINED:
        own = [one for one in left if one.kind == kind]
        if not own:
            continue
        like = own[0].recipe.model.metadata  # the control has the networks of the teacher, so it costs the same
        if like not in known:
            known[like] = plan_run(own[0].recipe, machines_for(own[0].recipe, 1, None, 10.0), TIMED_STEPS)
        found = known[like]
        scoring = _scoring_hours(own[0], setting, found.validation)
        total += len(own) * (found.hours + scoring)
        lines.append(
            f"{kind:<10} {len(own)} runs, each {found.hours:.3f} hours of training and {scoring:.3f} of scoring"
        )
    lines.append(f"together   {total:.2f} hours, one run at a time in one process like this one")
    return "\n".join(lines)


def _scoring_hours(training: Training, setting: ShiftSetting, validation: float) -> float:
    """Estimate the hours to score a run from the seconds of a validation, which scores one network."""
    parts, recipe = training.split.parts, training.recipe
    scored = len(parts.validation) if recipe.evaluation.limit is None else recipe.evaluation.limit
    networks = 2 if recipe.model.metadata == "teacher" else 1
    changes = len(setting.changes) - 1 if sees_metadata(recipe) else 0
    patches = (networks + changes) * len(parts.test) + networks * min(len(parts.train), MOST_UNLABELED)
    return validation * patches / max(1, scored) / 3600
