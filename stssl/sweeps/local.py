"""Trials in this process, one after another: `launch.workers: 0`, for small networks and for tests."""

import contextlib
from collections.abc import Sequence
from typing import Any

from stssl.base.config import validate
from stssl.recipes.recipe import Recipe
from stssl.sweeps.trials import Stopped, carry_out
from stssl.sweeps.tuning import FINISHED, StudySearcher


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
    if searcher.trouble is not None:  # of the study, not of the trial
        raise searcher.trouble
    searcher.on_trial_complete(trial_id, last)


def train_here(recipes: Sequence[Recipe]) -> None:
    """Train some recipes."""
    for recipe in recipes:
        carry_out(recipe)
