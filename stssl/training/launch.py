"""Start the training of a recipe, in this process or on Ray workers on one or several machines."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from stssl.base.config import Tree, validate
from stssl.base.distributed import rank
from stssl.base.errors import RunError, StsslError
from stssl.base.job_copy import vanishing
from stssl.base.logs import LOG
from stssl.base.ray_session import connected_ray, lacking, resources_for
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import RunRecipe
from stssl.recipes.sections import LaunchConfig
from stssl.training.loop import Report, train_to_end
from stssl.training.precision import about_speed
from stssl.training.ray_notices import Post, RayOutside, new_name, passing_signals
from stssl.training.run_files import METRICS_FILE, MetricsRow, NewRows
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import check_shared, memory_advice, start_line
from stssl.training.state import TASKS, TrainState, open_train_state

REMOTE_PAUSE_S = 3.0
"""Seconds between two looks for new metrics of a run that other processes write into an object store."""
Watch = Callable[[MetricsRow], None]
"""Type of a function that is called with each new row of a run's metrics."""


def check_run(recipe: RunRecipe) -> list[str]:
    """Check before a run starts that data and networks fit the recipe. Train nothing.

    Returns:
        Lines for the user on what the run trains on: number of patches in each part of the data, labels and bands.

    Raises:
        ConfigError: Data or networks do not fit the recipe. The message says what would fit.
        DataError: The store cannot be read, or a class has no label.
    """
    return TASKS[type(recipe)].check(recipe)


def run(
    recipe: RunRecipe,
    watch: Watch | None = None,
    report: Report | None = None,
    checked: bool = False,
) -> RunFolder:
    """Train a recipe to its end, in this process or on Ray. If the run was started before, resume it.

    Args:
        recipe: Recipe to train.
        watch: Called with each new row of the run's metrics.
        report: Called with each validation's metrics, if this process trains. It may raise an error to end the run.
        checked: True if the caller has called `check_run` already.

    Returns:
        The run's folder. If the run is finished already, nothing is trained.

    Raises:
        StsslError: The recipe, the data or the machines do not allow the run, or training failed.
    """
    folder = RunFolder.of(recipe)
    folder.refresh()
    if folder.refuse_others(recipe) and folder.finished():
        return folder
    if warning := vanishing("launch.storage", recipe.launch.storage):
        LOG.warning("%s", warning)
    if not checked:
        for line in check_run(folder.recipe_to_build(recipe)):
            LOG.info("%s", line)
    with folder.held():
        folder.refresh()
        # Claim the folder only after the check: a recipe that cannot run must not reserve the name for itself.
        folder.claim(recipe)
        with watching(folder, watch):
            if recipe.launch.workers == 0:
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                _train_here(recipe, device, report or (lambda metrics: None))
            else:
                _train_on_ray(recipe)
        folder.refresh()
    return folder


def _train_here(recipe: RunRecipe, device: torch.device, report: Report) -> None:
    with memory_advice(recipe):
        train_state = open_train_state(recipe, device)
        try:
            _resume(train_state)
            train_state.finish(train_to_end(train_state, report))
        finally:
            train_state.close()


def _resume(train_state: TrainState) -> None:
    """Load the newest usable checkpoint of the run into this rank (training process).

    Rank 0 logs damaged checkpoints, and a line with the run and its device.
    """
    problems = train_state.resume()
    if rank() == 0:
        for problem in problems:
            LOG.warning("%s", problem)
        task = train_state.task
        LOG.info("%s", start_line(train_state.recipe, task.device, train_state.precision, task.rows))
        if words := about_speed(train_state.precision, task.device):
            LOG.log(logging.WARNING if train_state.precision == "bf16" else logging.INFO, "%s", words)


def _train_on_ray(recipe: RunRecipe) -> None:
    """Train on Ray workers and wait for the end. Ray restarts failed workers; they resume from the last checkpoint.

    A signal to this process makes the ranks write a checkpoint and end.

    Raises:
        StsslError: Ray has too few resources, or training failed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    launch, start = recipe.launch, new_name()
    with connected_ray(launch.address):
        bundles = worker_bundles(launch)
        _require_resources(launch, bundles, resources_for(bundles, launch.nodes_timeout_s))
        trainer: Any = TorchTrainer(
            _worker,
            train_loop_config={"recipe": recipe.tree(), "start": start},
            scaling_config=ScalingConfig(**_scaling(launch)),
            torch_config=TorchConfig(timeout_s=launch.collective_timeout_s),
            run_config=RunConfig(
                name="ray",
                storage_path=str(RunFolder.of(recipe).for_ray),
                failure_config=FailureConfig(max_failures=launch.max_failures),
                callbacks=[_not_again()],
                **_quiet(),
            ),
        )
        # Keep Ray from handling Ctrl-C: its handler ends the process with exit code 0, as if the run had succeeded.
        trainer._register_sigint_handler = lambda controller: None
        try:
            with passing_signals(Post(start)):
                trainer.fit()
        # Catch every error: those of Ray Train have no common class, and it raises the workers' own errors, too.
        except Exception as error:
            raise _reason(error) from error


def _quiet() -> dict[str, Any]:
    """Return options of Ray's `RunConfig` that hide messages of Ray Train below the level of warnings."""
    import ray.train

    # Look the class up by name, because early releases of Ray Train 2 do not have it.
    kind = getattr(ray.train, "LoggingConfig", None)
    return {"logging_config": kind(log_level="WARNING")} if kind else {}


