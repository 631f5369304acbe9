"""Hand the study's trials to Ray Tune, or to this process, and write down how each ends."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from stssl.base.errors import RunError, StsslError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.base.ray_session import connected_ray, resources_for
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import LaunchConfig
from stssl.sweeps.spec import Say
from stssl.sweeps.storage_errors import study_errors
from stssl.sweeps.study import Book, run_name, study_url, trials_folder
from stssl.sweeps.trials import REASON, Stopped, carry_out, failure, needs, outcome, trial_config, trial_recipe
from stssl.training.launch import check_run, growing, worker_bundles
from stssl.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ray.tune import RunConfig

FINISHED = str(Searcher.FINISHED)
"""What a searcher tells Tune when there are no more trials."""
HEAD = "node:__internal_head__"
"""Ray resource that only the head node has."""


class StudySearcher(Searcher):
    """Take trials from the study for Tune, and write their ends into the study."""

    def __init__(self, book: Book, at_once: int, deadline: float, say: Say) -> None:
        """Start with no trial handed out.

        Args:
            book: Study of the sweep.
            at_once: Most trials at a time.
            deadline: Time, as of `time.time`, after which no trial is handed out.
            say: Shows a line for each trial that ends.
        """
        super().__init__()
        self.book, self.at_once, self.deadline, self.say = book, at_once, deadline, say
        self.live: dict[str, Trial] = {}
        self.stopped: set[str] = set()
        self.exhausted = False
        self.since: dict[str, float] = {}
        self.trouble: RunError | None = None
        """Reason why the study could not be read or written. Tune would show it as a traceback of its own."""

    def __deepcopy__(self, memo: dict[int, object]) -> "StudySearcher":
        """Return the searcher itself: Tune copies what it is given, and a copy would hand out trials a second time."""
        return self

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Pickle as an empty object: Tune saves what it is given, an open study cannot be pickled, nobody loads it."""
        return (object, ())

    @contextlib.contextmanager
    def _study(self) -> Iterator[None]:
        """Keep the reason if the study cannot be read or written."""
        try:
            with study_errors(study_url(self.book.sweep.config)):
                yield
        except RunError as error:
            self.trouble = error
            raise

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial, None while there is no room, or `FINISHED` after the last.

        The configuration has the trial's `number` and its `recipe` as a tree.
        """
        with self._study():
            return self._next(trial_id)

    def _next(self, trial_id: str) -> Any:
        """Do what `suggest` does; try the next trial if one fails before it starts."""
        if len(self.live) >= self.at_once:
            return None
        # Tune asks many times a second, and asking the study reads the disk: remember that it is exhausted.
        if self.exhausted and not self.book.interrupted:
            return None if self.live else FINISHED
        drawn = None if self.late() else self.book.next()
        self.exhausted = drawn is None
        if drawn is None:
            # While trials are live, one of them may have to be handed out again.
            return None if self.live else FINISHED
        trial, values = drawn
        self.live[trial_id] = trial
        # A resumed trial has spent time in earlier starts.
        self.since[trial_id] = time.time() - float(trial.user_attrs.get("seconds", 0.0))
        storage = trials_folder(self.book.sweep.folder)
        try:
            recipe = trial_recipe(self.book.space.recipe(values), run_name(trial.number), storage)
            check_run(recipe)
        except StsslError as error:
            why = str(error)
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why}")
            return self._next(trial_id)
        # A start that was killed may have left a failure's reason that never came into the study; this one tries again.
        (self._folder(trial.number) / REASON).unlink(missing_ok=True)
        return {"number": trial.number, "recipe": recipe.tree()}

    def late(self) -> bool:
        """True if the sweep's hours are used up."""
        return time.time() > self.deadline

    def on_trial_result(self, trial_id: str, result: JsonObject) -> None:
        """Do nothing: the scheduler gets the same results, and calls `decide`."""

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Write a validation into the study; return True if the trial must stop."""
        trial, name = self.live.get(trial_id), self.book.sweep.config.metrics[0]
        value = result.get(name)
        # A score that is missing or not finite must not enter a comparison: it would decide about other trials.
        if trial is None or value is None or not isfinite(value):
            return False
        with self._study():
            stop = self.book.report(trial, int(result["step"]), float(value), time.time() - self.since[trial_id])
        if stop and result["step"] < result["steps"]:
            self.stopped.add(trial_id)
            return True
        return False

    def on_trial_complete(self, trial_id: str, result: JsonObject | None = None, error: bool = False) -> None:
        """Write the end of a trial into the study: its best checkpoint's values, that it was stopped, or why it failed.

        Args:
            trial_id: Tune's name of the trial.
            result: Its last result.
            error: True if its driver failed.
        """
        if trial_id in self.live:
            with self._study():
                self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: JsonObject | None, error: bool) -> None:
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
            self.say(f"trial {self.live.pop(trial_id).number}: its driver died; it resumes from its checkpoint")
        elif reason is not None or error:
            why = reason or "its driver died; see Ray's logs"
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why.splitlines()[0]}")
        else:
            # Out of time, or asked to end: the study keeps it as running, so the next start hands it out first.
            self.say(f"trial {self.live.pop(trial_id).number}: not at its end; the same command continues it")

    def _end(self, trial_id: str, write: Callable[[Trial], None], words: str) -> None:
        """Write a trial's end into the study with `write`, and show `words`."""
        trial = self.live.pop(trial_id)
        # Before `write`: Optuna refuses attributes of a trial that has ended.
        trial.set_user_attr("seconds", round(time.time() - self.since[trial_id], 2))
        write(trial)
        self.say(f"trial {trial.number}: {words}")

    def _folder(self, number: int) -> Path:
        return trials_folder(self.book.sweep.folder) / run_name(number)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on disk already."""


class StudyScheduler(FIFOScheduler):
    """Stop trials early if the study's rule says so."""

    def __init__(self, searcher: StudySearcher) -> None:
        """Keep the searcher, which knows the study's trials."""
        # Ray's class has no annotations, and a call of it would be an untyped one.
        start: Callable[[], None] = super().__init__
        start()
        self.searcher = searcher

    def __deepcopy__(self, memo: dict[int, object]) -> "StudyScheduler":
        """Return the scheduler itself, since Tune copies what it is given."""
        return self

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Pickle as an empty object, as the searcher does."""
        return (object, ())

    def on_trial_result(self, tune_controller: object, trial: Any, result: JsonObject) -> str:
        """Write a validation into the study and tell Tune to continue or stop the trial.

        Args:
            tune_controller: Tune's controller, which is not asked.
            trial: Tune's trial.
            result: Newest result of the trial.
        """
        stop = self.searcher.decide(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


class TuneSession(NamedTuple):
    """Describe the Ray session that trials run in.

    Attributes:
        room: How many trials fit at a time.
        driver: Ray resources of a trial's driver, amount by kind.
        run_config: Options of the `Tuner` that starts the trials.
    """

    room: int
    driver: dict[str, float]
    run_config: "RunConfig"


@contextlib.contextmanager
def tune_session(book: Book) -> Iterator[TuneSession]:
    """Connect to Ray for the trials of a sweep, and disconnect at the end.

    Raises:
        RunError: Ray cannot be reached, or has no room for one trial.
    """
    # Tune's own reports and result files would be a second record beside the study, which nothing keeps equal to it.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler of Ctrl-C would return as if the search were done.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    launch = book.sweep.recipe.launch
    if not (launch.address or os.environ.get("RAY_ADDRESS")):
        # A local Ray loses no node to preemption, and the watcher would be one more process for each trial.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray Train asks the dashboard whether a stopped trial's driver lives; without an answer it keeps the workers.
    with connected_ray(launch.address, dashboard=True):
        import ray
        from ray import tune

        # A cluster that starts nodes on demand is asked for those of one trial, or of `concurrent` trials.
        trials = worker_bundles(launch) * (book.sweep.config.concurrent or 1)
        available = resources_for(trials, launch.nodes_timeout_s)
        nodes: Callable[[], list[dict[str, object]]] = ray.nodes
        driver = driver_needs(sum(bool(node["Alive"]) for node in nodes()))
        # Each start is a new Tune experiment: study and run folders keep everything that a resumed sweep needs.
        run_config = tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(book.sweep.folder / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        )
        yield TuneSession(concurrency(launch, available, driver), driver, run_config)


def driver_needs(nodes: int) -> dict[str, float]:
    """Return the Ray resources of a trial's driver, which only waits: no CPU on one machine, hardly any on several."""
    # A driver that took a share of a CPU could keep the last worker of another trial from starting.
    return {HEAD: 0.001} if nodes == 1 else {"CPU": 0.01}


