import pytest
import yaml

from stssl.recipes.recipe import Recipe
from stssl.sweeps.domains import build_space
from stssl.sweeps.spec import load_sweep
from stssl.sweeps.study import Book, open_study, run_name, trials_folder
from stssl.training.run_folder import RunFolder

SEARCH = {
    "algorithm.threshold": {"low": 0.2, "high": 0.9},
    "optimizer.lr": None,
    "model.injection.name": ["late", "film"],
}


@pytest.fixture
def open_book(recipe_tree, tmp_path):
    """Return a function that opens the record of trials of a sweep. A second call resumes the same sweep."""

    def go(name="s", recipe=None, **sweep):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree | (recipe or {})))
        tree = {"recipe": "recipe.yaml", "metric": "accuracy", "trials": 6, "storage": str(tmp_path / "sweeps")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree | {"search": SEARCH} | sweep))
        loaded = load_sweep(tmp_path / f"{name}.yaml")
        loaded.folder.mkdir(parents=True, exist_ok=True)
        space = build_space(loaded.config, loaded.recipe)
        return Book(loaded, space, open_study(loaded, space))

    return go


def write_run(book, number, scores, *, finished=True, every=4):
    """Write the folder of a trial's run: a validation row for each of `scores`, and the end of the run."""
    folder = RunFolder(trials_folder(book.sweep.folder) / run_name(number))
    folder.path.mkdir(parents=True)
    for position, given in enumerate(scores, 1):
        row = given if isinstance(given, dict) else {"accuracy": given}
        folder.append({"step": every * position, "kind": "validation", "loss": 1.0, **row})
        folder.append({"step": every * position, "kind": "train", "loss": 0.1, "accuracy": 9.0})
    if finished:
        folder.finish({"steps": every * len(scores), "best": max(map(_score, scores)), "best_step": 0})


def _score(given):
    return given["accuracy"] if isinstance(given, dict) else given


@pytest.fixture
def carry_out():
    """Return a function that records one trial with given validation scores, and its end, without training."""

    def go(book, scores, end="complete", seconds=60.0):
        trial, values = book.next()
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
