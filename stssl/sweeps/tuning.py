"""Train the trials of a sweep in Ray Tune or in this process, and record how each trial ends."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from stssl.base.errors import RunError, StsslError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.base.paths import below
from stssl.base.ray_session import connected_ray, resources_for
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import LaunchConfig
from stssl.sweeps.keeping import tidy
from stssl.sweeps.spec import Say
from stssl.sweeps.storage_errors import study_errors
from stssl.sweeps.study import Book, run_name, study_url, trial_place
from stssl.sweeps.sweep_place import TRIALS
from stssl.sweeps.trials import Stopped, carry_out, failure, forget_failure, needs, outcome, trial_config, trial_recipe
from stssl.training.launch import check_run, growing, worker_bundles
from stssl.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ray.tune import RunConfig

FINISHED = str(Searcher.FINISHED)
"""Value that a searcher returns to Ray Tune if it has no more trials."""
HEAD = "node:__internal_head__"
"""Name of the Ray resource that only the head node of a cluster has."""


class StudySearcher(Searcher):
    """Hand out the trials of a sweep's Optuna study to Ray Tune, and record in the study how each trial ends."""

    def __init__(self, book: Book, at_once: int, deadline: float, say: Say) -> None:
        """Create the searcher. It has handed out no trial yet.

        Args:
            book: Manager of the sweep's study and trials.
            at_once: Largest number of trials that run at the same time.
            deadline: Time, in seconds of `time.time`, after which no trial is handed out.
            say: Called with a line of text for each trial that ends.
        """
        super().__init__()
        self.book, self.at_once, self.deadline, self.say = book, at_once, deadline, say
        self.live: dict[str, Trial] = {}
        self.stopped: set[str] = set()
        self.exhausted = False
        self.since: dict[str, float] = {}
        self.trouble: StsslError | None = None
        """Error that says why the study could not be read or written. It is kept, because Tune would hide it."""

    def __deepcopy__(self, memo: dict[int, object]) -> "StudySearcher":
        """Return the searcher itself: Tune copies its arguments, and a copy would give out trials a second time."""
        return self

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Return what pickle stores instead of the searcher: an empty object, because a study cannot be pickled.

        Tune pickles its arguments but never loads them.
        """
        return (object, ())

    @contextlib.contextmanager
    def _study(self) -> Iterator[None]:
        """Return a context for code that uses the study. It stores an error of the study's storage in `self.trouble`.

        The error is raised again as a `StsslError` with advice.
        """
        try:
            with study_errors(study_url(self.book.sweep.config)):
                yield
        except StsslError as error:
            self.trouble = error
            raise

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial to Ray Tune, which trains it under the name `trial_id`.

        The configuration has the trial's number in `number`, and its recipe as nested mappings in `recipe`. Return
        None if Tune must ask again later, because other trials are running. Return `FINISHED` if no trial is left, or
        the time is over.
        """
        with self._study():
            return self._next(trial_id)

    def _next(self, trial_id: str) -> Any:
        """Return the configuration of the next trial, with its `number` and its `recipe` as nested mappings.

        Return None if Tune must ask again later, and `FINISHED` if all trials ended or the time is over. If the recipe
        of a trial is wrong, record that the trial failed, and try the next one. `trial_id` is Tune's name of the trial.
        """
        if len(self.live) >= self.at_once:
            return None
        # Do not ask the study again if it has no more trials: Tune asks many times a second, and the study reads the
        # disk each time.
        if self.exhausted and not self.book.interrupted:
            return None if self.live else FINISHED
        drawn = None if self.late() else self.book.next()
        self.exhausted = drawn is None
        if drawn is None:
            # Do not finish while trials run: if a trial's driver process dies, the trial is handed out again.
            return None if self.live else FINISHED
        trial, values = drawn
        self.live[trial_id] = trial
        # Move the start of a resumed trial back by the time that it took before: the study must record the sum.
        self.since[trial_id] = time.time() - float(trial.user_attrs.get("seconds", 0.0))
        storage = below(self.book.sweep.place, TRIALS)
        try:
            recipe = trial_recipe(self.book.space.recipe(values), run_name(trial.number), storage)
            check_run(recipe)
        except StsslError as error:
            why = str(error)
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why}")
            return self._next(trial_id)
        # Remove the file with the reason of an earlier failure, which a killed start may have left. Otherwise, the
        # trial would count as failed.
        forget_failure(self._place(trial.number))
        # Send the study before the trial starts. If this process dies, the next start must know the trial: otherwise,
        # another trial would get the same number, and so the same run folder.
        self.book.send()
        return {"number": trial.number, "recipe": recipe.tree()}

    def late(self) -> bool:
        """Return True if the sweep's time limit is reached."""
        return time.time() > self.deadline

    def on_trial_result(self, trial_id: str, result: JsonObject) -> None:
        """Ignore a result from Ray Tune, because the scheduler gets the same results and calls `decide`."""

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Record a validation of a running trial in the study. Return True if the trial must stop early.

        Do not record a score that is missing or not finite, and return False.

        Args:
            trial_id: Tune's name of the trial.
            result: Metrics of the validation by name, and its training step. Only the first metric is recorded.
        """
        trial, name = self.live.get(trial_id), self.book.sweep.config.metrics[0]
        value = result.get(name)
        # Do not record a score that is missing or not finite: the rule that stops trials could not compare it.
        if trial is None or value is None or not isfinite(value):
            return False
        with self._study():
            stop = self.book.report(trial, int(result["step"]), float(value), time.time() - self.since[trial_id])
        if stop and result["step"] < result["steps"]:
            self.stopped.add(trial_id)
            return True
        return False

    def on_trial_complete(self, trial_id: str, result: JsonObject | None = None, error: bool = False) -> None:
        """Record in the study how a trial ended: with scores, stopped early, or failed for a reason.

        Record no end if the trial can go on later: the time is over, or its driver process died and starts again.

        Args:
            trial_id: Tune's name of the trial.
            result: Metrics of the trial's last validation; None if it had none.
            error: True if the trial's driver process failed.
        """
        if trial_id in self.live:
            with self._study():
                self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: JsonObject | None, error: bool) -> None:
        place = self._place(self.live[trial_id].number)
        reason, ended = failure(place), outcome(place, self.book.sweep.config.metrics)
        if trial_id in self.stopped:
            at = result["step"] if result else "?"
            self._end(trial_id, self.book.stop, f"stopped at step {at}")
        elif ended is not None and ended.finished:
            values = ended.values
            words = ", ".join(f"{name} {value:.4f}" for name, value in zip(ended.names, values, strict=True))
            self._end(trial_id, lambda trial: self.book.complete(trial, values), words)
        elif RunFolder(place).finished() is not None:
            why = f"it was trained to its end, but no checkpoint has {' and '.join(self.book.sweep.config.metrics)}"
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why}")
        elif reason is None and error and self.book.again(self.live[trial_id]):
            self.say(f"trial {self.live.pop(trial_id).number}: its driver died; it resumes from its checkpoint")
        elif reason is not None or error:
            why = reason or "its driver died; see Ray's logs"
            self._end(trial_id, lambda trial: self.book.fail(trial, why), f"failed: {why.splitlines()[0]}")
        else:
            # The time is over, or a signal asked the sweep to end. The study keeps the trial as running, so the next
            # start hands it out first.
            self.say(f"trial {self.live.pop(trial_id).number}: not at its end; the same command continues it")

    def _end(self, trial_id: str, write: Callable[[Trial], None], words: str) -> None:
        """Record the end of a trial in the study, show it to the user, and delete checkpoints that are not needed now.

        Args:
            trial_id: Tune's name of the trial.
            write: Called with the trial, to write its end into the study.
            words: Text for the user on how the trial ended.
        """
        trial = self.live.pop(trial_id)
        # Set the attribute before `write`: Optuna refuses attributes of a trial that has ended.
        trial.set_user_attr("seconds", round(time.time() - self.since[trial_id], 2))
        write(trial)
        self.book.send()
        self.say(f"trial {trial.number}: {words}")
        tidy(self.book)

    def _place(self, number: int) -> str:
        return trial_place(self.book.sweep, number)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because the study already has the state of the search on disk. Ray Tune calls this method."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, because the study already has the state of the search on disk. Ray Tune calls this method."""


