"""All trials of a sweep as rows: for files, for the report, and for choosing."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stssl.base.whole_files import write_whole
from stssl.sweeps.outcomes import outcome
from stssl.sweeps.space import Values
from stssl.sweeps.study import Book, run_name, trials_folder
from stssl.sweeps.trials import needs

TrialState = Literal["complete", "stopped", "failed", "unfinished"]
STATES: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "unfinished"}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: Of the trial.
        state: `complete`; `stopped` early, so that its values are not comparable; `failed`; or `unfinished`.
        values: Scores of its best checkpoint so far, one for each metric.
        step: Of that checkpoint.
        last: The last step that was validated.
        seconds: It took, summed over starts.
        cpu_hours: Its workers held.
        gpu_hours: Its workers held.
        params: Its dotted keys and values.
        reason: Why it failed.
        run: Its run's folder.
    """

    number: int
    state: TrialState
    values: list[float] | None
    step: int | None
    last: int | None
    seconds: float
    cpu_hours: float
    gpu_hours: float
    params: Values
    reason: str | None
    run: Path


def rows(book: Book) -> list[TrialRow]:
    """All trials that were started, in order."""
    return [_row(book, trial) for trial in book.study.get_trials(deepcopy=False) if trial.state.name in STATES]


def _row(book: Book, trial: Any) -> TrialRow:
    folder = trials_folder(book.sweep.folder) / run_name(trial.number)
    ended = outcome(folder, book.sweep.config.metrics)
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
        run=folder,
    )


def records(book: Book, trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Rows as flat mappings with the same keys each."""
    metrics, keys = book.sweep.config.metrics, dict.fromkeys(axis.key for axis in book.space.axes)
    return [
        {"trial": row.number, "state": row.state}
        | {name: row.values[i] if row.values else None for i, name in enumerate(metrics)}
        | {"best_step": row.step, "last_step": row.last, "seconds": row.seconds}
        | {"cpu_hours": round(row.cpu_hours, 5), "gpu_hours": round(row.gpu_hours, 5)}
        | {key: _flat(row.params.get(key)) for key in keys}
        | {"reason": row.reason.splitlines()[0] if row.reason else None, "run": str(row.run)}
        for row in trials
    ]


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def write_table(book: Book, trials: Sequence[TrialRow]) -> None:
    """Write `trials.csv` and `trials.parquet` into the sweep's folder."""
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
        kinds = {type(value) for value in column if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            columns[name] = [None if value is None else str(value) for value in column]
    table = pa.table(columns)
    write_whole(book.sweep.folder / "trials.parquet", lambda file: pq.write_table(table, file))
