"""Carries a run out: in this process, or on Ray workers, locally or on a cluster."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from stssl.base.config import validate
from stssl.base.errors import RunError, StsslError
from stssl.base.ray_session import connected_ray, lacking, resources_for
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import LaunchConfig, RunRecipe
from stssl.training.loop import train
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import check_shared, log, memory_advice, slow_arithmetic, start_line
from stssl.training.state import TrainState, open_train_state
from stssl.training.tasks import check_run

Watch = Callable[[dict[str, Any]], None]


def run(
    recipe: RunRecipe,
    watch: Watch | None = None,
    report: Watch | None = None,
    checked: bool = False,
) -> RunFolder:
    """Train a recipe to its end, going on from its last checkpoint if it was started before.

    Args:
        recipe: What to train.
        watch: Called with each new row of the run's metrics.
        report: Called with each validation's metrics, in a run in this process; may end it by raising.
        checked: Whether the caller knows already that data and networks allow the recipe.

    Returns:
        The run's folder; a run that is finished already returns at once.

    Raises:
        StsslError: The recipe, the data or the machines do not allow it; or training failed, saying why.
    """
    folder = RunFolder.of(recipe)
    if folder.refuse_others(recipe) and folder.finished():
        return folder
    if not checked:
        check_run(folder.going_on(recipe))
    folder.claim(recipe)
    with watching(folder, watch):
        if recipe.launch.workers == 0:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            _train_here(recipe, device, report or (lambda metrics: None))
        else:
            _train_on_ray(recipe)
    return folder


def _train_here(recipe: RunRecipe, device: torch.device, report: Watch) -> None:
    with memory_advice(recipe):
        train_state = _prepared(open_train_state(recipe, device))
        _finish(train_state, train(train_state, report))


def _finish(train_state: TrainState, result: dict[str, Any]) -> None:
    """Export what users take and mark the run as ended; on rank 0 alone."""
    if not train_state.progress.best_step:
        raise RunError(
            f"no validation of {train_state.folder.path} had finite predictions, so there is no best checkpoint. Lower "
            "optimizer.lr, set optimizer.clip=1.0, or use compute.precision=fp32, under another name (name=...)."
        )
    train_state.task.export(train_state.folder.checkpoints)
    train_state.folder.finish(result)


def _prepared(train_state: TrainState, rank: int = 0, world: int = 1) -> TrainState:
    """Resume from the last checkpoint, and let rank 0 write down what this run is."""
    problems = train_state.resume()
    if rank == 0:
        for problem in problems:
            log().warning("%s", problem)
        task = train_state.task
        log().info("%s", start_line(train_state.recipe, task.device, task.rows))
        if slow := slow_arithmetic(train_state.recipe, task.device):
            log().warning("%s", slow)
        about, step = task.about(), train_state.progress.step
        train_state.folder.record(train_state.recipe, about, task.labels(), world=world, step=step)
    return train_state


def _train_on_ray(recipe: RunRecipe) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    launch = recipe.launch
    with connected_ray(launch.address):
        bundles = worker_bundles(launch)
        _enough_resources(launch, bundles, resources_for(bundles, launch.nodes_timeout_s))
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"recipe": recipe.tree()},
            scaling_config=ScalingConfig(
                num_workers=launch.workers,
                use_gpu=launch.gpus_per_worker > 0,
                resources_per_worker=worker_resources(launch),
                placement_strategy=launch.placement,
                **({"elastic_resize_monitor_interval_s": launch.elastic_interval_s} if _elastic(launch) else {}),
            ),
            torch_config=TorchConfig(timeout_s=launch.collective_timeout_s),
            run_config=RunConfig(
                name="ray",
                storage_path=str(RunFolder.of(recipe).path),
                failure_config=FailureConfig(max_failures=launch.max_failures),
                callbacks=[_not_again()],
            ),
        )
        # Ray's own handler of Ctrl-C ends the process as if all were well (exit code 0), amid whatever it does.
        trainer._register_sigint_handler = lambda controller: None
        try:
            trainer.fit()
        except Exception as error:
            raise _reason(error) from error


def _worker(config: dict[str, Any]) -> None:
    """Train on one Ray worker."""
    import ray.train
    from ray.train.torch import get_device

    recipe = validate(kind_of(config["recipe"]), config["recipe"], "recipe")
    context = ray.train.get_context()
    check_shared(RunFolder.of(recipe).path)
    with memory_advice(recipe):
        train_state = _prepared(
            open_train_state(recipe, get_device()), context.get_world_rank(), context.get_world_size()
        )
        result = train(train_state, ray.train.report)
    if context.get_world_rank() == 0:
        _finish(train_state, result)


def _elastic(launch: LaunchConfig) -> bool:
    return isinstance(launch.workers, tuple)


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """Ray resources of one worker."""
    resources = {"CPU": launch.cpus_per_worker}
    return resources | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})


def worker_bundles(launch: LaunchConfig) -> list[dict[str, float]]:
    """Ray resources of each worker, of the least number of them where that may change."""
    workers = launch.workers[0] if isinstance(launch.workers, tuple) else max(launch.workers, 1)
    return [worker_resources(launch)] * workers


def _enough_resources(launch: LaunchConfig, bundles: list[dict[str, float]], available: dict[str, float]) -> None:
    for kind, amount in lacking(bundles, available).items():
        raise RunError(
            f"launch: {len(bundles)} workers with {bundles[0][kind]:g} {kind} each need {amount:g} {kind}, and Ray has "
            f"{available.get(kind, 0):g}. Lower launch.workers or launch.{kind.lower()}s_per_worker, or add nodes. "
            f"{growing(launch)}"
        )


def growing(launch: LaunchConfig) -> str:
    """Say what to set for a cluster that starts nodes on demand."""
    if launch.nodes_timeout_s:
        return f"No node came within launch.nodes_timeout_s={launch.nodes_timeout_s}."
    return "A cluster that adds nodes by itself needs time for that: launch.nodes_timeout_s=900."


def _not_again() -> Any:
    """Make a callback of Ray Train that ends a run whose error comes again with each start."""
    from ray.train import UserCallback

    class NotAgain(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if error := for_good(worker_exceptions.values()):
                raise error  # an error of a callback is none that Ray tries again after

    return NotAgain()


def for_good(failures: Iterable[BaseException]) -> StsslError | None:
    """What ends a run at once, of all that its workers failed with: an error that its user must act on.

    A worker or node that died, and an object store that did not answer, may do better the next time
    (`launch.max_failures`).
    """
    from ray.exceptions import RayActorError

    failures = list(failures)
    if any(isinstance(failure, RayActorError) for failure in failures):
        return None
    own = next((error for error in map(_own, failures) if error), None)
    return None if own is None or own.passing else own


def _own(error: BaseException) -> StsslError | None:
    """The error for users inside of those that Ray wraps it in."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StsslError):
            return seen
        wrapped = (getattr(seen, name, None) for name in ("cause", "controller_failure", "_base_exc"))
        seen = next((one for one in wrapped if isinstance(one, BaseException)), seen.__cause__)
    return None


def _reason(error: BaseException) -> StsslError:
    """The worker's own error where it is one that a user can act on, else the first worker's words."""
    failures = getattr(error, "worker_failures", None) or getattr(error.__cause__, "worker_failures", None) or {}
    for failure in [error, *failures.values()]:
        if own := _own(failure):
            return own
    lines = [line for line in str(next(iter(failures.values()), error)).splitlines() if line.strip()]
    return RunError(f"training failed on a Ray worker: {lines[-1] if lines else type(error).__name__}")


@contextlib.contextmanager
def watching(folder: RunFolder, watch: Watch | None) -> Iterator[None]:
    """Hand each row that the run adds to its metrics to `watch`, from a thread."""
    if watch is None:
        yield
        return
    stop = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = stop.wait(0.3)
            rows = list(folder.rows())
            for row in rows[min(seen, len(rows)) :]:
                watch(row)
            seen = len(rows)
            if last:
                return

    thread = threading.Thread(target=follow, name="stssl-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
