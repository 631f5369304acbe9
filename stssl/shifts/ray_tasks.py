"""Train and score the runs of a study: one after another in this process, or several at a time as Ray tasks."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stssl.base.config import validate
from stssl.base.errors import RunError, StoppedError, StsslError
from stssl.base.json_types import JsonObject
from stssl.base.ray_session import connected_ray, resources_for
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import LaunchConfig
from stssl.scoring.changed_metadata import MetadataChange
from stssl.shifts.evaluated import complete_run, limit_threads
from stssl.shifts.trainings import Training

RUN_RETRIES = 3
"""How often Ray begins a run again after its worker or node died. It resumes from its last checkpoint."""
Done = Callable[[str], None]
"""A function that is called after each run, with the reason why it failed; empty if it did not fail."""


@dataclass(frozen=True)
class ShiftWork:
    """Say which runs of a study to train and score, and with which processes and GPUs.

    Attributes:
        trainings: All trainings of the study, one for each run.
        folders: Folder of each run that is trained already; None for others.
        changes: Changes of the metadata at test, with which networks are scored.
        launch: Section `launch` of the study's recipe.
        workers: Number of runs at the same time. 0 trains in this process, without Ray. None takes as many as fit, or 0
            if the recipe has `launch.workers: 0`.
        gpus: Number of GPUs of each run; None takes `launch.gpus_per_worker`.
    """

    trainings: Sequence[Training]
    folders: Sequence[Path | None]
    changes: Sequence[MetadataChange]
    launch: LaunchConfig
    workers: int | None = None
    gpus: float | None = None

    @property
    def here(self) -> bool:
        """Return True if this process trains the runs itself, one after another; False if Ray tasks do."""
        return self.workers == 0 or (self.workers is None and self.launch.workers == 0)


def complete_runs(work: ShiftWork, done: Done) -> list[Path]:
    """Train and score all runs of a study. If a run fails, complete the others before raising an error.

    Args:
        work: The runs, and where to train them.
        done: Called after each run with the reason why it failed; with an empty text if it succeeded.

    Returns:
        Folder of each run, in the order of `work.trainings`.

    Raises:
        RunError: Some runs failed, or Ray has too few CPUs or GPUs.
        StoppedError: A signal asked the process to end.
    """
    found, failed = dict[int, Path](), list[str]()
    # Close the generator if an error or a signal leaves the loop: closing it cancels the Ray tasks that still run.
    with contextlib.closing(_here(work) if work.here else _on_ray(work)) as results:
        for number, result in results:
            if isinstance(result, Path):
                found[number] = result
                done("")
            else:
                failed.append(f"{work.trainings[number].recipe.name}: {result}")
                done(failed[-1])
    if failed:
        raise RunError(
            f"{len(failed)} of {len(work.trainings)} runs failed, the first: {failed[0]} "
            "The others are kept; the same command tries these again."
        )
    return [found[number] for number in range(len(work.trainings))]


RunResult = tuple[int, Path | StsslError]


def _here(work: ShiftWork) -> Generator[RunResult, None, None]:
    for number, (training, folder) in enumerate(zip(work.trainings, work.folders, strict=True)):
        try:
            yield number, complete_run(training.recipe, folder, work.changes)
        except StoppedError:
            raise
        except StsslError as error:
            yield number, error


def _on_ray(work: ShiftWork) -> Generator[RunResult, None, None]:
    import ray

    with connected_ray(work.launch.address):
        cpus, gpus = _needed(work)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RUN_RETRIES)(_task)
        waiting, flying = list(reversed(range(len(work.trainings)))), dict[Any, int]()
        try:
            while waiting or flying:
                while waiting and len(flying) < (work.workers or len(work.trainings)):
                    number = waiting.pop()
                    tree = work.trainings[number].recipe.tree()
                    flying[task.remote(tree, work.folders[number], list(work.changes), cpus)] = number
                ready, _ = ray.wait(list(flying), num_returns=1)
                yield flying.pop(ready[0]), _result(ready[0])
        finally:
            for one in flying:
                ray.cancel(one, force=True)


def _needed(work: ShiftWork) -> tuple[float, float]:
    """Return the number of CPUs and the number of GPUs that Ray reserves for each run of `work`.

    Raises:
        RunError: Ray has fewer CPUs or GPUs than one run needs.
    """
    launch = work.launch
    cpus, gpus = launch.cpus_per_worker, launch.gpus_per_worker if work.gpus is None else work.gpus
    there = resources_for([{"CPU": cpus} | ({"GPU": gpus} if gpus else {})], launch.nodes_timeout_s)
    if work.workers and not launch.address:
        cpus = min(cpus, there.get("CPU", 1.0) / work.workers)
    for kind, amount in (("CPU", cpus), ("GPU", gpus)):
        if amount > there.get(kind, 0.0):
            raise RunError(
                f"a run of the study needs {amount:g} {kind}, and Ray has {there.get(kind, 0.0):g}. Lower "
                f"launch.{kind.lower()}s_per_worker{' or --gpus' if kind == 'GPU' else ''}, or give --workers 0."
            )
    return cpus, gpus


def _result(reference: Any) -> Path | StsslError:
    """Return the folder of the run that the Ray task behind `reference` completed, or the error with which it failed.

    The error is that of the training, or says that the worker died. Other errors of the task are raised.
    """
    import ray

    try:
        found: Path = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StsslError):
            return error.cause
        raise
    except ray.exceptions.RayError as error:
        return RunError(f"its worker died again and again ({' '.join(str(error).split())[:300]}).")
    return found


def _task(tree: JsonObject, folder: Path | None, changes: list[MetadataChange], cpus: float) -> Path:
    """Train and score one run in a Ray worker, and return the folder of the run.

    Args:
        tree: Recipe of the run as nested mappings.
        folder: Folder of the run if it is trained already; else None.
        changes: Changes of the metadata at test.
        cpus: Number of CPUs that the worker may use.
    """
    recipe = validate(Recipe, tree, "recipe")
    limit_threads(recipe, cpus)
    return complete_run(recipe, folder, changes)
