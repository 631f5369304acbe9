"""Read a sweep's trials from the study, write them as tables, and choose the best trial."""

import contextlib
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stssl.base.errors import RunError
from stssl.base.json_types import JsonObject, JsonValue
from stssl.base.logs import LOG
from stssl.base.paths import below, is_url
from stssl.base.whole_files import write_whole
from stssl.recipes.recipe import Recipe
from stssl.sweeps.space import TrialValues
from stssl.sweeps.spec import Mode
from stssl.sweeps.study import Book, run_name, trial_place
from stssl.sweeps.trials import needs, outcome
from stssl.training.checkpoints import UnusableError
from stssl.training.run_folder import RunFolder, write_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TrialState = Literal["complete", "stopped", "failed", "unfinished"]
STATES: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "unfinished"}
"""Word for the state of a trial, such as `complete`, by Optuna's name of the state."""


@dataclass(frozen=True)
class TrialRow:
    """Describe one trial (training run) of a sweep: its state, scores, time and values of recipe keys.

    Attributes:
        number: Number of the trial, counted from 0.
        state: `complete`, `stopped` early (its scores come from shorter training), `failed` or `unfinished`.
        values: Scores of the trial's best checkpoint so far, one for each metric; None before the first validation.
        step: Training step of that checkpoint; None before the first validation.
        last: Last training step after which the trial was validated; None before the first validation.
        seconds: Time that the trial took, summed over its starts.
        cpu_hours: Number of CPUs of the trial's workers, times the hours that it took.
        gpu_hours: Number of GPUs of the trial's workers, times the hours that it took.
        params: Dotted recipe keys that the search set for this trial, and their values.
        reason: Reason why the trial failed; None if it did not fail.
        run: Path or URL of the folder of the trial's run.
    """

    number: int
    state: TrialState
    values: list[float] | None
    step: int | None
    last: int | None
    seconds: float
    cpu_hours: float
    gpu_hours: float
    params: TrialValues
    reason: str | None
    run: str

    @property
    def name(self) -> str:
        """Return the name of the trial's run, such as `trial-0007`."""
        return run_name(self.number)


def rows(book: Book) -> list[TrialRow]:
    """Return a `TrialRow` for each trial of a sweep that was started, sorted by number.

    The data come from the sweep's study and from the folders of the trials' runs. `book` manages both.
    """
    return [_row(book, trial) for trial in book.study.get_trials(deepcopy=False) if trial.state.name in STATES]


def _row(book: Book, trial: "FrozenTrial") -> TrialRow:
    place = trial_place(book.sweep, trial.number)
    ended = outcome(place, book.sweep.config.metrics)
    values = list(trial.values) if trial.state.name == "COMPLETE" else ended.values if ended else None
    seconds, held = float(trial.user_attrs.get("seconds", 0.0)), needs(book.sweep.recipe.launch)
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state.name],
        values=values,
        step=ended.step if ended else None,
        last=ended.last if ended else None,
        seconds=seconds,
        cpu_hours=seconds * held.get("CPU", 0.0) / 3600,
        gpu_hours=seconds * held.get("GPU", 0.0) / 3600,
        params=book.space.values(trial.params),
        reason=trial.user_attrs.get("reason"),
        run=place,
    )


def records(book: Book, trials: Sequence[TrialRow]) -> list[JsonObject]:
    """Return a table row for each trial: a dict from the names of columns to texts, numbers or None.

    The columns are state, scores, time, and the trial's values of the searched keys. A cell is None if the trial has no
    such value.

    Args:
        book: Manager of the sweep's study, which knows its metrics and searched keys.
        trials: Trials, one for each row.
    """
    metrics, keys = book.sweep.config.metrics, dict.fromkeys(axis.key for axis in book.space.axes)
    return [
        {"trial": row.number, "state": row.state}
        | {name: row.values[i] if row.values else None for i, name in enumerate(metrics)}
        | {"best_step": row.step, "last_step": row.last, "seconds": row.seconds}
        | {"cpu_hours": round(row.cpu_hours, 5), "gpu_hours": round(row.gpu_hours, 5)}
        | {key: _flat(row.params.get(key)) for key in keys}
        | {"reason": row.reason.splitlines()[0] if row.reason else None, "run": row.run}
        for row in trials
    ]


