"""Show progress as bars in a terminal or notebook, or as lines in a file. Make tables of scores to print."""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stssl.base.logs import plain_printer, shown_messages
from stssl.recipes.recipe import RunRecipe
from stssl.store.schema import printable
from stssl.training.launch import Watch, check_run, run
from stssl.training.run_files import MetricsRow
from stssl.training.run_folder import RunFolder

if TYPE_CHECKING:
    from stssl.analysis.comparison import Difference
    from stssl.analysis.probe import ProbeResult
    from stssl.archives.conversion import Summary
    from stssl.scoring.groups import GroupScores

EVERY = 10
"""Output to a file or pipe gets a new line each time this many more percent are done."""

Follow = Callable[[int, int | None, str], None]
"""A function that shows progress. It takes the number of things done, the number of all things, and a note."""


class _Lines:
    """Show progress in whole lines, for files and pipes: what is done, the time spent, and the time left."""

    def __init__(self, console: Console, what: str) -> None:
        self.console, self.what, self.begun, self.shown = console, what, time.monotonic(), -1

    def update(self, done: int, total: int | None, note: str) -> None:
        """Write a line of progress each time another `EVERY` percent of all things are done.

        If `total` is None, write nothing.

        Args:
            done: Number of things done.
            total: Number of all things; None if it is not known yet.
            note: Text after the numbers.
        """
        reached = 100 * done // total // EVERY if total else -1
        if not total or reached <= self.shown:
            return
        self.shown, spent = reached, time.monotonic() - self.begun
        left = f", {_clock(spent / done * (total - done))} left" if 0 < done < total else ""
        self.say(f"{100 * done // total:3d} %, {done}/{total} {note}, {_clock(spent)} elapsed{left}")

    def say(self, words: str) -> None:
        """Write one line of progress without a buffer, so that a program that reads the output sees it at once."""
        if not self.console.quiet:
            print(f"{self.what}: {words}", file=self.console.file, flush=True)


def default_console(shown: bool | None = None) -> Console:
    """Return a console that writes to stderr.

    Args:
        shown: If False, the console shows nothing. If None or True, it shows progress.
    """
    console = Console(stderr=True, quiet=shown is False)
    if console.is_jupyter and not find_spec("ipywidgets"):
        # Hide the advice of tqdm and Ray to install ipywidgets: this package does not need them, as it can show lines.
        warnings.filterwarnings("ignore", message="IProgress not found")
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    return console


def _has_bars(console: Console) -> bool:
    """Return True if the output can show a moving progress bar: a terminal, or a notebook that has ipywidgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.file.isatty() and not console.is_dumb_terminal


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def _following(console: Console, what: str, total: int | None, note: str, first: str = "") -> Iterator[Follow]:
    """Show progress as a bar in a terminal or notebook, else as lines. Yield the function that updates the progress.

    Args:
        console: Console that shows the progress.
        what: Verb before the bar, such as "training".
        total: Number of all things; None if it is not known yet.
        note: First text after the bar.
        first: Line to write at once if no bar is shown.
    """
    if not _has_bars(console):
        lines = _Lines(console, what)
        if first:
            lines.say(first)
        yield lines.update
        return
    columns = [TextColumn("{task.description:<8}"), BarColumn(bar_width=20), MofNCompleteColumn()]
    times = [TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True)]
    with Progress(*columns, *times, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(what, total=total, note=note)
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
        bar.refresh()  # in a notebook, rich does not draw the last state of the bar by itself


@contextlib.contextmanager
def training_progress(console: Console, steps: int, workers: bool = True) -> Iterator[Watch]:
    """Show the progress of a training run. Yield a function: call it with each row of metrics to move the bar.

    Args:
        console: Console that shows the progress.
        steps: Number of steps of the run.
        workers: True if Ray must start workers first.
    """
    notes: dict[str, str] = {}
    first = "starting workers" if workers else "starting"
    with _following(console, "train", steps, first, first) as follow:

        def watch(row: MetricsRow) -> None:
            if row["kind"] == "train":
                notes["loss"] = f"loss {row['loss']:.3f}" if row.get("loss") is not None else ""
            else:
                name = "mAP" if "mAP" in row else "accuracy"
                if row.get(name) is not None:
                    notes["score"] = f"{name} {row[name]:.3f}"
            follow(row["step"], steps, ", ".join(notes.values()))

        yield watch


def run_with_progress(console: Console, recipe: RunRecipe) -> str:
    """Train a recipe with a progress bar, or say that its run is finished. Return the path or URL of its folder."""
    folder = RunFolder.of(recipe)
    folder.refresh()
    done = folder.finished() if folder.refuse_others(recipe) else None
    if done:
        best = "" if done["best"] is None else f", best validation score {done['best']:.4f}"
        console.print(f"This run is finished: {done['steps']} steps{best}.")
        return folder.place

    say = plain_printer(console)
    # Check before the bar appears: after an error, the message must be the only output.
    for line in check_run(folder.recipe_to_build(recipe)):
        say(line)
    # Without progress, leave warnings to Python's own logging: the console would swallow them.
    messages = contextlib.nullcontext() if console.quiet else shown_messages(say)
    with training_progress(console, recipe.schedule.steps, recipe.launch.workers != 0) as watch, messages:
        return run(recipe, watch, checked=True).place


def probe_table(rows: "list[ProbeResult]") -> Table:
    """Return a table of a probe's test scores. Each row is one method, such as k-NN, with one number of labels."""
    scores = [name for name in ("mAP", "mAP_micro", "accuracy", "balanced_accuracy", "F1") if name in rows[0]["test"]]
    table = Table(title="test")
    for name in ("weights", "method", "labels", *scores):
        table.add_column(name, justify="right" if name in scores else "left", overflow="fold")
    for row in rows:
        values = [row["test"].get(name) for name in scores]
        table.add_row(
            *(Text(printable(row[name])) for name in ("weights", "method")),
            Text(printable(f"{row['labels']} ({row['labeled']:,})")),
            *map(_shown, values),
        )
    return table


