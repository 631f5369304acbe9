"""Define fixtures that make the record of a sweep's trials, and trials of known scores, without training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from optuna import Trial

from stssl.recipes.recipe import Recipe
from stssl.sweeps.domains import build_space
from stssl.sweeps.spec import load_sweep
from stssl.sweeps.study import Book, open_study, trial_place
from stssl.training.run_folder import RunFolder

Scores = float | dict[str, float]
"""Scores of a validation: the accuracy alone, or several by name."""
SEARCH = {
    "algorithm.threshold": {"low": 0.2, "high": 0.9},
    "optimizer.lr": None,
    "model.injection.name": ["late", "film"],
}


@pytest.fixture
def open_book(recipe_tree: dict[str, Any], tmp_path: Path) -> Callable[..., Book]:
    """Return a function that opens the record of trials of a sweep. A second call resumes the same sweep."""

    def go(name: str = "s", recipe: dict[str, Any] | None = None, **sweep: object) -> Book:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree | (recipe or {})))
        tree = {"recipe": "recipe.yaml", "metric": "accuracy", "trials": 6, "storage": str(tmp_path / "sweeps")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree | {"search": SEARCH} | sweep))
        loaded = load_sweep(tmp_path / f"{name}.yaml")
        loaded.folder.mkdir(parents=True, exist_ok=True)
        space = build_space(loaded.config, loaded.recipe)
        return Book(loaded, space, open_study(loaded, space))

    return go


def write_run(book: Book, number: int, scores: Sequence[Scores], *, finished: bool = True, every: int = 4) -> None:
    """Write the folder of a trial's run: a validation row for each of `scores`, and the end of the run."""
    folder = RunFolder(trial_place(book.sweep, number))
    folder.path.mkdir(parents=True)
    for position, given in enumerate(scores, 1):
        row = given if isinstance(given, dict) else {"accuracy": given}
        folder.append({"step": every * position, "kind": "validation", "loss": 1.0, **row})
        folder.append({"step": every * position, "kind": "train", "loss": 0.1, "accuracy": 9.0})
    if finished:
        folder.finish({"steps": every * len(scores), "best": max(map(_score, scores)), "best_step": 0})


def _score(given: Scores) -> float:
    return given["accuracy"] if isinstance(given, dict) else given


@pytest.fixture
def carry_out() -> Callable[..., Trial]:
    """Return a function that records one trial with given validation scores, and its end, without training."""

    def go(
        book: Book,
        scores: Sequence[Scores],
        end: Literal["complete", "stopped", "failed"] = "complete",
        seconds: float = 60.0,
    ) -> Trial:
        drawn = book.next()
        assert drawn is not None
        trial, values = drawn
        assert isinstance(book.space.recipe(values), Recipe)
        write_run(book, trial.number, scores, finished=end == "complete")
        for position, given in enumerate(scores, 1):
            book.report(trial, 4 * position, _score(given), seconds)
        if end == "complete":
            metrics = book.sweep.config.metrics
            rows = [given if isinstance(given, dict) else {"accuracy": given} for given in scores]
            best = max(rows, key=lambda row: row["accuracy"])
            book.complete(trial, [best[name] for name in metrics])
        elif end == "stopped":
            book.stop(trial)
        elif end == "failed":
            book.fail(trial, "loss is not finite at step 3\nmore <words>")
        return trial

    return go
