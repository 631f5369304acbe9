"""Answer Ray Tune from the study: which trial comes next, and whether one goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from stssl.base.errors import RunError, StsslError
from stssl.sweeps.outcomes import outcome
from stssl.sweeps.spec import Say
from stssl.sweeps.study import Book, run_name, study_url, trials_folder
from stssl.sweeps.trials import REASON, failure, trial_recipe
from stssl.sweeps.trouble import study_errors
from stssl.training.run_folder import RunFolder
from stssl.training.tasks import check_run

FINISHED = str(Searcher.FINISHED)


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
        self.trouble: RunError | None = None
        """Why the study could not be read or written; Tune would make a traceback of it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "StudySearcher":
        """Tune copies what it is given; there is one searcher."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune saves what it is given; nobody reads that."""
        return (object, ())

    @contextlib.contextmanager
    def _study(self) -> Iterator[None]:
        """Keep the reason why the study failed."""
        try:
            with study_errors(study_url(self.book.sweep.config)):
                yield
        except RunError as error:
            self.trouble = error
            raise

    def suggest(self, trial_id: str) -> Any:
        """Values of the next trial, None while there is no room, `FINISHED` when all were tried."""
        with self._study():
            return self._next(trial_id)

    def _next(self, trial_id: str) -> Any:
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
            return self._next(trial_id)
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
        with self._study():
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
        if trial_id in self.live:
            with self._study():
                self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
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