def score_table(results: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Return a table of the scores of networks. Each network is a column, and each score a row."""
    table = Table(title=title)
    table.add_column("score")
    for network in results:
        table.add_column(network, justify="right")
    for name in dict.fromkeys(name for scores in results.values() for name in scores):
        values = [scores.get(name) for scores in results.values()]
        table.add_row(name, *map(_shown, values))
    return table


def group_table(groups: "GroupScores") -> Table:
    """Return a table of the mAP or accuracy of each network on each group of patches, with counts and intervals."""
    name = next(row.score for row in groups.rows if row.score in ("mAP", "accuracy"))
    table = Table(title=f"{name} by group")
    for title in ("network", "column", "group"):
        table.add_column(title, overflow="fold")
    for title in ("patches", "blocks", name, "95 % interval"):
        table.add_column(title, justify="right")
    for row in groups.rows:
        if row.score == name:
            ends = "-" if row.low is None else f"{row.low:.4f} to {row.high:.4f}"
            words = (row.network, row.column, row.group, f"{row.patches:,}", f"{row.blocks:,}", _shown(row.value), ends)
            table.add_row(*map(escape, words))
    return table


def comparison_table(found: Sequence["Difference"]) -> Table:
    """Return a table of compared recipes, one in a row. A star marks a significant difference (Holm's correction)."""
    from stssl.scoring.metrics import LOWER_IS_BETTER

    first = found[0]
    less = ", less is better" if first.score in LOWER_IS_BETTER else ""
    table = Table(title=f"{first.score} against {escape(first.against)} ({first.other:.4f}{less})")
    table.add_column("runs of", overflow="fold")
    for title in ("pairs", "blocks", first.score, "difference", "95 % interval", "p", "p (Holm)", ""):
        table.add_column(title, justify="right")
    for one in found:
        ends, star = f"{one.low:+.4f} to {one.high:+.4f}", "*" if one.significant else ""
        numbers = (f"{one.value:.4f}", f"{one.difference:+.4f}", ends, f"{one.p:.4f}", f"{one.holm:.4f}", star)
        table.add_row(escape(one.recipe), str(one.runs), f"{one.blocks:,}", *numbers)
    return table


def _shown(score: float | None) -> str:
    return "-" if score is None or not isfinite(score) else f"{score:.4f}"


@contextlib.contextmanager
def counting(console: Console, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many things, such as patches, are done. Yield the function that updates the shown numbers.

    The yielded function takes the number of things done and the number of all things.

    Args:
        console: Console that shows the progress.
        what: Verb before the progress, such as "convert".
        unit: Name of the things.
    """
    with _following(console, what, None, unit) as follow:
        yield lambda done, total: follow(done, total, unit)


def conversion_summary(summary: "Summary") -> str:
    """Return a few lines about a finished conversion: how many patches it stored, and the problems that it met."""
    lines = [f"{summary.patches:,} patches in {summary.shards} shards, {summary.converted} of them converted now"]
    lines += [f"  {printable(note)}" for note in summary.notes]
    for error, count in summary.errors.items():
        example = f" (such as {printable(summary.examples[error], 200)})" if error in summary.examples else ""
        lines.append(f"  {error}: {count:,}{example}")
    if summary.errors:
        lines.append(f"  each is listed in {summary.report}")
    return "\n".join(lines)
