"""What a terminal shows while things run, and tables of scores."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from stssl.convert import Summary
from stssl.recipe import RunRecipe
from stssl.schema import printable
from stssl.train.folder import RunFolder
from stssl.train.launch import run


def progress_bar(console: Console) -> Progress:
    """A bar with counts, time spent, time to go, and a note."""
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("to go"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@contextlib.contextmanager
def training_progress(console: Console, steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar that follows the rows of a run's metrics; yields what takes them."""
    notes: dict[str, str] = {}
    with progress_bar(console) as bar:
        task = bar.add_task("train", total=steps, note="starting workers")

        def watch(row: dict[str, Any]) -> None:
            if row["kind"] == "train":
                notes["loss"] = f"loss {row['loss']:.3f}"
            else:
                name = "mAP" if "mAP" in row else "accuracy"
                if row.get(name) is not None:
                    notes["score"] = f"{name} {row[name]:.3f}"
            bar.update(task, completed=row["step"], note=", ".join(notes.values()))

        yield watch


def carried_out(console: Console, recipe: RunRecipe) -> Path:
    """Carry a run out under a bar, or say that it is finished already; returns its folder."""
    folder = RunFolder.of(recipe)
    done = folder.finished() if folder.refuse_others(recipe) else None
    if done:
        best = "" if done["best"] is None else f", best validation score {done['best']:.4f}"
        console.print(f"This run is finished: {done['steps']} steps{best}.")
        return folder.path
    with training_progress(console, recipe.schedule.steps) as watch:
        return run(recipe, watch).path


def probe_table(rows: list[dict[str, Any]]) -> Table:
    """One line for each way of probing and each number of labels, on test."""
    scores = [name for name in ("mAP", "mAP_micro", "accuracy", "balanced_accuracy", "F1") if name in rows[0]["test"]]
    table = Table(title="test")
    for name in ("weights", "method", "labels", *scores):
        table.add_column(name, justify="right" if name in scores else "left")
    for row in rows:
        values = [row["test"].get(name) for name in scores]
        table.add_row(
            row["weights"],
            row["method"],
            f"{row['labels']} ({row['labeled']:,})",
            *("-" if value is None else f"{value:.4f}" for value in values),
        )
    return table


def score_table(results: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Networks as columns, scores as rows."""
    table = Table(title=title)
    table.add_column("score")
    for network in results:
        table.add_column(network, justify="right")
    for name in dict.fromkeys(name for scores in results.values() for name in scores):
        values = [scores.get(name) for scores in results.values()]
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    return table


@contextlib.contextmanager
def counting(console: Console, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts; yields what takes the number of things done and of all things."""
    with progress_bar(console) as bar:
        task = bar.add_task(what, total=None, note=unit)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def conversion_summary(summary: Summary) -> str:
    """One or more lines on what a conversion did."""
    lines = [f"{summary.patches:,} patches in {summary.shards} shards, {summary.converted} of them converted now"]
    lines += [f"  {printable(note)}" for note in summary.notes]
    for error, count in summary.errors.items():
        example = f" (such as {printable(summary.examples[error], 200)})" if error in summary.examples else ""
        lines.append(f"  {error}: {count:,}{example}")
    if summary.errors:
        lines.append(f"  each is listed in {summary.report}")
    return "\n".join(lines)