def _flat(value: JsonValue) -> JsonValue:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def write_table(book: Book, trials: Sequence[TrialRow]) -> None:
    """Write a table of trials as `trials.csv` and `trials.parquet` into the sweep's folder; nothing without trials."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = records(book, trials)
    if not lines:
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_whole(book.sweep.folder / "trials.csv", text.getvalue())
    columns = {name: [line[name] for line in lines] for name in lines[0]}
    for name, column in columns.items():
        # Write mixed values as text: a Parquet column has one type, but a key may have the choices 0.5 and "auto".
        kinds = {type(value) for value in column if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            columns[name] = [None if value is None else str(value) for value in column]
    table = pa.table(columns)
    write_whole(book.sweep.folder / "trials.parquet", lambda file: pq.write_table(table, file))


def ranked(trials: Sequence[TrialRow], modes: Sequence[Mode]) -> list[TrialRow]:
    """Return the complete trials, best first. If none is complete, return unfinished and stopped trials with scores.

    With several metrics, trials that no other trial dominates come first. After that, the first metric decides.

    Args:
        trials: Trials of a sweep.
        modes: `max` or `min` for each metric: whether larger or smaller scores are better.
    """
    complete = [row for row in trials if row.state == "complete" and row.values]
    candidates = complete or [row for row in trials if row.values and row.state != "failed"]
    front = {row.number for row in pareto(candidates, modes)} if len(modes) > 1 else set()
    return sorted(candidates, key=lambda row: (row.number not in front, -_gains(row, modes)[0], row.number))


def pareto(trials: Sequence[TrialRow], modes: Sequence[Mode]) -> list[TrialRow]:
    """Return the Pareto front: the trials with scores that no other trial dominates.

    A trial dominates another one if it is worse in no metric, and better in at least one. `modes` says for each metric
    whether larger (`max`) or smaller scores (`min`) are better.
    """
    found = [(row, _gains(row, modes)) for row in trials if row.values]
    return [row for row, own in found if not any(dominates(other, own) for _, other in found)]


def dominates(one: list[float], other: list[float]) -> bool:
    """Return True if one trial dominates another one: none of its scores is worse, and at least one is better.

    Args:
        one: Scores of the first trial, one for each metric. Larger ones are better.
        other: Scores of the second trial, in the same form.
    """
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def gains(values: Sequence[float], modes: Sequence[Mode]) -> list[float]:
    """Return a trial's scores so that larger is always better: scores of metrics with mode `min` get the other sign.

    Args:
        values: Score for each metric.
        modes: `max` or `min` for each metric: whether larger or smaller scores are better.
    """
    return [value if mode == "max" else -value for value, mode in zip(values, modes, strict=True)]


def _gains(row: TrialRow, modes: Sequence[Mode]) -> list[float]:
    return gains(row.values or [], modes)


def write_best(book: Book, trials: Sequence[TrialRow]) -> Path:
    """Write the best trial's recipe as `best.yaml`, its scores as `best.json`, and a link `best` to its run.

    All lie in the sweep's folder. With several metrics, also write the recipes of the Pareto front (trials that no
    other one dominates) into the folder `pareto`.

    Args:
        book: Manager of the sweep's study and trials.
        trials: Trials of the sweep.

    Returns:
        Path of `best.yaml`.

    Raises:
        RunError: All trials failed, or none reached its first validation. The message says why the first one failed.
    """
    folder, config = book.sweep.folder, book.sweep.config
    order = ranked(trials, config.modes)
    if not order:
        failed = [row for row in trials if row.state == "failed"]
        why = f" Trial {failed[0].number} failed: {(failed[0].reason or 'no reason').splitlines()[0]}" if failed else ""
        what = f"all {len(failed)} trials" if len(failed) == len(trials) else "no trial"
        ended = "failed" if len(failed) == len(trials) else "came to its first validation"
        raise RunError(f"{what} of {book.sweep.place} {ended}, so there is no best one.{why}")
    best = order[0]
    target = folder / "best.yaml"
    write_text(target, _file(book, best))
    about = {
        "trial": best.number,
        "state": best.state,
        **dict(zip(config.metrics, best.values or [], strict=True)),
        "step": best.step,
        "values": best.params,
        "run": best.run,
        "checkpoint": below(best.run, "checkpoints", "best.pt"),
    }
    write_text(folder / "best.json", json.dumps(about, indent=1))
    try:
        RunFolder(best.run).checkpoints.best()
    except UnusableError as error:
        LOG.warning("%s. To have the best trial's weights, train it again: stssl train %s", error, target)
    if not is_url(best.run):
        _link(folder / "best", Path(best.run))
    if len(config.metrics) > 1:
        (folder / "pareto").mkdir(exist_ok=True)
        # Delete the old files first: an earlier start may have written trials that newer trials now beat.
        for old in (folder / "pareto").glob("*.yaml"):
            old.unlink()
        for row in pareto(order, config.modes):
            write_text(folder / "pareto" / f"{row.name}.yaml", _file(book, row))
    return target


def chosen_recipe(book: Book, row: TrialRow, name: str) -> Recipe:
    """Return the full recipe of a trial, so that it can be trained again outside of the sweep.

    Args:
        book: Manager of the sweep's study, with the search space.
        row: The trial.
        name: Name that the recipe gives to the new run.
    """
    return book.space.recipe(row.params).model_copy(update={"name": name})


def _file(book: Book, row: TrialRow) -> str:
    metrics, config = book.sweep.config.metrics, book.sweep.config
    scores = ", ".join(f"{name} {value:.4f}" for name, value in zip(metrics, row.values or [], strict=True))
    name = f"{config.name}-best" if len(metrics) == 1 else f"{config.name}-{row.name}"
    head = f"# Trial {row.number} of the sweep {config.name} ({row.state}): {scores} on validation.\n"
    return head + chosen_recipe(book, row, name).yaml()


def _link(link: Path, target: Path) -> None:
    """Create the symbolic link `link` to the run's folder `target`, or make an existing link point to it.

    Do nothing if the file system has no links.
    """
    # Ignore an error: some file systems have no links, and the user finds the run's folder in `best.json`, too.
    with contextlib.suppress(OSError):
        # Make the new link under another name and rename it: `link` then exists at every moment.
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target.relative_to(link.parent), target_is_directory=True)
        fresh.replace(link)
