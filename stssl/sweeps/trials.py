"""Train one trial of a sweep, and read its scores and its end from the folder of its run."""

import contextlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stssl.base.config import validate
from stssl.base.errors import StoppedError, StsslError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import LaunchConfig
from stssl.scoring.metrics import HEADLINES
from stssl.training.launch import Watch, run, worker_bundles
from stssl.training.run_folder import RunFolder, write_text


@dataclass(frozen=True)
class Outcome:
    """Describe what a trial's run has reached: the scores and the step of its best checkpoint.

    Attributes:
        names: Names of the sweep's metrics.
        values: Values of these metrics, sorted like `names`.
        step: Training step of the checkpoint.
        last: Last training step after which the run was validated.
        finished: True if the run was trained to its end.
        scores: All scores of the checkpoint on validation.
    """

    names: tuple[str, ...]
    values: list[float]
    step: int
    last: int
    finished: bool
    scores: dict[str, float]


def scored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a validation's metrics with the entry `score`: the one that chooses a run's best checkpoint.

    Entries that are None are left out, because they could not be computed. `score` is missing if its metric is.

    Args:
        row: Metrics of one validation by name.
    """
    known = {name: value for name, value in row.items() if value is not None}
    headline = next((known[name] for name in HEADLINES.values() if name in known), None)
    return known if headline is None else known | {"score": headline}


def outcome(place: str | Path, metrics: tuple[str, ...]) -> Outcome | None:
    """Read what a trial's run has reached: scores and step of its best checkpoint.

    Return None before the first validation, or if a metric has no value. For example, mAP has none if no patch has any
    class.

    Args:
        place: Path or URL of the run's folder.
        metrics: Names of the sweep's metrics.
    """
    run = RunFolder(place)
    run.refresh()
    best: dict[str, Any] | None = None
    last = 0
    for row in run.rows():
        if row["kind"] != "validation":
            continue
        last, known = max(last, row["step"]), scored(row)
        # If scores are equal, take the earlier one, as the run does: only a better checkpoint replaces its best one.
        if "score" in known and (best is None or known["score"] > best["score"]):
            best = known
    if best is None or any(name not in best for name in metrics):
        return None
    scores = {name: value for name, value in best.items() if name not in ("step", "kind")}
    return Outcome(
        names=metrics,
        values=[float(scores[name]) for name in metrics],
        step=int(best["step"]),
        last=last,
        finished=run.finished() is not None,
        scores=scores,
    )


REASON = "failed.txt"


class Stopped(Exception):  # noqa: N818
    """Exception that ends the training of a trial in this process, because the trial stops early."""


def trial(config: JsonObject) -> None:
    """Train one trial on its own Ray workers, and report its validations to Ray Tune. Tune calls this function.

    Args:
        config: Mapping with the trial's `number`, and with its `recipe` as nested mappings.
    """
    from ray import tune

    recipe = trial_config(config)

    # Read validations from the run's folder. Do not use Ray's `TuneReportCallback`, which passes them through a queue.
    # If the run ends before the driver takes the last report, the driver waits forever (seen with Ray 2.60).
    def watch(row: Mapping[str, Any]) -> None:
        if row["kind"] == "validation":
            tune.report(scored(row) | {"steps": recipe.schedule.steps})

    with contextlib.suppress(StoppedError):  # a signal asked the process to end: the next start resumes the trial
        carry_out(recipe, watch=watch)


def trial_config(config: JsonMapping) -> Recipe:
    """Return a trial's recipe, built from the configuration that Ray Tune passes.

    `config` has the trial's number in `number`, and the recipe as nested mappings in `recipe`.
    """
    tree = config["recipe"]
    return validate(Recipe, tree if isinstance(tree, dict) else {}, f"trial {config['number']}")


def carry_out(recipe: Recipe, watch: Watch | None = None, report: Watch | None = None) -> None:
    """Train a trial's recipe. If it fails, write the reason to the run's folder and raise nothing.

    Args:
        recipe: Recipe of the trial.
        watch: Called with each new row of metrics that the run writes into its folder.
        report: Called with the scores of each validation, if this process trains. It may raise `Stopped` to end it.

    Raises:
        Stopped: `report` stopped the trial.
        StoppedError: A signal asked the process to end.
    """
    try:
        run(recipe, watch, report=report, checked=True)
    except (Stopped, StoppedError):
        raise
    except StsslError as error:
        _write_reason(recipe, str(error))
    # Catch every error, such as one of CUDA or of a full disk: a failed trial must not end a search of days. The reason
    # has the traceback, so a defect of this program stays visible.
    except Exception as error:
        _write_reason(recipe, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def _write_reason(recipe: Recipe, reason: str) -> None:
    folder = RunFolder.of(recipe)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.path / REASON, reason)
    folder.publish()


def forget_failure(place: str | Path) -> None:
    """Remove the file that says why a run failed, because the run's trial is tried again. Do nothing if there is none.

    `place` is the path or URL of the run's folder.
    """
    RunFolder(place).remove(REASON)


def failure(place: str | Path) -> str | None:
    """Return the text that says why a trial failed, from its run's folder. Return None if it did not fail.

    `place` is the path or URL of the folder.
    """
    run = RunFolder(place)
    run.refresh()
    path = run.path / REASON
    return path.read_text("utf-8", "replace") if path.exists() else None


def trial_recipe(recipe: Recipe, name: str, storage: str) -> Recipe:
    """Return a copy of a recipe for a sweep's trial: with the trial's name and storage folder, and without TensorBoard.

    Args:
        recipe: Recipe of the trial.
        name: Name of the trial's run.
        storage: Path or URL of the folder that has the sweep's runs.
    """
    launch = recipe.launch.model_copy(update={"storage": storage})
    logging = recipe.logging.model_copy(update={"tensorboard": False})
    return recipe.model_copy(update={"name": name, "launch": launch, "logging": logging})


def needs(launch: LaunchConfig) -> dict[str, float]:
    """Return the Ray resources that all workers of a trial need together: an amount for each kind, such as `CPU`.

    `launch` is the section `launch` of the trial's recipe.
    """
    bundles = worker_bundles(launch)
    return {kind: len(bundles) * amount for kind, amount in bundles[0].items()}
