"""The Ray session that a sweep's trials run in."""

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from stssl.base.ray_session import connected_ray, resources_for
from stssl.sweeps.study import Book
from stssl.training.launch import worker_bundles


@contextlib.contextmanager
def tune_session(book: Book) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ray for trials: how many have room at a time; options of their `Tuner`, and `driver`, resources of a driver.

    Raises:
        RunError: Ray cannot be reached, or has no room for one trial.
    """
    # Reports of Tune's own would say what the study says, and its files would be one more truth.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler of Ctrl-C would return as if the search were done.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    launch = book.sweep.recipe.launch
    if not (launch.address or os.environ.get("RAY_ADDRESS")):
        # Nobody takes this machine away from Ray; watching for it would cost each trial a process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Where trials are stopped, Ray Train asks the dashboard whether their drivers live, and else keeps their workers.
    with connected_ray(launch.address, dashboard=True):
        import ray
        from ray import tune

        from stssl.sweeps.trials import concurrency, driver_needs

        # A cluster that grows brings the nodes of one trial, or of `concurrent` where the file says that.
        trials = worker_bundles(launch) * (book.sweep.config.concurrent or 1)
        available = resources_for(trials, launch.nodes_timeout_s)
        driver = driver_needs(sum(bool(node["Alive"]) for node in ray.nodes()))
        # Each start is a new Tune experiment: what is to be kept is in the study and in the runs' folders.
        run_config = tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(book.sweep.folder / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        )
        room = concurrency(launch, available, driver)
        yield room, {"driver": driver, "run_config": run_config}
