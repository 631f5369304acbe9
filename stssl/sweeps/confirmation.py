"""Train a sweep's best recipes again with new seeds, choose the winner on validation, and score it on test patches.

The base recipe is trained and scored in the same way, for comparison.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import TypedDict

from markupsafe import Markup

from stssl.analysis.page import joined
from stssl.base.errors import RunError
from stssl.base.json_types import JsonObject
from stssl.base.paths import below
from stssl.base.whole_files import is_there
from stssl.recipes.recipe import Recipe
from stssl.sweeps.results import TrialRow, chosen_recipe, ranked
from stssl.sweeps.study import Book
from stssl.sweeps.trials import forget_failure, outcome, scored, trial, trial_recipe
from stssl.sweeps.tuning import train_here, tune_session
from stssl.training.checkpoints import UnusableError
from stssl.training.run_files import ConfirmationFile, ScoresFile, read_run_file
from stssl.training.run_folder import RunFolder, write_text
from stssl.training.trained_run import evaluate_run

CONFIRM = "confirm"
"""Folder in a sweep's folder that holds these runs."""
BASE = "recipe"
"""Name of the sweep's base recipe among the candidates."""
CONFIRMATION_ADVICE = "Delete it: the same `stssl sweep --top N` writes it again."


class TestLook(TypedDict):
    """Record one evaluation on the test patches: its time (ISO format), and the names of the candidates (recipes)."""

    time: str
    runs: list[str]


@dataclass(frozen=True)
class Candidate:
    """Describe a recipe of a sweep that was trained again with several seeds: its scores with each seed.

    Attributes:
        name: Name of a trial, such as `trial-0007`, or `recipe` for the sweep's base recipe.
        validation: Validation scores by metric: one value for each seed with which the run reached its end.
        test: Test scores by metric. Only the winner and the base recipe have them.
        failed: Number of seeds with which the run did not reach its end.
    """

    name: str
    validation: dict[str, list[float]]
    test: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0


@dataclass(frozen=True)
class Confirmation:
    """Describe how well a sweep's best recipes and its base recipe score after training with other seeds.

    Attributes:
        seeds: Seeds of the new runs. Each seed also chooses which patches are labeled.
        candidates: Recipes with at least one finished run. They are sorted by number of failed seeds, then by mean
            score on validation, best first. The base recipe is one of them, if one of its runs was finished.
        looks: Records of the evaluations on test: when, and of which candidates.
    """

    seeds: list[int]
    candidates: list[Candidate]
    looks: list[TestLook]

    def html(self) -> Markup:
        """Return a section of the sweep's HTML report: a table with the scores of each candidate (recipe).

        The table has mean and standard deviation over the seeds, on validation and on test.
        """
        names = list(self.candidates[0].validation)
        head = Markup("<th>{}, {}</th>")
        return _SECTION.format(
            head=joined("", (head.format(name, part) for part in ("validation", "test") for name in names)),
            lines=joined("", (_line(one, names) for one in self.candidates)),
            seeds=", ".join(map(str, self.seeds)),
            looks="; ".join(f"{look['time']}: {', '.join(look['runs'])}" for look in self.looks) or "never",
        )


_SECTION = Markup(
    "<h2>Again with other seeds</h2><div class='wide'><table><thead><tr><th>candidate</th><th>runs</th>"
    "{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    "<p class='note'>Mean ± standard deviation over seeds {seeds}, none of which the search used; a seed changes "
    "networks, orders and the draw of labels. The winner is chosen by its mean on validation. Test was evaluated after "
    "that, for the winner and the base recipe: {looks}.</p>"
)


def _line(one: Candidate, names: Sequence[str]) -> Markup:
    cells = [words(scores.get(name, [])) for scores in (one.validation, one.test) for name in names]
    runs = len(one.validation[names[0]])
    return Markup("<tr><td>{}</td><td>{}</td>{}</tr>").format(
        one.name, runs, joined("", (Markup("<td>{}</td>").format(cell) for cell in cells))
    )


