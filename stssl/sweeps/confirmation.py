"""The best trials again, with seeds that the search did not see: mean and spread on validation, then test, once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markupsafe import Markup

from stssl.analysis.page import joined
from stssl.base.errors import RunError
from stssl.base.whole_files import is_there
from stssl.recipes.recipe import Recipe
from stssl.sweeps.choosing import chosen_recipe, ranked
from stssl.sweeps.local import train_here
from stssl.sweeps.outcomes import outcome, scored
from stssl.sweeps.session import tune_session
from stssl.sweeps.study import Book
from stssl.sweeps.table import TrialRow
from stssl.sweeps.trials import REASON, trial, trial_recipe
from stssl.training.checkpoint import UnusableError
from stssl.training.kept import Confirmed, Scored, read_kept
from stssl.training.run_folder import RunFolder, write_text
from stssl.training.trained_run import evaluate_run

BASE = "recipe"
"""What the base recipe is called among the trials."""
ADVICE = "Delete it: the same `stssl sweep --top N` writes it again."


@dataclass(frozen=True)
class Candidate:
    """A recipe with several seeds.

    Attributes:
        name: `trial-0007`, or `recipe` for the sweep's base recipe.
        validation: Metric to a value for each seed that came to its end.
        test: The same on test, for the winner and the base recipe alone.
        failed: Seeds that did not come to their end.
    """

    name: str
    validation: dict[str, list[float]]
    test: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0


@dataclass(frozen=True)
class Confirmation:
    """Hold the scores of the best trials run again with other seeds.

    Attributes:
        seeds: The seeds of runs and of label draws.
        candidates: Best mean on validation first, those with failed seeds last; the base recipe is among them.
        looks: When test was evaluated, and for whom.
    """

    seeds: list[int]
    candidates: list[Candidate]
    looks: list[dict[str, Any]]

    def html(self) -> Markup:
        """A section of the report."""
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
    """Mean and standard deviation for people."""
    if not values:
        return "–"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def confirm(book: Book, trials: Sequence[TrialRow], top: int, seeds: int, say: Callable[[str], None]) -> Confirmation:
    """Train the best `top` trials and the base recipe with `seeds` new seeds each; runs that are finished are kept.

    Args:
        book: The study.
        trials: Its trials.
        top: How many of the best trials to train again.
        seeds: Seeds for each of them.
        say: Prints a line of progress.

    Raises:
        RunError: No trial has scores, or no re-run came to its end.
    """
    config, base = book.sweep.config, book.sweep.recipe
    best = ranked(trials, config.modes)[:top]
    if not best:
        raise RunError(f"no trial of {book.sweep.folder} has scores, so there is nothing to run again")
    recipes = {row.run.name: chosen_recipe(book, row, row.run.name) for row in best}
    recipes = {name: recipe for name, recipe in recipes.items() if recipe.hash() != base.hash()} | {BASE: base}
    numbers = list(range(base.seed + 1, base.seed + 1 + seeds))
    runs = {name: [_seeded(recipe, name, number, book) for number in numbers] for name, recipe in recipes.items()}
    left = [recipe for group in runs.values() for recipe in group if not RunFolder.of(recipe).finished()]
    if left:
        say(f"{len(left)} runs with other seeds to do, of {len(recipes)} candidates")
        _train(book, left)
    found = [_candidate(name, group, config.metrics) for name, group in runs.items()]
    sign = 1 if config.modes[0] == "max" else -1
    ended = [one for one in found if one.validation[config.metrics[0]]]
    if not ended:
        raise RunError(f"no run with another seed came to its end; see {book.sweep.folder / 'confirm'}/*/failed.txt")
    # The mean over the seeds that a candidate survived says too much good of it: those that lost none come first.
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
    """Read the scores that an earlier start found."""
    if not is_there(_file(book)):
        return None
    kept = read_kept(Confirmed, _file(book), ADVICE)[0]
    candidates = [Candidate(one.name, one.validation, one.test, one.failed) for one in kept.candidates]
    return Confirmation(kept.seeds, candidates, [look.model_dump() for look in kept.looks])


def _file(book: Book) -> Path:
    return book.sweep.folder / "confirmation.json"


def _plain(result: Confirmation) -> dict[str, Any]:
    return {"seeds": result.seeds, "looks": result.looks, "candidates": [vars(one) for one in result.candidates]}


def _seeded(recipe: Recipe, name: str, seed: int, book: Book) -> Recipe:
    labels = recipe.labels.model_copy(update={"seed": seed})
    again = recipe.model_copy(update={"seed": seed, "labels": labels})
    return trial_recipe(again, f"{name}-s{seed}", book.sweep.folder / "confirm")


def _train(book: Book, recipes: Sequence[Recipe]) -> None:
    for recipe in recipes:
        (RunFolder.of(recipe).path / REASON).unlink(missing_ok=True)
    if book.sweep.recipe.launch.workers == 0:
        train_here(recipes)
        return
    from ray import tune

    trees = [recipe.tree() for recipe in recipes]
    with tune_session(book) as (room, options):
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_again, trees=trees), options.pop("driver")),
            param_space={"number": tune.grid_search(list(range(len(trees))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=room, reuse_actors=False),
            **options,
        ).fit()


def _again(config: dict[str, Any], trees: Sequence[dict[str, Any]]) -> None:
    trial({"number": config["number"], "recipe": trees[config["number"]]})


def _candidate(name: str, runs: Sequence[Recipe], metrics: tuple[str, ...]) -> Candidate:
    ends = [outcome(RunFolder.of(recipe).path, metrics) for recipe in runs]
    finished = [end for end in ends if end is not None and end.finished]
    scores = {metric: [end.values[i] for end in finished] for i, metric in enumerate(metrics)}
    return Candidate(name, scores, {}, len(runs) - len(finished))


def _evaluate(folder: RunFolder) -> None:
    """Score a run on test.

    Raises:
        RunError: Its best checkpoint is lost; says how to have it again.
    """
    try:
        folder.checkpoints.best()
    except UnusableError as error:
        raise RunError(
            f"{error}. Put a whole one back, or delete {folder.path}: the same `stssl sweep --top N` trains it again."
        ) from None
    evaluate_run(folder.path, "test")


def _test(book: Book, chosen: Sequence[Candidate], runs: dict[str, list[Recipe]]) -> list[dict[str, Any]]:
    """Evaluate the chosen on test where that was not done before, and write down that it was."""
    old = confirmed(book)
    looks = list(old.looks) if old else []
    known, fresh = {name for look in looks for name in look["runs"]}, list[str]()
    for one in chosen:
        for recipe in runs[one.name]:
            folder = RunFolder.of(recipe)
            if not folder.finished():
                continue
            file = folder.path / "evaluation" / "test.json"
            if not is_there(file):
                _evaluate(folder)
                fresh.append(one.name)
            elif one.name not in known:  # a start that was killed looked, and did not come to say so
                fresh.append(one.name)
            scores = read_kept(Scored, file, f"Evaluate it again: `stssl evaluate {folder.path}`.")[0].student
            if scores.get("loss") is None:
                continue  # predictions on test are not finite where those on validation were
            for metric in book.sweep.config.metrics:
                value = scored(scores).get(metric)
                if value is None:
                    raise RunError(
                        f"{file} has no score {metric}: no patch of the test part tells. Give another metric."
                    )
                one.test.setdefault(metric, []).append(value)
    if fresh:
        now = datetime.now().isoformat(timespec="minutes")
        looks.append({"time": now, "runs": list(dict.fromkeys(fresh))})
    return looks
