"""Write the HTML page about a sweep: its trials and scores, the keys that mattered, and the time it took."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from urllib.parse import quote

from markupsafe import Markup

from stssl.analysis.page import joined, note, page
from stssl.analysis.tables import Cell, CellValue, table
from stssl.base.json_types import JsonMapping, JsonObject, JsonValue
from stssl.base.whole_files import is_there, write_whole
from stssl.sweeps import charts
from stssl.sweeps.confirmation import Confirmation
from stssl.sweeps.results import TrialRow, pareto, ranked, records
from stssl.sweeps.spec import Mode, SweepConfig
from stssl.sweeps.study import Book, study_url

SITE = "model.injection.name"
"""Recipe key whose effect the page shows first: the place where metadata enters the backbone."""
NOTE = (
    "Stopped trials (hollow) were ended early because others were ahead at the same step: their scores are those of "
    "shorter training and are not comparable with complete trials. They do not enter the best trial, the importances "
    "or the effects below."
)


def write_sweep_report(book: Book, trials: Sequence[TrialRow], confirmed: Confirmation | None = None) -> Path:
    """Write the HTML page `report.html` into the sweep's folder, and return its path.

    Args:
        book: Manager of the sweep's study and trials.
        trials: Trials of the sweep.
        confirmed: Scores of the best recipes after training with other seeds; None if this was not done.
    """
    config = book.sweep.config
    body = [
        Markup("<h1>{}</h1>").format(config.name),
        _facts(book, trials),
        *_best(book, trials),
        *([confirmed.html()] if confirmed else []),
        Markup("<h2>History</h2>"),
        *_history(config, trials),
        Markup("<h2>What mattered</h2>"),
        *_mattered(book, trials),
        *_effects(book, trials),
        Markup("<h2>Slices</h2>"),
        *charts.slices(trials, book.space.axes, 0, config.metrics[0]),
        Markup("<h2>All complete trials</h2>"),
        Markup("<div class='wide'>{}</div>").format(charts.parallel(trials, book.space.axes, 0, config.metrics[0])),
        Markup("<h2>Time</h2>"),
        _time(book, trials),
        Markup("<h2>Trials</h2>"),
        _table(records(book, trials), book.sweep.folder),
        _failures(trials),
    ]
    target = book.sweep.folder / "report.html"
    write_whole(target, page(config.name, body))
    return target


def _facts(book: Book, trials: Sequence[TrialRow]) -> Markup:
    """Return a paragraph of HTML that describes the search: metrics, number of trials, sampler, base recipe."""
    config, recipe = book.sweep.config, book.sweep.recipe
    goals = ", ".join(f"{name} ({mode})" for name, mode in zip(config.metrics, config.modes, strict=True))
    counts = {state: sum(row.state == state for row in trials) for state in ("complete", "stopped", "failed")}
    left = sum(row.state == "unfinished" for row in trials)
    ended = ", ".join(f"{count} {state}" for state, count in counts.items()) + (f", {left} unfinished" if left else "")
    return note(
        f"Searched for {goals} on validation: {len(trials)} of {config.trials} trials ({ended}); "
        f"sampler {config.sampler.name}, scheduler {config.scheduler.name}, seed {config.seed}; "
        f"{recipe.schedule.steps} steps a trial; base recipe {recipe.name} ({recipe.hash()}); "
        f"study {_place(config)}."
    )


def _place(config: SweepConfig) -> str:
    return "study.db" if config.study is None else study_url(config).partition(":")[0]


def _best(book: Book, trials: Sequence[TrialRow]) -> list[Markup]:
    """Return HTML parts about the best trials: a heading, a table, and notes.

    The table has the five best trials. With several metrics, it has all trials that no other one dominates, and a
    figure shows them. If no trial has scores, return only a sentence that says so.
    """
    config = book.sweep.config
    order = ranked(trials, config.modes)
    if not order:
        return [Markup("<p>No trial came to its first validation.</p>")]
    several = len(config.metrics) > 1
    shown = pareto(order, config.modes) if several else order[:5]
    title = "Trials that no other dominates" if several else "Best trials"
    lines = records(book, shown)
    for line in lines:
        for name in ("state", "seconds", "cpu_hours", "gpu_hours", "reason", "last_step"):
            line.pop(name)
    parts = [Markup("<h2>{}</h2>").format(title), _table(lines, book.sweep.folder)]
    if not any(row.state == "complete" for row in order):
        parts.append(note("No trial is complete: these are scores of shorter training."))
    if several and len(order) > 1:
        parts.append(charts.front(order, shown, config.metrics))
    return parts


def _history(config: SweepConfig, trials: Sequence[TrialRow]) -> list[Markup]:
    figures = [
        charts.history(trials, i, name, mode == "max")
        for i, (name, mode) in enumerate(zip(config.metrics, config.modes, strict=True))
    ]
    stopped = any(row.state == "stopped" for row in trials)
    return figures + ([note(NOTE)] if stopped else [])


def _mattered(book: Book, trials: Sequence[TrialRow]) -> list[Markup]:
    """Return HTML parts about the importance of keys: a heading and a bar chart for each metric, and a note.

    A key is important if its values tell good trials from others. With fewer than four complete trials, return only a
    note that says so.
    """
    complete = [row for row in trials if row.state == "complete"]
    if len(complete) < 4:
        return [note("Fewer than four complete trials: no importances.")]
    parts: list[Markup] = []
    for i, name in enumerate(book.sweep.config.metrics):
        shares = _importances(book, i)
        if shares:
            parts += [Markup("<h3>{}</h3>").format(name), charts.importances(shares)]
    words = (
        f"How much each key tells good trials from others (PED-ANOVA over {len(complete)} complete trials). "
        "With few trials this is a hint, not a measurement."
    )
    return [*parts, note(words)]


def _importances(book: Book, metric: int) -> dict[str, float]:
    """Compute how important each searched key is for one metric, by PED-ANOVA (arXiv:2304.10255).

    Args:
        book: Manager of the sweep's study and trials.
        metric: Position of the metric among the sweep's metrics, from 0.

    Returns:
        Share from 0 to 1 for each searched key, by the key's name in the Optuna study. Empty if it cannot be computed,
        for example from too few trials.
    """
    import warnings

    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    # With a `target`, Optuna always takes small values as good, so change the sign if larger is better.
    sign = -1 if book.sweep.config.modes[metric] == "max" else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(
                get_param_importances(
                    book.study,
                    evaluator=PedAnovaImportanceEvaluator(),
                    target=lambda trial: sign * trial.values[metric],
                )
            )
        except (ValueError, RuntimeError):  # too few trials, or all have the same score: show no importances
            return {}


def _effects(book: Book, trials: Sequence[TrialRow]) -> list[Markup]:
    """Show, for each searched key with a list of choices, the scores of the complete trials with each choice.

    Return HTML parts: for each key a heading, a figure and a table, and a note at the end. Leave out keys of which
    complete trials had only one choice.
    """
    parts: list[Markup] = []
    name, mode = book.sweep.config.metrics[0], book.sweep.config.modes[0]
    keys = {axis.key: axis for axis in book.space.axes if axis.domain.choices}
    for key in sorted(keys, key=lambda key: key != SITE):
        groups = effect(trials, key, keys[key].domain.choices)
        if len(groups) > 1:
            title = "Effect of each injection site" if key == SITE else f"Effect of {key}"
            parts += [Markup("<h2>{}</h2>").format(title), charts.strip_plot(groups, name), _spread(groups, name, mode)]
    if parts:
        parts.append(
            note(
                "Complete trials only, by choice: dots are trials, the diamond is their mean with one standard "
                "deviation. Trials differ in their other keys too, and the sampler tries promising choices more often."
            )
        )
    return parts


def effect(trials: Sequence[TrialRow], key: str, choices: Sequence[object]) -> dict[str, list[float]]:
    """Group complete trials by the value that they have for one key.

    Args:
        trials: Trials of the study.
        key: Searched key.
        choices: Values that the key may have.

    Returns:
        Scores of each group's trials by the first metric. The dict's keys are the choices as text, in the sequence of
        `choices`. Choices that no complete trial has are left out.
    """
    groups = {
        str(choice): [
            row.values[0]
            for row in trials
            if row.state == "complete" and row.values and key in row.params and row.params[key] == choice
        ]
        for choice in choices
    }
    return {choice: values for choice, values in groups.items() if values}


def _spread(groups: dict[str, list[float]], name: str, mode: Mode) -> Markup:
    best, worst = (max, min) if mode == "max" else (min, max)
    return _table(
        [
            {
                "choice": choice,
                "trials": len(values),
                f"mean {name}": mean(values),
                "standard deviation": stdev(values) if len(values) > 1 else None,
                "best": best(values),
                "worst": worst(values),
            }
            for choice, values in groups.items()
        ]
    )


def _time(book: Book, trials: Sequence[TrialRow]) -> Markup:
    lines = []
    for state in ("complete", "stopped", "failed", "unfinished"):
        rows = [row for row in trials if row.state == state]
        if rows:
            lines.append(_hours(state, rows))
    lines.append(_hours("all", trials))
    return _table(lines) + note(f"The sweep took {book.hours:.3f} hours on the clock, starts included.")


def _hours(name: str, rows: Sequence[TrialRow]) -> JsonObject:
    return {
        "trials": name,
        "number": len(rows),
        "hours": sum(row.seconds for row in rows) / 3600,
        "CPU hours": sum(row.cpu_hours for row in rows),
        "GPU hours": sum(row.gpu_hours for row in rows),
    }


def _failures(trials: Sequence[TrialRow]) -> Markup:
    failed = [row for row in trials if row.reason]
    if not failed:
        return Markup()
    block = Markup("<details><summary>Trial {}: {}</summary><pre>{}</pre></details>")
    return Markup("<h2>Failed trials</h2>") + joined(
        "", (block.format(row.number, (row.reason or "").splitlines()[0], row.reason) for row in failed)
    )


def _table(lines: Sequence[JsonMapping], folder: Path | None = None) -> Markup:
    """Return an HTML table with one row for each mapping in `lines`; an empty text if there are none.

    Leave out the column `run`, and columns in which all values are None.

    Args:
        lines: Values of each row by the name of the column. All rows have the same columns.
        folder: Folder of the page. If it is given, the number of each trial links to the folder of its run.
    """
    if not lines:
        return Markup()
    names = [name for name in lines[0] if name != "run" and any(line[name] is not None for line in lines)]
    rows = [
        [_linked(line, folder) if name == "trial" and folder else _cell(line[name]) for name in names] for line in lines
    ]
    return table([name if "." in name else name.replace("_", " ") for name in names], rows)


def _linked(line: JsonMapping, folder: Path) -> CellValue:
    """Return a table cell with the number of a trial, as a link to the folder of its run if this folder exists.

    The link is relative to the page's folder, so that the page and the runs can move together.

    Args:
        line: Table row of the trial, with its number in `trial` and the path of its run in `run`.
        folder: Folder of the page.
    """
    number, run = line["trial"], line.get("run")
    # Show the number without a link if the run has no folder: the trial failed early, or its run was deleted.
    if not isinstance(number, int) or not isinstance(run, str) or not is_there(Path(run)):
        return _cell(number)
    place = quote(os.path.relpath(run, folder).encode("utf-8", "replace"))
    return Cell(Markup("<a href='{}/'>{}</a>").format(place, number), number)


def _cell(value: JsonValue) -> CellValue:
    return value if value is None or (isinstance(value, int | float) and not isinstance(value, bool)) else str(value)
