"""Run a sweep (a search for good recipe values): train its trials, and write tables, the best recipe and a report."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stssl.base.errors import ConfigError
from stssl.base.exclusive import alone
from stssl.base.job_copy import vanishing
from stssl.base.logs import LOG
from stssl.base.paths import below, is_url
from stssl.recipes.run_data import open_data
from stssl.scoring.metrics import score
from stssl.sweeps.domains import build_space
from stssl.sweeps.keeping import checkpoint_bytes, room_line, tidy
from stssl.sweeps.space import did_you_mean
from stssl.sweeps.spec import Say, Sweep, load_sweep
from stssl.sweeps.storage_errors import study_errors
from stssl.sweeps.study import Book, open_study, study_url
from stssl.sweeps.sweep_place import SweepPlace
from stssl.training.launch import check_run


@dataclass(frozen=True)
class SweepFiles:
    """Say where a sweep wrote its main files: their paths, or their URLs if the sweep lies in an object store.

    Attributes:
        best: File with the recipe of the best trial.
        report: HTML page about the sweep.
    """

    best: Path | str
    report: Path | str


def run_sweep(path: str | Path, overrides: Iterable[str], say: Say, top: int = 0, seeds: int = 5) -> SweepFiles:
    """Run or resume the search that a sweep file describes, and write its tables, best recipe and report.

    Args:
        path: The sweep file.
        overrides: Changes to the sweep file, each as `key=value`.
        say: Called with a line of text for each trial that ends, and about the progress.
        top: Number of best trials to train again with other seeds; 0 for none.
        seeds: Number of seeds for each of these trials.

    Returns:
        Paths or URLs of the best recipe and the report.

    Raises:
        StsslError: The sweep file is wrong, or no trial reached its first validation.
    """
    from stssl.sweeps.confirmation import confirm, confirmed
    from stssl.sweeps.report import write_sweep_report
    from stssl.sweeps.results import rows, write_best, write_table

    what = load_sweep(path, overrides)
    if warning := vanishing("storage", what.config.storage):
        LOG.warning("%s", warning)
    with alone(what.folder, "sweep"), SweepPlace(what.place).shared(), study_errors(study_url(what.config)):
        book = search(what, say)
        trials = rows(book)
        write_table(book, trials)
        best = write_best(book, trials)
        found = confirm(book, trials, top, seeds, say) if top else confirmed(book)
        page = write_sweep_report(book, trials, found)
    if is_url(what.place):
        return SweepFiles(below(what.place, best.name), below(what.place, page.name))
    return SweepFiles(best, page)


def search(what: Sweep, say: Say) -> Book:
    """Train all trials of a sweep that have not ended yet, until the time limit in the sweep file's key `hours`.

    Args:
        what: Sweep file and base recipe.
        say: Called with a line of text for each trial that ends, and about the progress.

    Returns:
        Manager of the sweep's study and trials.

    Raises:
        StsslError: The sweep file is wrong. A trial that fails does not raise an error.
    """
    space = build_space(what.config, what.recipe)
    check_run(what.recipe)
    _check_metrics(what)
    what.folder.mkdir(parents=True, exist_ok=True)
    book = Book(what, space, open_study(what, space))
    left = _left(book)
    if left:
        say(f"{left} of {what.config.trials} trials to do; metrics, records and students are kept in {what.place}")
        _carry_out(book, say)
    tidy(book)  # once more: a stopped trial may have written a checkpoint after its end was recorded
    return book


def _check_metrics(what: Sweep) -> None:
    """Check that validations of a sweep's base recipe compute the sweep's metrics, and choose a best checkpoint.

    Raises:
        ConfigError: They do not. The message says which key to change.
    """
    if not what.recipe.evaluation.validated:
        raise ConfigError(
            "evaluation.checkpoint: the recipe has last, and a sweep compares the best checkpoints of its trials on "
            "validation. Set change: {evaluation.checkpoint: best}, with a data.split that has validation patches."
        )
    # Score two patches of zeros to get the names of scores: these depend only on the kind of task and its classes.
    space = open_data(what.recipe).space
    targets = torch.zeros(2, space.groups, dtype=torch.long)
    scores, _ = score(torch.zeros(2, len(space.classes)), targets, space)
    for name in what.config.metrics:
        if name not in {"score", *scores}:
            raise ConfigError(f"metric: {did_you_mean(name, ['score', *scores])} There is no score '{name}'.")


def _left(book: Book) -> int:
    """Return how many trials the sweep must still train: those that have not ended, and those not started."""
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
        say(f"the sweep's {config.hours:g} hours are over; the same command with more (hours=...) continues it")
        return
    book.tick()
    try:
        if book.sweep.recipe.launch.workers == 0:
            from stssl.sweeps.tuning import StudySearcher, search_here

            _say_room(book, 1, say)
            search_here(StudySearcher(book, 1, deadline, say))
        else:
            _tune(book, say, deadline)
    finally:
        book.tick()


def _say_room(book: Book, at_once: int, say: Say) -> None:
    """Tell the user how much disk room the sweep's checkpoints need.

    Args:
        book: Manager of the sweep's study and trials.
        at_once: Number of trials that run at the same time.
        say: Called with the line of text.
    """
    say(room_line(book.sweep, checkpoint_bytes(book.sweep.recipe), at_once))


def _tune(book: Book, say: Say, deadline: float) -> None:
    from ray import tune

    from stssl.sweeps.trials import trial
    from stssl.sweeps.tuning import StudyScheduler, StudySearcher, tune_session

    with tune_session(book) as session:
        config = book.sweep.config
        at_once = min(session.room, config.concurrent or session.room)
        _say_room(book, at_once, say)
        searcher = StudySearcher(book, at_once, deadline, say)
        tuner = tune.Tuner(
            tune.with_resources(trial, session.driver),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,  # no limit: the searcher says when it has no more trials
                time_budget_s=max(1.0, deadline - time.time()) if config.hours else None,
                reuse_actors=False,
                trial_dirname_creator=_dirname,
            ),
            run_config=session.run_config,
        )
        try:
            tuner.fit()
        except tune.TuneError:
            if searcher.trouble is not None:
                raise searcher.trouble from None
            raise


def _dirname(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"