def _worker(config: dict[str, Any]) -> None:
    """Train one rank (training process) of a run on a Ray worker.

    Args:
        config: The recipe as plain values in `recipe`, and the name of this start of the run in `start`.
    """
    import ray.train
    from ray.train.torch import get_device

    tree: Tree = config["recipe"]
    recipe = validate(kind_of(tree), tree, "recipe")
    _hide_reports()
    folder = RunFolder.of(recipe)
    if folder.mirror is None:  # only a folder on a disk may differ between nodes: all reach the same object store
        check_shared(folder.path)
    with memory_advice(recipe):
        train_state = open_train_state(recipe, get_device())
        try:
            _resume(train_state)
            end = train_to_end(train_state, ray.train.report, RayOutside(Post(config["start"])))
            if rank() == 0:
                train_state.finish(end)
        finally:
            train_state.close()


def _hide_reports() -> None:
    """Hide the dictionary that Ray Train logs for each report of a worker, like its other messages below warnings.

    Ray 2.60 names this logger after its file, so that the level in `_quiet` does not reach it.
    """
    for name in list(logging.root.manager.loggerDict):
        if "/ray/train/" in name:
            logging.getLogger(name).setLevel(logging.WARNING)


def _scaling(launch: LaunchConfig) -> dict[str, Any]:
    """Return the options of Ray's `ScalingConfig`: resources of a worker, and number of workers or its two bounds."""
    options = {
        "num_workers": launch.workers,
        "use_gpu": launch.gpus_per_worker > 0,
        "resources_per_worker": worker_resources(launch),
        "placement_strategy": launch.placement,
    }
    if isinstance(launch.workers, tuple):
        options["elastic_resize_monitor_interval_s"] = launch.elastic_interval_s
    return options


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """Return the Ray resources that one worker needs, as the amount of each kind, such as CPUs."""
    resources = {"CPU": launch.cpus_per_worker}
    return resources | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})


def worker_bundles(launch: LaunchConfig) -> list[dict[str, float]]:
    """Return a list with the Ray resources of each worker. If their number may change, take the smallest number."""
    workers = launch.workers[0] if isinstance(launch.workers, tuple) else max(launch.workers, 1)
    return [worker_resources(launch)] * workers


def _require_resources(launch: LaunchConfig, bundles: list[dict[str, float]], available: dict[str, float]) -> None:
    """Check that Ray has resources for all workers. Without this check, Ray would wait for them forever.

    Raises:
        RunError: Ray has too few resources. The message says which, and what to set.
    """
    for kind, amount in lacking(bundles, available).items():
        raise RunError(
            f"launch: {len(bundles)} workers with {bundles[0][kind]:g} {kind} each need {amount:g} {kind}, and Ray has "
            f"{available.get(kind, 0):g}. Lower launch.workers or launch.{kind.lower()}s_per_worker, or add nodes. "
            f"{growing(launch)}"
        )


def growing(launch: LaunchConfig) -> str:
    """Return a sentence for error messages that says what to set for a cluster that starts nodes on demand."""
    if launch.nodes_timeout_s:
        return f"No node came within launch.nodes_timeout_s={launch.nodes_timeout_s}."
    return "A cluster that adds nodes by itself needs time for that: launch.nodes_timeout_s=900."


def _not_again() -> Any:
    """Return a callback for Ray Train that ends the run at once after an error that each restart would meet again."""
    from ray.train import UserCallback

    class NotAgain(UserCallback):
        def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
            if error := for_good(worker_exceptions.values()):
                raise error  # Ray does not restart workers after an error of a callback

    return NotAgain()


def for_good(failures: Iterable[BaseException]) -> StsslError | None:
    """Find among failures of workers an error that a restart cannot cure, such as a mistake in the recipe.

    Returns:
        The error, which must end the run. None if a restart may succeed, because a worker or node died or an object
            store did not answer. `launch.max_failures` limits the number of restarts.
    """
    from ray.exceptions import RayActorError

    failures = list(failures)
    if any(isinstance(failure, RayActorError) for failure in failures):
        return None
    own = next((error for error in map(_own, failures) if error), None)
    return None if own is None or own.passing else own


def _own(error: BaseException) -> StsslError | None:
    """Return the `StsslError` that Ray wrapped in its own errors; None if there is no such error inside."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StsslError):
            return seen
        wrapped = (getattr(seen, name, None) for name in ("cause", "controller_failure", "_base_exc"))
        seen = next((one for one in wrapped if isinstance(one, BaseException)), seen.__cause__)
    return None


def _reason(error: BaseException) -> StsslError:
    """Turn an error of Ray Train into an error that tells the user what went wrong in a worker.

    Ray wraps a worker's error several times and pickles it. The worker's error may be in `cause` or in `__cause__`.

    Returns:
        The worker's own `StsslError`, if one is found. Else an error with the last line of the first worker's message.
    """
    failures = getattr(error, "worker_failures", None) or getattr(error.__cause__, "worker_failures", None) or {}
    for failure in [error, *failures.values()]:
        if own := _own(failure):
            return own
    lines = [line for line in str(next(iter(failures.values()), error)).splitlines() if line.strip()]
    return RunError(f"training failed on a Ray worker: {lines[-1] if lines else type(error).__name__}")


@contextlib.contextmanager
def watching(folder: RunFolder, watch: Watch | None) -> Iterator[None]:
    """Return a context in which a thread calls `watch` with each new row of the run's metrics.

    The thread reads the rows from the run's file, because another process or machine may train and write them.
    """
    if watch is None:
        yield
        return
    stop = threading.Event()

    def follow() -> None:
        rows = NewRows(folder.path / METRICS_FILE)
        while True:
            last = stop.wait(0.3 if folder.mirror is None or folder.mirror.writing else REMOTE_PAUSE_S)
            folder.follow_file(METRICS_FILE)
            for row in rows.take():
                watch(row)
            if last:
                return

    thread = threading.Thread(target=follow, name="stssl-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
