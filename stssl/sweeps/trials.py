"""Train one trial, and read from its run's folder how it ended."""

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
    """Hold the scores of a run's best checkpoint.

    Attributes:
        names: Names of the metrics that the sweep searches for.
        values: Their values, in the same order.
        step: Step of the checkpoint.
        last: Last step that was validated.
        finished: True if the run came to its end.
        scores: All scores of the checkpoint's validation.
    """

    names: tuple[str, ...]
    values: list[float]
    step: int
    last: int
    finished: bool
    scores: dict[str, float]


def scored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a validation's row without missing scores, and add `score`, by which the best checkpoint is chosen."""
    known = {name: value for name, value in row.items() if value is not None}
    headline = next((known[name] for name in HEADLINES.values() if name in known), None)
    return known if headline is None else known | {"score": headline}


def outcome(folder: Path, metrics: tuple[str, ...]) -> Outcome | None:
    """Read the scores of a run's best checkpoint; None before its first validation, or if it lacks one of `metrics`.

    A run's rows lack a score that is no number, such as mAP if no class has a positive.
    """
    run = RunFolder(folder)
    best: dict[str, Any] | None = None
    last = 0
    for row in run.rows():
        if row["kind"] != "validation":
            continue
        last, known = max(last, row["step"]), scored(row)
        # Of equal scores the first, since the run keeps its best checkpoint until a better one comes.
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
    """End a run in this process, because its trial is stopped early."""


def trial(config: JsonObject) -> None:
    """Train the recipe of one trial on its own Ray workers, and report its validations to Tune, which calls this.

    Args:
        config: `number` of the trial, and its `recipe` as a tree.
    """
    from ray import tune

    recipe = trial_config(config)

    # Validations are read from the run's folder. Ray's `TuneReportCallback` passes them through a queue, and a driver
    # that has not taken the last report when its run ends waits for itself for ever (seen with Ray 2.60).
    def watch(row: Mapping[str, Any]) -> None:
        if row["kind"] == "validation":
            tune.report(scored(row) | {"steps": recipe.schedule.steps})

    with contextlib.suppress(StoppedError):  # its machine is asked to end: the next start resumes the trial
        carry_out(recipe, watch=watch)


def trial_config(config: JsonMapping) -> Recipe:
    """Build the recipe of the configuration that a trial is started with: its `number`, and its `recipe` as a tree."""
    tree = config["recipe"]
    return validate(Recipe, tree if isinstance(tree, dict) else {}, f"trial {config['number']}")


def carry_out(recipe: Recipe, watch: Watch | None = None, report: Watch | None = None) -> None:
    """Train a checked recipe. A failure is not raised but written to the run's folder, since the sweep continues.

    Args:
        recipe: Recipe of the trial.
        watch: Called with each new row of metrics.
        report: Called with the scores of each validation; stops the trial by raising `Stopped`.

    Raises:
        Stopped: `report` stopped the trial.
        StoppedError: The process is asked to end.
    """
    try:
        run(recipe, watch, report=report, checked=True)
    except (Stopped, StoppedError):
        raise
    except StsslError as error:
        _write_reason(recipe, str(error))
    except Exception as error:
        _write_reason(recipe, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def _write_reason(recipe: Recipe, reason: str) -> None:
    folder = RunFolder.of(recipe).path
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REASON, reason)


def failure(folder: Path) -> str | None:
    """Read why a trial's run failed, or None if it did not."""
    path = folder / REASON
    return path.read_text("utf-8", "replace") if path.exists() else None


def trial_recipe(recipe: Recipe, name: str, storage: Path) -> Recipe:
    """Rename a recipe and move its run into the sweep's folder.

    Args:
        recipe: Recipe of the trial.
        name: Name of the trial's run.
        storage: Folder of the sweep's runs.
    """
    launch = recipe.launch.model_copy(update={"storage": str(storage)})
    logging = recipe.logging.model_copy(update={"tensorboard": False})
    return recipe.model_copy(update={"name": name, "launch": launch, "logging": logging})


def needs(launch: LaunchConfig) -> dict[str, float]:
    """Sum the Ray resources of all workers of a trial: amount by kind."""
    bundles = worker_bundles(launch)
    return {kind: len(bundles) * amount for kind, amount in bundles[0].items()}
