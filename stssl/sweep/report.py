"""The page about a sweep: what was tried, what came of it, what mattered, what it cost."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stssl.page import PAGE, text
from stssl.sweep import charts
from stssl.sweep.choosing import pareto, ranked
from stssl.sweep.confirm import Confirmation
from stssl.sweep.spec import Mode, SweepConfig
from stssl.sweep.study import Book, study_url
from stssl.sweep.table import Row, records
from stssl.train.folder import write_text

SITE = "model.injection.name"
NOTE = (
    "Stopped trials (hollow) were ended early because others were ahead at the same step: their scores are those of "
    "shorter training and are not comparable with complete trials. They do not enter the best trial, the importances "
    "or the effects below."
)


def write_sweep_report(book: Book, trials: Sequence[Row], confirmed: Confirmation | None = None) -> Path:
    """Write `report.html` into the sweep's folder and return its path."""
    config = book.sweep.config
    body = [
        f"<h1>{text(config.name)}</h1>",
        _facts(book, trials),
        *_best(book, trials),
        *([confirmed.html()] if confirmed else []),
        "<h2>History</h2>",
        *_history(config, trials),
        "<h2>What mattered</h2>",
        *_mattered(book, trials),
        *_effects(book, trials),
        "<h2>Slices</h2>",
        *charts.slices(trials, book.space.axes, 0, config.metrics[0]),
        "<h2>All complete trials</h2>",
        f"<div class='wide'>{charts.parallel(trials, book.space.axes, 0, config.metrics[0])}</div>",
        "<h2>Time</h2>",
        _time(book, trials),
        "<h2>Trials</h2>",
        _table(records(book, trials)),
        _failures(trials),
    ]
    target = book.sweep.folder / "report.html"
    write_text(target, PAGE.format(title=text(config.name), body="\n".join(body)))
    return target


def _facts(book: Book, trials: Sequence[Row]) -> str:
    config, recipe = book.sweep.config, book.sweep.recipe
    goals = ", ".join(f"{name} ({mode})" for name, mode in zip(config.metrics, config.modes, strict=True))
    counts = {state: sum(row.state == state for row in trials) for state in ("complete", "stopped", "failed")}
    left = sum(row.state == "unfinished" for row in trials)
    ended = ", ".join(f"{count} {state}" for state, count in counts.items()) + (f", {left} unfinished" if left else "")
    return (
        f"<p class='note'>Searched for {text(goals)} on validation: {len(trials)} of {config.trials} trials ({ended}); "
        f"sampler {config.sampler.name}, scheduler {config.scheduler.name}, seed {config.seed}; "
        f"{recipe.schedule.steps} steps a trial; base recipe {text(recipe.name)} ({recipe.hash()}); "
        f"study {text(_place(config))}.</p>"
    )


def _place(config: SweepConfig) -> str:
    return "study.db" if config.study is None else study_url(config).partition(":")[0]


def _best(book: Book, trials: Sequence[Row]) -> list[str]:
    config = book.sweep.config
    order = ranked(trials, config.modes)
    if not order:
        return ["<p>No trial came to its first validation.</p>"]
    several = len(config.metrics) > 1
    shown = pareto(order, config.modes) if several else order[:5]
    title = "Trials that no other dominates" if several else "Best trials"
    lines = [{"trial": line["trial"], **line} for line in records(book, shown)]
    for line in lines:
        for name in ("state", "seconds", "cpu_hours", "gpu_hours", "reason", "run", "last_step"):
            line.pop(name)
    parts = [f"<h2>{title}</h2>", _table(lines)]
    if not any(row.state == "complete" for row in order):
        parts.append("<p class='note'>No trial is complete: these are scores of shorter training.</p>")
    if several and len(order) > 1:
        parts.append(charts.front(order, shown, config.metrics))
    return parts


def _history(config: SweepConfig, trials: Sequence[Row]) -> list[str]:
    figures = [
        charts.history(trials, i, name, mode == "max")
        for i, (name, mode) in enumerate(zip(config.metrics, config.modes, strict=True))
    ]
    stopped = any(row.state == "stopped" for row in trials)
    return figures + ([f"<p class='note'>{NOTE}</p>"] if stopped else [])


