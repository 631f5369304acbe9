"""Hand the study's trials to Ray Tune, or to this process, and write down how each ends."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from stssl.base.config import validate
from stssl.base.errors import RunError, StsslError
from stssl.base.ray_session import connected_ray, resources_for
from stssl.recipes.recipe import LaunchConfig, Recipe
from stssl.sweeps.spec import Say
from stssl.sweeps.study import Book, run_name, trials_folder
from stssl.sweeps.trials import REASON, Stopped, carry_out, failure, needs, outcome, trial_recipe
from stssl.training.launch import check_run, growing, worker_bundles
from stssl.training.run_folder import RunFolder

FINISHED = str(Searcher.FINISHED)
HEAD = "node:__internal_head__"


class StudySearcher(Searcher):
    """Takes trials from the study and writes their ends there."""

    def __init__(self, book: Book, at_once: int, deadline: float, say: Say) -> None:
        """Run at most `at_once` trials at a time, and none beyond `deadline` (of `time.time`)."""
        super().__init__()
        self.book, self.at_once, self.deadline, self.say = book, at_once, deadline, say
        self.live: dict[str, Any] = {}
        self.stopped: set[str] = set()
        self.exhausted = False
        self.since: dict[str, float] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "StudySearcher":
        """Tune copies what it is given; there is one searcher."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune saves what it is given; nobody reads that."""
        return (object, ())

    def suggest(self, trial_id: str) -> Any:
        """Values of the next trial, None while there is no room, `FINISHED` when all were tried."""
        if len(self.live) >= self.at_once:
            return None
        # Tune asks all the time, and the study is on disk.
        if self.exhausted and not self.book.interrupted:
            return None if self.live else FINISHED
        drawn = None if self.late() else self.book.next()
        self.exhausted = drawn is None
        if drawn is None:
            # While trials are live, one of them may have to be handed out again.
            return None if self.live else FINISHED
        trial, values = drawn
        self.live[trial_id] = trial
        self.since[trial_id] = time.time() - float(trial.user_attrs.get("seconds", 0.0))
        storage = trials_folder(self.book.sweep.folder)
        try:
            recipe = trial_recipe(self.book.space.recipe(values), run_name(trial.number), storage)
            check_run(recipe)
        except StsslError as error:
            why = str(error)
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why}")
            return self.suggest(trial_id)
        # A start that was killed may have left the reason of a failure that nobody wrote down: this one tries again.
        (self._folder(trial.number) / REASON).unlink(missing_ok=True)
        return {"number": trial.number, "recipe": recipe.tree()}

    def late(self) -> bool:
        """True if the sweep's time is over."""
        return time.time() > self.deadline

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler is told too, and decides."""

    def decide(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Write a validation down; returns whether the trial is to stop."""
        trial, name = self.live.get(trial_id), self.book.sweep.config.metrics[0]
        # A score that is missing or not finite never gets into a rung, nor stops anybody.
        value = result.get(name)
        if trial is None or value is None or not isfinite(value):
            return False
        stop = self.book.report(trial, int(result["step"]), float(value), time.time() - self.since[trial_id])
        if stop and result["step"] < result["steps"]:
            self.stopped.add(trial_id)
            return True
        return False

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write the end of a trial down: values of its best checkpoint, that it was stopped, or why it failed.

        Args:
            trial_id: Tune's name of the trial.
            result: Its last result.
            error: True if it failed.
        """
        if trial_id not in self.live:
            return
        folder = self._folder(self.live[trial_id].number)
        reason, ended = failure(folder), outcome(folder, self.book.sweep.config.metrics)
        if trial_id in self.stopped:
            at = result["step"] if result else "?"
            self._end(trial_id, self.book.stop, f"stopped at step {at}")
        elif ended is not None and ended.finished:
            values = ended.values
            words = ", ".join(f"{name} {value:.4f}" for name, value in zip(ended.names, values, strict=True))
            self._end(trial_id, lambda trial: self.book.complete(trial, values), words)
        elif RunFolder(folder).finished() is not None:
            why = f"it was trained to its end, but no checkpoint has {' and '.join(self.book.sweep.config.metrics)}"
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why}")
        elif reason is None and error and self.book.again(self.live[trial_id]):
            self.say(f"trial {self.live.pop(trial_id).number}: its driver died; it goes on from its checkpoint")
        elif reason is not None or error:
            why = reason or "its driver died; see Ray's logs"
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why.splitlines()[0]}")
        else:
            # Out of time, or asked to end: the study keeps it as running.
            self.say(f"trial {self.live.pop(trial_id).number}: not at its end; the same command goes on with it")

    def _end(self, trial_id: str, write: Callable[[Any], None], words: str) -> None:
        trial = self.live.pop(trial_id)
        trial.set_user_attr("seconds", round(time.time() - self.since[trial_id], 2))
        write(trial)
        self.say(f"trial {trial.number}: {words}")

    def _folder(self, number: int) -> Path:
        return trials_folder(self.book.sweep.folder) / run_name(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is on disk."""


class StudyScheduler(FIFOScheduler):
    """Stops trials early where the study says so."""

    def __init__(self, searcher: StudySearcher) -> None:
        """Ask `searcher`, which knows the trials."""
        super().__init__()
        self.searcher = searcher

    def __deepcopy__(self, memo: dict[int, Any]) -> "StudyScheduler":
        """Tune copies what it is given; there is one scheduler."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune saves what it is given; nobody reads that."""
        return (object, ())

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue or stop a trial after a result.

        Args:
            tune_controller: Tune's controller.
            trial: Tune's trial.
            result: Its newest result.
        """
        stop = self.searcher.decide(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


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


def search_here(searcher: StudySearcher) -> None:
    """Carry out what `searcher` hands out, until there is no more."""
    number = 0
    while (config := searcher.suggest(str(number))) != FINISHED:
        _trial(searcher, str(number), config)
        number += 1


def _trial(searcher: StudySearcher, trial_id: str, config: dict[str, Any]) -> None:
    last: dict[str, Any] = {}

    def report(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        if searcher.decide(trial_id, metrics) or searcher.late():
            raise Stopped

    with contextlib.suppress(Stopped):
        carry_out(validate(Recipe, config["recipe"], f"trial {config['number']}"), report=report)
    searcher.on_trial_complete(trial_id, last)


def train_here(recipes: Sequence[Recipe]) -> None:
    """Train some recipes."""
    for recipe in recipes:
        carry_out(recipe)
