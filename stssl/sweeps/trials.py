"""One trial: a Ray Train run inside of a Tune trial, which only watches it."""

import contextlib
import traceback
from pathlib import Path
from typing import Any

from stssl.base.config import validate
from stssl.base.errors import RunError, StoppedError, StsslError
from stssl.recipes.recipe import LaunchConfig, Recipe
from stssl.sweeps.outcomes import scored
from stssl.training.launch import Watch, growing, run, worker_bundles
from stssl.training.run_folder import RunFolder, write_text

REASON = "failed.txt"
HEAD = "node:__internal_head__"


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
    return path.read_text("utf-8", "replace") if path.exists() else None


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


def driver_needs(nodes: int) -> dict[str, float]:
    """Ray resources of a trial's driver, which only waits: none of the CPUs on one machine, hardly any on several.

    A driver that took a share of a CPU could keep the last worker of another trial from starting.
    """
    return {HEAD: 0.001} if nodes == 1 else {"CPU": 0.01}


def concurrency(launch: LaunchConfig, available: dict[str, float], driver: dict[str, float]) -> int:
    """Compute how many trials fit on the cluster at a time.

    Args:
        launch: The trials' `launch` section.
        available: Resources of the cluster by kind.
        driver: Resources of a trial's driver by kind.

    Raises:
        RunError: Not for one.
    """
    room = []
    for kind, amount in needs(launch).items():
        each, total = amount + driver.get(kind, 0.0), available.get(kind, 0.0)
        if each > total:
            raise RunError(
                f"launch: a trial's workers need {amount:g} {kind}, and Ray has {total:g} (a little goes to drivers). "
                "Change launch.workers or their resources under `change:` of the sweep, or add nodes. "
                f"{growing(launch)}"
            )
        room.append(int(total / each + 1e-9))
    return min(room)