def concurrency(launch: LaunchConfig, available: dict[str, float], driver: dict[str, float]) -> int:
    """Compute how many trials fit on the cluster at a time.

    Args:
        launch: The trials' `launch` section.
        available: Ray resources of the cluster, amount by kind.
        driver: Ray resources of a trial's driver, amount by kind.

    Raises:
        RunError: There is no room for one trial; names the resource.
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
        room.append(int(total / each + 1e-9))  # 0.3 / 0.1 is 2.9999999999999996
    return min(room)


def search_here(searcher: StudySearcher) -> None:
    """Train all trials that a searcher hands out in this process, one after another (`launch.workers: 0`)."""
    number = 0
    while (config := searcher.suggest(str(number))) != FINISHED:
        _trial(searcher, str(number), config)
        number += 1


def _trial(searcher: StudySearcher, trial_id: str, config: JsonObject) -> None:
    last: JsonObject = {}

    def report(metrics: JsonMapping) -> None:
        last.update(metrics)
        if searcher.decide(trial_id, metrics) or searcher.late():
            raise Stopped

    with contextlib.suppress(Stopped):
        carry_out(trial_config(config), report=report)
    if searcher.trouble is not None:  # the study failed and not the trial, whose end it cannot keep
        raise searcher.trouble
    searcher.on_trial_complete(trial_id, last)


def train_here(recipes: Sequence[Recipe]) -> None:
    """Train recipes in this process, one after another."""
    for recipe in recipes:
        carry_out(recipe)