class StudyScheduler(FIFOScheduler):
    """Tell Ray Tune to stop a trial early if the pruner of the sweep's Optuna study says so."""

    def __init__(self, searcher: StudySearcher) -> None:
        """Store the searcher, which records validations in the study and decides if a trial must stop."""
        # Ray's class has no annotations. Give its `__init__` a type: mypy refuses untyped calls.
        start: Callable[[], None] = super().__init__
        start()
        self.searcher = searcher

    def __deepcopy__(self, memo: dict[int, object]) -> "StudyScheduler":
        """Return the scheduler itself: Tune copies its arguments, but the study behind it must exist only once."""
        return self

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Let pickle store an empty object instead of this scheduler, because its study cannot be pickled.

        Tune pickles the scheduler with all its arguments, but never loads the result. Return what pickle expects: a
        function that makes the empty object, and its arguments.
        """
        return (object, ())

    def on_trial_result(self, tune_controller: object, trial: Any, result: JsonObject) -> str:
        """Record a validation in the study. Return Ray Tune's word for what the trial must do: continue or stop.

        Args:
            tune_controller: Tune's controller. It is not used.
            trial: Tune's object of the trial.
            result: Metrics of the trial's newest validation by name.
        """
        stop = self.searcher.decide(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


class TuneSession(NamedTuple):
    """Describe the Ray session that trains the trials of a sweep.

    Attributes:
        room: Number of trials that the cluster can train at the same time.
        driver: Ray resources that the driver of a trial (the process that controls it) needs: amount by kind.
        run_config: Options of the `Tuner` that starts the trials.
    """

    room: int
    driver: dict[str, float]
    run_config: "RunConfig"


@contextlib.contextmanager
def tune_session(book: Book) -> Iterator[TuneSession]:
    """Return a context that connects to Ray for the trials of a sweep, and disconnects at its end.

    The context's value describes the session. `book` manages the sweep's study and trials.

    Raises:
        RunError: Ray cannot be reached, or has too few resources for one trial.
    """
    # Turn off Tune's own reports and result files: they would be a second record and could differ from the study.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Turn off Tune's own handler of Ctrl-C: it would return as if the search were done.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    launch = book.sweep.recipe.launch
    if not (launch.address or os.environ.get("RAY_ADDRESS")):
        # Start no watcher of preemption: a local Ray has no node to lose, and each trial would need one more process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Start the dashboard: Ray Train asks it whether the driver of a stopped trial still lives. Without an answer, Ray
    # would not free the trial's workers.
    with connected_ray(launch.address, dashboard=True):
        import ray
        from ray import tune

        # Ask for nodes now: the number of trials at once is computed below from the nodes that already run, and a
        # cluster that starts nodes on demand may have none yet.
        trials = worker_bundles(launch) * (book.sweep.config.concurrent or 1)
        available = resources_for(trials, launch.nodes_timeout_s)
        nodes: Callable[[], list[dict[str, object]]] = ray.nodes
        driver = driver_needs(sum(bool(node["Alive"]) for node in nodes()))
        # Make a new Tune experiment at each start: a resumed sweep continues from the study and the
        # run folders alone, and files of an earlier experiment could contradict them.
        run_config = tune.RunConfig(
            name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(book.sweep.folder / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        )
        yield TuneSession(concurrency(launch, available, driver), driver, run_config)


def driver_needs(nodes: int) -> dict[str, float]:
    """Return the Ray resources that a trial's driver (the process that only waits for the trial's workers) needs.

    `nodes` is the number of machines of the cluster. The result has an amount for each kind of resource.
    """
    # On one machine, reserve no share of a CPU: otherwise, the last worker of another trial might find no whole CPU.
    return {HEAD: 0.001} if nodes == 1 else {"CPU": 0.01}


def concurrency(launch: LaunchConfig, available: dict[str, float], driver: dict[str, float]) -> int:
    """Return how many trials can run on the cluster at the same time.

    Args:
        launch: Section `launch` of the trials' recipe.
        available: Ray resources of the cluster: amount by kind.
        driver: Ray resources that a trial's driver process needs: amount by kind.

    Raises:
        RunError: The cluster has too few resources for one trial. The message names the resource.
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
        room.append(int(total / each + 1e-9))  # add a little: 0.3 / 0.1 is 2.9999999999999996
    return min(room)


def search_here(searcher: StudySearcher) -> None:
    """Train all trials that a searcher hands out, one after another, in this process instead of Ray."""
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
    if searcher.trouble is not None:  # the study's storage failed, so the end of the trial cannot be recorded
        raise searcher.trouble
    searcher.on_trial_complete(trial_id, last)


def train_here(recipes: Sequence[Recipe]) -> None:
    """Train recipes in this process, one after another. If one fails, write why into its run's folder, and go on."""
    for recipe in recipes:
        carry_out(recipe)
