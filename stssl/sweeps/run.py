"""Carries a sweep out: Tune runs the trials, the study keeps them, files say what came of it."""

import contextlib
import fcntl
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stssl.base.errors import ConfigError, RunError
from stssl.recipes.run_data import open_data
from stssl.scoring.metrics import score
from stssl.sweeps.domains import build_space
from stssl.sweeps.session import tune_session
from stssl.sweeps.space import did_you_mean
from stssl.sweeps.spec import Say, Sweep, load_sweep
from stssl.sweeps.study import Book, open_study, study_url
from stssl.sweeps.trouble import study_errors
from stssl.training.tasks import check_run


@dataclass(frozen=True)
class Result:
    """Hold the paths of a sweep's results."""

    best: Path
    report: Path


def sweep(path: str | Path, overrides: Iterable[str], say: Say, top: int = 0, seeds: int = 5) -> Result:
    """Carry out a sweep file, or go on with it, and write down what came of it.

    Args:
        path: The sweep file.
        overrides: `key=value` changes to it.
        say: Called with a line for each trial that ends.
        top: How many of the best trials to run again with other seeds; 0 for none.
        seeds: How many seeds for each of them.

    Raises:
        StsslError: The sweep cannot be what its file says, or no trial came to a validation.
    """
    from stssl.sweeps.choosing import write_best
    from stssl.sweeps.confirmation import confirm, confirmed
    from stssl.sweeps.report import write_sweep_report
    from stssl.sweeps.table import rows, write_table

    what = load_sweep(path, overrides)
    with alone(what.folder), study_errors(study_url(what.config)):
        book = search(what, say)
        trials = rows(book)
        write_table(book, trials)
        best = write_best(book, trials)
        found = confirm(book, trials, top, seeds, say) if top else confirmed(book)
        return Result(best, write_sweep_report(book, trials, found))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from carrying out the same sweep; the lock ends with the process, however that ends.

    Raises:
        RunError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is carrying out the sweep in {folder}. Wait for it, or stop it.") from None
        yield


def search(what: Sweep, say: Say) -> Book:
    """Carry out all trials of a sweep that are not carried out yet.

    Args:
        what: What to search.
        say: Called with a line for each trial that ends.

    Returns:
        The book with all trials.

    Raises:
        StsslError: The sweep cannot be what its file says. A trial that fails is no error.
    """
    space = build_space(what.config, what.recipe)
    check_run(what.recipe)
    _check_metrics(what)
    what.folder.mkdir(parents=True, exist_ok=True)
    book = Book(what, space, open_study(what, space))
    left = _left(book)
    if left:
        say(f"{left} of {what.config.trials} trials to do; everything is kept in {what.folder}")
        _carry_out(book, say)
    return book


def _check_metrics(what: Sweep) -> None:
    space = open_data(what.recipe).space
    targets = torch.zeros(2, space.groups, dtype=torch.long)
    scores, _ = score(torch.zeros(2, len(space.classes)), targets, space)
    for name in what.config.metrics:
        if name not in {"score", *scores}:
            raise ConfigError(f"metric: {did_you_mean(name, ['score', *scores])} There is no score '{name}'.")


def _left(book: Book) -> int:
    from optuna.trial import TrialState

    waiting = (TrialState.WAITING, TrialState.RUNNING)
    trials = book.study.get_trials(deepcopy=False)
    ended = sum(trial.state not in waiting for trial in trials)
    if book.sweep.config.sampler.name == "grid":
        return min(len(trials), book.sweep.config.trials) - ended
    return max(0, book.sweep.config.trials - ended)


def _carry_out(book: Book, say: Say) -> None:
    config = book.sweep.config
    deadline = time.time() + (config.hours - book.hours) * 3600 if config.hours else math.inf
    if deadline <= time.time():
        say(f"the sweep's {config.hours:g} hours are over; the same command with more (hours=...) goes on")
        return
    book.tick()
    try:
        if book.sweep.recipe.launch.workers == 0:
            from stssl.sweeps.local import search_here
            from stssl.sweeps.tuning import StudySearcher

            search_here(StudySearcher(book, 1, deadline, say))
        else:
            _tune(book, say, deadline)
    finally:
        book.tick()


def _tune(book: Book, say: Say, deadline: float) -> None:
    with tune_session(book) as (room, options):
        from ray import tune

        from stssl.sweeps.trials import trial
        from stssl.sweeps.tuning import StudyScheduler, StudySearcher

        config = book.sweep.config
        searcher = StudySearcher(book, min(room, config.concurrent or room), deadline, say)
        tuner = tune.Tuner(
            tune.with_resources(trial, options.pop("driver")),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,
                time_budget_s=max(1.0, deadline - time.time()) if config.hours else None,
                reuse_actors=False,
                trial_dirname_creator=_dirname,
            ),
            **options,
        )
        try:
            tuner.fit()
        except tune.TuneError:
            if searcher.trouble is not None:
                raise searcher.trouble from None
            raise


def _dirname(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"
