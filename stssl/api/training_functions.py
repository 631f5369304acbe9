"""Load recipes, train and pretrain by them, search their best values, study the use of metadata, and plan costs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stssl.api.progress import counting, default_console, run_with_progress
from stssl.api.run import Run
from stssl.base.config import load_tree
from stssl.base.errors import ConfigError
from stssl.base.logs import plain_printer
from stssl.recipes.catalog import find_recipe
from stssl.recipes.pretraining import PretrainRecipe, kind_of
from stssl.recipes.recipe import Recipe, RunRecipe, load_as

if TYPE_CHECKING:
    from stssl.analysis.costs import CostEstimate
    from stssl.shifts.run import ShiftStudy
    from stssl.sweeps.run import SweepFiles


def load_recipe(name: str | Path, overrides: Iterable[str] = (), *, smoke: bool = False) -> RunRecipe:
    """Load a recipe for training or pretraining.

    Args:
        name: Name of a recipe of the package (see `recipe_names`), or path of a YAML file.
        overrides: Changes such as `"labels.per_class=5"`.
        smoke: True to make a run of seconds: four steps, without Ray, and without weights from a hub.

    Returns:
        The recipe, with all defaults. Its sections are attributes, such as `recipe.schedule.steps`.

    Raises:
        ConfigError: The recipe does not exist, or a key or value is wrong. The message names the key and what is
            allowed.
    """
    path = find_recipe(name)
    return load_as(kind_of(load_tree(path)), path, overrides, smoke)


def train(recipe: RunRecipe | str | Path, *, progress: bool | None = None) -> Run:
    """Train a recipe to its end. The same call resumes an interrupted run, and returns a finished run at once.

    Args:
        recipe: Recipe from `load_recipe`, or a recipe's name or path.
        progress: False shows no progress.

    Returns:
        The finished run.

    Raises:
        StsslError: The recipe, the data or the machine does not allow the run, or training failed.
    """
    return _carried_out(recipe, Recipe, progress)


def pretrain(recipe: RunRecipe | str | Path, *, progress: bool | None = None) -> Run:
    """Pretrain a backbone without labels. To start training from it, set `model.weights=run:FOLDER`.

    Args:
        recipe: Recipe from `load_recipe`, or a recipe's name or path.
        progress: False shows no progress.

    Returns:
        The finished run. `Run.networks` gives its encoders.

    Raises:
        StsslError: The recipe, the data or the machine does not allow the run, or training failed.
    """
    return _carried_out(recipe, PretrainRecipe, progress)


def _carried_out(recipe: RunRecipe | str | Path, kind: type[RunRecipe], progress: bool | None) -> Run:
    given = recipe if isinstance(recipe, RunRecipe) else load_recipe(recipe)
    if not isinstance(given, kind):
        other = "stssl.pretrain" if kind is Recipe else "stssl.train"
        raise ConfigError(f"{given.name} is a recipe of {given.what}, not of {kind.what}: use {other}")
    return Run.open(run_with_progress(default_console(progress), given))


def sweep(
    file: str | Path, overrides: Iterable[str] = (), *, top: int = 0, seeds: int = 5, progress: bool | None = None
) -> "SweepFiles":
    """Search the best values of recipe keys by many training runs (trials). The same call resumes a stopped sweep.

    Args:
        file: Name of a sweep of the package, such as `sweeps/cpu`, or path of a YAML file.
        overrides: Changes such as `"trials=20"` or `"change.labels.per_class=5"`.
        top: Number of best trials to train again with other seeds; 0 trains none again.
        seeds: Number of seeds for each of these trials.
        progress: False shows no progress. By default, each trial that ends is shown as a line.

    Returns:
        `best`, the path of the best recipe (YAML), and `report`, the path of a page about the sweep.

    Raises:
        StsslError: The sweep file is wrong, or no trial reached its first validation.
    """
    from stssl.sweeps.run import run_sweep

    return run_sweep(find_recipe(file), overrides, plain_printer(default_console(progress)), top, seeds)


def plan(
    recipe: RunRecipe | str | Path,
    *,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    link: float = 10.0,
    steps: int = 5,
) -> "CostEstimate":
    """Predict a run's time, memory and traffic from a few real steps on this machine.

    Args:
        recipe: Recipe from `load_recipe`, or a recipe's name or path.
        nodes: Number of machines.
        gpus_per_node: Number of workers on each machine; None divides the recipe's workers among the machines.
        link: Speed of the network between machines, in Gbit/s.
        steps: Number of steps to time.

    Returns:
        The estimate, with fields such as `steps` and `validations` (numbers), `share.step` (seconds of computing a
        step), `exchange` (seconds a step to sum gradients), `gradients` and `checkpoint` (bytes). The function
        `stssl.analysis.describe_costs(estimate)` makes the text of `stssl plan`.

    Raises:
        StsslError: The recipe is wrong, or a step does not fit into memory.
    """
    from stssl.analysis.planning import machines_for, plan_run

    given = recipe if isinstance(recipe, RunRecipe) else load_recipe(recipe)
    return plan_run(given, machines_for(given, nodes, gpus_per_node, link), steps)


def shift(
    recipe: RunRecipe | str | Path,
    *,
    seeds: int = 5,
    splits: Sequence[str] | None = None,
    metadata: Sequence[str] | None = None,
    out: str | Path | None = None,
    degrees: float = 1.0,
    draws: int = 1000,
    score: str | None = None,
    workers: int | None = None,
    gpus: float | None = None,
    progress: bool | None = None,
) -> "ShiftStudy":
    """Study how much place and date help a network on test patches like the training patches, and on shifted ones.

    Shifted patches come from other regions or seasons than the training patches. For each split and seed, this function
    trains the recipe, the same recipe with one network that sees metadata at test too (`direct`), and the same recipe
    without any metadata (the control). It tests all of them with true and changed metadata. The same call resumes an
    interrupted study.

    Args:
        recipe: Recipe with a teacher, from `load_recipe`, or a recipe's name or path.
        seeds: Number of seeds. One seed gives no intervals.
        splits: `random`, `blocks`, `longitude`, a column of which one value is left out (`country`, `season`), a
            column with its value (`country:Serbia`), or a split of the store. None takes those that the store allows.
        metadata: Metadata at test: `true`, `absent`, `shuffled`, `moved:500km` or `moved:90d`. None takes those that
            the store allows.
        out: Folder of the study; None takes `shifts/NAME`.
        degrees: Side of a block of patches in degrees, for the intervals.
        draws: Number of draws for the 95 % intervals, and of swaps for the p-values.
        score: Score that claims are about, such as `loss`, `F1` or `mAP_micro`; None takes the one that chooses
            checkpoints: `accuracy` or `mAP`. Differences are plus if a network is better, also for `loss`.
        workers: Number of runs at the same time, as Ray tasks; 0 trains in this process, without Ray. None takes as
            many as fit, or 0 if the recipe has `launch.workers: 0`.
        gpus: GPUs of a run, such as 0.25; None takes those of a worker of the recipe.
        progress: False shows no progress.

    Returns:
        `claims`, a sentence for each of `pseudo-labels`, `metadata at test` and `student`; `findings` with `scores`,
        `effects` (differences with intervals) and `gains` by distance; `scores`, the path of a Parquet table, and
        `report`, the path of a page.

    Raises:
        StsslError: The recipe has no teacher, the store does not allow a split, or a run failed.
    """
    from stssl.shifts.run import run_shift
    from stssl.shifts.settings import ShiftOptions

    given = recipe if isinstance(recipe, RunRecipe) else load_recipe(recipe)
    if not isinstance(given, Recipe):
        raise ConfigError(f"{given.name} is a recipe of {given.what}: give a training recipe with a teacher")
    asked, changes = (None if words is None else tuple(words) for words in (splits, metadata))
    options, console = ShiftOptions(seeds, asked, changes, degrees, draws, score), default_console(progress)
    say, folder = plain_printer(console), None if out is None else Path(out)
    with counting(console, "study", "runs") as follow:
        return run_shift(given, options, say, folder, workers=workers, gpus=gpus, progress=follow)