def _mattered(book: Book, trials: Sequence[Row]) -> list[str]:
    complete = [row for row in trials if row.state == "complete"]
    if len(complete) < 4:
        return ["<p class='note'>Fewer than four complete trials: no importances.</p>"]
    parts = []
    for i, name in enumerate(book.sweep.config.metrics):
        shares = _importances(book, i)
        if shares:
            parts += [f"<h3>{text(name)}</h3>", charts.importances(shares)]
    note = (
        f"How much each key tells good trials from others (PED-ANOVA over {len(complete)} complete trials). "
        "With few trials this is a hint, not a measurement."
    )
    return [*parts, f"<p class='note'>{note}</p>"]


def _importances(book: Book, metric: int) -> dict[str, float]:
    """Shares by name of parameter. What is called with a target asks what makes it low."""
    import warnings

    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

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
        except (ValueError, RuntimeError):  # too few trials, or all alike
            return {}


def _effects(book: Book, trials: Sequence[Row]) -> list[str]:
    """For each choice of a site, and of other parts, the scores of its complete trials."""
    parts: list[str] = []
    name, mode = book.sweep.config.metrics[0], book.sweep.config.modes[0]
    keys = {axis.key: axis for axis in book.space.axes if axis.domain.choices}
    for key in sorted(keys, key=lambda key: key != SITE):
        groups = effect(trials, key, keys[key].domain.choices)
        if len(groups) > 1:
            title = "Effect of each injection site" if key == SITE else f"Effect of {key}"
            parts += [f"<h2>{text(title)}</h2>", charts.strips(groups, name), _spread(groups, name, mode)]
    if parts:
        parts.append(
            "<p class='note'>Complete trials only, by choice: dots are trials, the diamond is their mean with one "
            "standard deviation. Trials differ in their other keys too, and the sampler tries promising choices more "
            "often.</p>"
        )
    return parts


def effect(trials: Sequence[Row], key: str, choices: Sequence[Any]) -> dict[str, list[float]]:
    """First scores of complete trials, by choice; choices that no such trial had are left out."""
    groups = {
        str(choice): [
            row.values[0]
            for row in trials
            if row.state == "complete" and row.values and key in row.params and row.params[key] == choice
        ]
        for choice in choices
    }
    return {choice: values for choice, values in groups.items() if values}


def _spread(groups: dict[str, list[float]], name: str, mode: Mode) -> str:
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


def _time(book: Book, trials: Sequence[Row]) -> str:
    lines = []
    for state in ("complete", "stopped", "failed", "unfinished"):
        rows = [row for row in trials if row.state == state]
        if rows:
            lines.append(_hours(state, rows))
    lines.append(_hours("all", trials))
    return f"{_table(lines)}<p class='note'>The sweep took {book.hours:.3f} hours on the clock, starts included.</p>"


def _hours(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "trials": name,
        "number": len(rows),
        "hours": sum(row.seconds for row in rows) / 3600,
        "CPU hours": sum(row.cpu_hours for row in rows),
        "GPU hours": sum(row.gpu_hours for row in rows),
    }


def _failures(trials: Sequence[Row]) -> str:
    failed = [row for row in trials if row.reason]
    if not failed:
        return ""
    blocks = "".join(
        f"<details><summary>Trial {row.number}: {text((row.reason or '').splitlines()[0])}</summary>"
        f"<pre>{text(row.reason)}</pre></details>"
        for row in failed
    )
    return f"<h2>Failed trials</h2>{blocks}"


def _table(lines: Sequence[dict[str, Any]]) -> str:
    """A table of mappings with the same keys; columns that are empty throughout are left out."""
    if not lines:
        return ""
    names = [name for name in lines[0] if name != "run" and any(line[name] is not None for line in lines)]
    head = "".join(f"<th>{text(name if '.' in name else name.replace('_', ' '))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(_cell(line[name]) for name in names)}</tr>" for line in lines)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td class=text>{text(value)}</td>"
    return f"<td>{value if isinstance(value, int) else f'{value:.4g}'}</td>"
