"""Carries a sweep out: Tune runs the trials, the study keeps them, files say what came of it."""

import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from stssl.build import check
from stssl.cluster import ray_session
from stssl.sweep.domains import build_space
from stssl.sweep.spec import Sweep
from stssl.sweep.study import Book, open_study

Say = Callable[[str], None]


def search(sweep: Sweep, say: Say) -> Book:
    """Carry out all trials of a sweep that are not carried out yet.

    Args:
        sweep: What to search.
        say: Called with a line for each trial that ends.

    Returns:
        The book with all trials.

    Raises:
        StsslError: The sweep cannot be what its file says. A trial that fails is no error.
    """
    space = build_space(sweep.config, sweep.recipe)
    check(sweep.recipe)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    book = Book(sweep, space, open_study(sweep, space))
    left = _left(book)
    if left:
        say(f"{left} of {sweep.config.trials} trials to do; everything is kept in {sweep.folder}")
        _tune(book, say)
    return book


def _left(book: Book) -> int:
    from optuna.trial import TrialState

    waiting = (TrialState.WAITING, TrialState.RUNNING)
    trials = book.study.get_trials(deepcopy=False)
    ended = sum(trial.state not in waiting for trial in trials)
    if book.sweep.config.sampler.name == "grid":
        return min(len(trials), book.sweep.config.trials) - ended
    return max(0, book.sweep.config.trials - ended)


def _tune(book: Book, say: Say) -> None:
    # Reports of Tune's own would say what the study says, and its files would be one more truth.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    sweep = book.sweep
    with ray_session(sweep.recipe.launch.address, dashboard=True):
        import ray
        from ray import tune

        from stssl.sweep.trial import concurrency, driver_needs, trial
        from stssl.sweep.tuning import StudyScheduler, StudySearcher

        nodes = sum(node["Alive"] for node in ray.nodes())
        driver = driver_needs(nodes)
        room = concurrency(sweep.recipe.launch, ray.cluster_resources(), driver)
        at_once = min(room, sweep.config.concurrent or room)
        spent = float(book.study.user_attrs.get("hours", 0.0))
        hours = sweep.config.hours
        start = time.time()
        deadline = start + (hours - spent) * 3600 if hours else float("inf")
        searcher = StudySearcher(book, at_once, deadline, say)
        tuner = tune.Tuner(
            tune.with_resources(trial, driver),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,
                time_budget_s=max(1.0, deadline - start) if hours else None,
                reuse_actors=False,
                trial_dirname_creator=_dirname,
            ),
            run_config=_run_config(tune, sweep),
        )
        try:
            tuner.fit()
        finally:
            book.study.set_user_attr("hours", spent + (time.time() - start) / 3600)


def _dirname(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"


def _run_config(tune: Any, sweep: Sweep) -> Any:
    # Each start is a new Tune experiment: what is to be kept is in the study and in the runs' folders.
    return tune.RunConfig(
        name=datetime.now().strftime("%Y%m%d-%H%M%S-%f"),
        storage_path=str(sweep.folder / "tune"),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
    )
