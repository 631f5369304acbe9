"""Run a study of metadata under shift: train and score networks, compare them, and write tables and a report page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stssl.base.exclusive import alone
from stssl.base.job_copy import vanishing
from stssl.base.logs import LOG
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import labels_of
from stssl.shifts.claims import claim_sentences
from stssl.shifts.distances import gains_by_distance
from stssl.shifts.effects import all_effects, all_scores, study_of
from stssl.shifts.files import ShiftFindings, save_findings
from stssl.shifts.ray_tasks import ShiftWork, complete_runs
from stssl.shifts.settings import ShiftOptions, choose_setting, places_of, require_teacher
from stssl.shifts.shift_costs import describe_study
from stssl.shifts.shift_report import write_shift_report
from stssl.shifts.trainings import check_trainings, finished_runs, trainings_of
from stssl.store.store import Store

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ShiftStudy:
    """Hold the results of a study of metadata under shift, and the paths of its files.

    Attributes:
        claims: Sentence on each claim, by the claim's name: `pseudo-labels`, `metadata at test`, `student`.
        findings: Scores, comparisons of networks, and gains by distance.
        scores: Path of the table of all scores (Parquet).
        report: Path of the HTML page with the results.
    """

    claims: dict[str, str]
    findings: ShiftFindings
    scores: Path
    report: Path


def study_folder(recipe: Recipe, out: Path | None) -> Path:
    """Return the absolute path of a study's folder: `out`, or `shifts/NAME` if `out` is None.

    NAME is the recipe's name without its seed, such as `eurosat` for `eurosat-s0`.
    """
    return Path(out or Path("shifts") / recipe.name.removesuffix(f"-s{recipe.seed}")).absolute()


def plan_shift(recipe: Recipe, options: ShiftOptions, out: Path | None = None) -> str:
    """Return a text that says which runs a study has, and how long they will take. Write nothing.

    Args:
        recipe: Recipe with a teacher that sees metadata.
        options: Seeds, splits and changes of the metadata at test.
        out: Folder of the study; None takes `shifts/NAME`.

    Raises:
        StsslError: The recipe, the store or the options do not allow the study.
    """
    require_teacher(recipe)
    setting, storage = choose_setting(recipe, options), study_folder(recipe, out) / "runs"
    trainings, finished = trainings_of(recipe, setting, options, storage), finished_runs(storage)
    check_trainings(trainings, finished)
    return describe_study(trainings, finished, setting, storage)


def run_shift(
    recipe: Recipe,
    options: ShiftOptions,
    say: Tell,
    out: Path | None = None,
    *,
    workers: int | None = None,
    gpus: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShiftStudy:
    """Run a study of metadata under shift, write its results, and return them. Keep runs that are finished already.

    Args:
        recipe: Recipe with a teacher that sees metadata.
        options: Seeds, splits and changes of the metadata at test.
        say: Function that shows a line of text to the user.
        out: Folder of the study; None takes `shifts/NAME`.
        workers: Number of runs at the same time; 0 trains in this process, without Ray. None takes as many as fit.
        gpus: GPUs of each run, such as 0.25; None takes `launch.gpus_per_worker`.
        progress: Called after each run with the numbers of completed runs and of all runs.

    Raises:
        StsslError: The recipe, the store or the options do not allow the study, or a run failed.
    """
    require_teacher(recipe)
    setting, folder = choose_setting(recipe, options), study_folder(recipe, out)
    trainings = trainings_of(recipe, setting, options, folder / "runs")
    if warning := vanishing("--out", folder):
        LOG.warning("%s", warning)
    with alone(folder, "study"):
        finished = finished_runs(folder / "runs")
        for line in [*check_trainings(trainings, finished), *setting.notes]:
            say(line)
        places = [finished.get(one.recipe.hash()) for one in trainings]
        left = sum(place is None for place in places)
        say(f"{left} of {len(trainings)} runs to train; everything is kept in {folder}")
        count = 0

        def done(failure: str) -> None:
            nonlocal count
            count += 1
            if failure:
                say(f"failed: {failure}")
            if progress:
                progress(count, len(trainings))

        paths = [None if place is None else place.path for place in places]
        work = ShiftWork(trainings, paths, setting.changes, recipe.launch, workers, gpus)
        folders = complete_runs(work, done)
        store = Store.open(recipe.data.store)
        study = study_of(trainings, folders, setting, options, labels_of(store, recipe.data.labels).space)
        effects = all_effects(study)
        claims = claim_sentences(effects)
        found = ShiftFindings(all_scores(study, trainings), effects, gains_by_distance(study, places_of(store)), claims)
        save_findings(found, recipe, setting, options, folder)
        report = write_shift_report(study, found, recipe, folders, folder)
    return ShiftStudy(claims, found, folder / "scores.parquet", report)
