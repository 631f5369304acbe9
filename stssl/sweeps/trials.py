"""Train one trial, and read from its run's folder how it ended."""

import contextlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stssl.base.config import validate
from stssl.base.errors import StoppedError, StsslError
from stssl.recipes.recipe import LaunchConfig, Recipe
from stssl.training.launch import Watch, run, worker_bundles
from stssl.training.run_folder import RunFolder, write_text

HEADLINES = ("mAP", "accuracy")


@dataclass(frozen=True)
class Outcome:
    """Scores of a run's best checkpoint.

    Attributes:
        names: Of the scores.
        values: Of the scores.
        step: Of the checkpoint.
        last: The last step that was validated.
        finished: Whether the run went to its end.
        scores: All scores of that validation.
    """

    names: tuple[str, ...]
    values: list[float]
    step: int
    last: int
    finished: bool
    scores: dict[str, float]


def scored(row: dict[str, Any]) -> dict[str, Any]:
    """A validation's row with `score`, that which chooses the best checkpoint; without scores that are missing."""
    known = {name: value for name, value in row.items() if value is not None}
    headline = next((known[name] for name in HEADLINES if name in known), None)
    return known if headline is None else known | {"score": headline}


def outcome(folder: Path, metrics: tuple[str, ...]) -> Outcome | None:
    """Scores of the best checkpoint of a run; None before its first validation, or where that has not all `metrics`.

    A score that is no number (no class has a positive, say) is missing from the run's rows.
    """
    run = RunFolder(folder)
    best: dict[str, Any] | None = None
    last = 0
    for row in run.rows():
        if row["kind"] != "validation":
            continue
        last, known = max(last, row["step"]), scored(row)
        # The first of equals, as the run itself keeps its best checkpoint.
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
    """Ends a run in this process whose trial is stopped early."""


def trial(config: dict[str, Any]) -> None:
    """Train one recipe on its own Ray workers and pass their validations on; Tune calls this.

    It reads them off the run's folder. Ray's `TuneReportCallback` has a queue instead, and a driver that is still to
    take a report from it when its run ends waits for itself for ever (seen with Ray 2.60).
    """
    from ray import tune

    recipe = validate(Recipe, config["recipe"], f"trial {config['number']}")

    def watch(row: dict[str, Any]) -> None:
        if row["kind"] == "validation":
            tune.report(scored(row) | {"steps": recipe.schedule.steps})

    with contextlib.suppress(StoppedError):  # its machine was asked to end: the next start goes on with it
        carry_out(recipe, watch=watch)


def carry_out(recipe: Recipe, watch: Watch | None = None, report: Watch | None = None) -> None:
    """Train a checked recipe; a failure is a result of the sweep too, written to the run's folder and not raised.

    Args:
        recipe: Recipe of the trial.
        watch: Called with each new row of metrics.
        report: Called with each validation; may stop the trial by raising.

    Raises:
        Stopped: `report` stopped the trial.
        StoppedError: The process was asked to end.
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
    return path.read_text() if path.exists() else None


def trial_recipe(recipe: Recipe, name: str, storage: Path) -> Recipe:
    """Rename and move a recipe as a trial carries it out: under its own name, in the sweep's folder.

    Args:
        recipe: Recipe of the trial.
        name: Name of the trial's run.
        storage: Folder of the sweep's runs.
    """
    launch = recipe.launch.model_copy(update={"storage": str(storage)})
    logging = recipe.logging.model_copy(update={"tensorboard": False})
    return recipe.model_copy(update={"name": name, "launch": launch, "logging": logging})


def needs(launch: LaunchConfig) -> dict[str, float]:
    """Ray resources of all workers of a trial."""
    bundles = worker_bundles(launch)
    return {kind: len(bundles) * amount for kind, amount in bundles[0].items()}