def words(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation of scores as text, such as `0.9120 ± 0.0040`.

    For one score, return only this score. For no score, return `–`.
    """
    if not values:
        return "–"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def confirm(book: Book, trials: Sequence[TrialRow], top: int, seeds: int, say: Callable[[str], None]) -> Confirmation:
    """Train a sweep's best recipes and its base recipe with new seeds; score the winner and the base recipe on test.

    Runs that an earlier start of the sweep trained to their end are not trained again.

    Args:
        book: Manager of the sweep's study and trials.
        trials: Trials of the sweep.
        top: Number of best trials whose recipes are trained again.
        seeds: Number of new seeds for each recipe.
        say: Called with each line of text that tells the user about the progress.

    Returns:
        Scores of all candidates (recipes). The file `confirmation.json` in the sweep's folder gets the same scores.

    Raises:
        RunError: No trial has scores, none of the new runs was trained to its end, or a metric cannot be computed on
            the test patches.
    """
    config, base = book.sweep.config, book.sweep.recipe
    best = ranked(trials, config.modes)[:top]
    if not best:
        raise RunError(f"no trial of {book.sweep.place} has scores, so there is nothing to run again")
    recipes = {row.name: chosen_recipe(book, row, row.name) for row in best}
    # Leave out trials that equal the base recipe: they would be trained twice.
    recipes = {name: recipe for name, recipe in recipes.items() if recipe.hash() != base.hash()} | {BASE: base}
    # Use new seeds, which cannot favor the best trials by luck: all trials of the search had the base recipe's seed.
    numbers = list(range(base.seed + 1, base.seed + 1 + seeds))
    runs = {name: [_seeded(recipe, name, number, book) for number in numbers] for name, recipe in recipes.items()}
    left = [recipe for group in runs.values() for recipe in group if not _opened(recipe).finished()]
    if left:
        say(f"{len(left)} runs with other seeds to do, of {len(recipes)} candidates")
        _train(book, left)
    found = [_candidate(name, group, config.metrics) for name, group in runs.items()]
    sign = 1 if config.modes[0] == "max" else -1
    ended = [one for one in found if one.validation[config.metrics[0]]]
    if not ended:
        raise RunError(f"no run with another seed came to its end; see {below(book.sweep.place, CONFIRM)}/*/failed.txt")
    # Put candidates without failed seeds first: the mean of the others leaves out failed seeds and may be too good.
    ended.sort(key=lambda one: (one.failed, -sign * mean(one.validation[config.metrics[0]])))
    chosen = [*ended[:1], *(one for one in ended[1:] if one.name == BASE)]
    looks = _test(book, chosen, runs)
    result = Confirmation(numbers, ended, looks)
    write_text(_file(book), json.dumps(_plain(result), indent=1))
    for one in result.candidates:
        scores = ", ".join(f"{name} {words(values)}" for name, values in one.validation.items())
        test = ", ".join(f"{name} {words(values)}" for name, values in one.test.items())
        say(f"{one.name}: validation {scores}" + (f"; test {test}" if test else ""))
    return result


def confirmed(book: Book) -> Confirmation | None:
    """Read the scores with new seeds, which an earlier start of the sweep wrote into `confirmation.json`.

    Return None if this file does not exist. `book` manages the sweep's study, and knows the sweep's folder.
    """
    if not is_there(_file(book)):
        return None
    kept = read_run_file(ConfirmationFile, _file(book), CONFIRMATION_ADVICE)[0]
    candidates = [Candidate(one.name, one.validation, one.test, one.failed) for one in kept.candidates]
    return Confirmation(kept.seeds, candidates, [TestLook(time=look.time, runs=look.runs) for look in kept.looks])


def _file(book: Book) -> Path:
    return book.sweep.folder / "confirmation.json"


def _plain(result: Confirmation) -> dict[str, object]:
    return {"seeds": result.seeds, "looks": result.looks, "candidates": [vars(one) for one in result.candidates]}


def _seeded(recipe: Recipe, name: str, seed: int, book: Book) -> Recipe:
    """Return a copy of a recipe for a run with another seed, which also chooses the labeled patches.

    The copy's name is `NAME-sSEED`. Its run lies in the folder `confirm` of the sweep's folder.

    Args:
        recipe: Recipe to copy.
        name: Name of the candidate: that of a trial, or `recipe` for the base recipe.
        seed: Seed of the new run.
        book: Manager of the sweep, which knows the sweep's folder.
    """
    labels = recipe.labels.model_copy(update={"seed": seed})
    again = recipe.model_copy(update={"seed": seed, "labels": labels})
    return trial_recipe(again, f"{name}-s{seed}", below(book.sweep.place, CONFIRM))


def _train(book: Book, recipes: Sequence[Recipe]) -> None:
    """Train recipes in this process if the base recipe's key `launch.workers` is 0, else as trials of Ray Tune.

    If one fails, the reason is written into its run's folder, and the others go on.

    Args:
        book: Manager of the sweep's study and trials.
        recipes: Recipes of the new runs, one for each candidate and seed.
    """
    for recipe in recipes:
        forget_failure(RunFolder.of(recipe).place)
    if book.sweep.recipe.launch.workers == 0:
        train_here(recipes)
        return
    from ray import tune

    trees = [recipe.tree() for recipe in recipes]
    with tune_session(book) as session:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_again, trees=trees), session.driver),
            param_space={"number": tune.grid_search(list(range(len(trees))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=session.room, reuse_actors=False),
            run_config=session.run_config,
        ).fit()


def _again(config: dict[str, int], trees: Sequence[JsonObject]) -> None:
    trial({"number": config["number"], "recipe": trees[config["number"]]})


def _candidate(name: str, runs: Sequence[Recipe], metrics: tuple[str, ...]) -> Candidate:
    ends = [outcome(RunFolder.of(recipe).place, metrics) for recipe in runs]
    finished = [end for end in ends if end is not None and end.finished]
    scores = {metric: [end.values[i] for end in finished] for i, metric in enumerate(metrics)}
    return Candidate(name, scores, {}, len(runs) - len(finished))


def _opened(recipe: Recipe) -> RunFolder:
    """Return the folder of a recipe's run. If the run lies in an object store, fetch its files first."""
    folder = RunFolder.of(recipe)
    folder.refresh()
    return folder


def _evaluate(folder: RunFolder) -> None:
    """Score a run's networks on the test patches, and write the scores into the run's folder.

    Raises:
        RunError: The run's best checkpoint is missing or damaged. The message says how to get it back.
    """
    try:
        folder.checkpoints.best()
    except UnusableError as error:
        raise RunError(
            f"{error}. Put a whole one back, or delete {folder.place}: the same `stssl sweep --top N` trains it again."
        ) from None
    evaluate_run(folder.place, "test")


def _test(book: Book, chosen: Sequence[Candidate], runs: dict[str, list[Recipe]]) -> list[TestLook]:
    """Score the runs of the winner and of the base recipe on test, and record when. Do not score a run a second time.

    Args:
        book: Manager of the sweep's study and trials.
        chosen: The winner and the base recipe. This function fills their dict `test`.
        runs: Recipes of each candidate's runs, one for each seed, by the candidate's name.

    Returns:
        Records of all evaluations on test so far, including those of earlier starts of the sweep.

    Raises:
        RunError: A metric of the sweep cannot be computed on the test patches.
    """
    old = confirmed(book)
    looks = list(old.looks) if old else []
    known, fresh = {name for look in looks for name in look["runs"]}, list[str]()
    for one in chosen:
        for recipe in runs[one.name]:
            folder = _opened(recipe)
            if not folder.finished():
                continue
            file = folder.path / "evaluation" / "test.json"
            if not is_there(file):
                _evaluate(folder)
                fresh.append(one.name)
            elif one.name not in known:
                # An earlier start evaluated this candidate, but was killed before it recorded that. Record it now.
                fresh.append(one.name)
            scores = read_run_file(ScoresFile, file, f"Evaluate it again: `stssl evaluate {folder.place}`.")[0].student
            if scores.get("loss") is None:
                continue  # no metric can be computed: predictions are not finite, although they were on validation
            for metric in book.sweep.config.metrics:
                value = scored(scores).get(metric)
                if value is None:
                    raise RunError(
                        f"{file} has no score {metric}, which cannot be computed on the test part. Give another metric."
                    )
                one.test.setdefault(metric, []).append(value)
    if fresh:
        now = datetime.now().isoformat(timespec="minutes")
        looks.append({"time": now, "runs": list(dict.fromkeys(fresh))})
    return looks
