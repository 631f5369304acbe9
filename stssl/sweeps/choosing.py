"""The best trials, and files that say what they are."""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from stssl.base.errors import RunError
from stssl.recipes.recipe import Recipe
from stssl.sweeps.spec import Mode
from stssl.sweeps.study import Book
from stssl.sweeps.table import TrialRow
from stssl.training.checkpoint import UnusableError
from stssl.training.run_folder import RunFolder, write_text

log = logging.getLogger("stssl")


def ranked(trials: Sequence[TrialRow], modes: Sequence[Mode]) -> list[TrialRow]:
    """Comparable trials, best first: complete ones, or where none is, those that have any score and did not fail.

    With several metrics the trials that no other one dominates come first; then by the first metric.
    """
    complete = [row for row in trials if row.state == "complete" and row.values]
    candidates = complete or [row for row in trials if row.values and row.state != "failed"]
    front = {row.number for row in pareto(candidates, modes)} if len(modes) > 1 else set()
    return sorted(candidates, key=lambda row: (row.number not in front, -_gains(row, modes)[0], row.number))


def pareto(trials: Sequence[TrialRow], modes: Sequence[Mode]) -> list[TrialRow]:
    """Trials that no other trial equals or beats in every metric while beating it in one."""
    return [
        row
        for row in trials
        if row.values and not any(_dominates(other, row, modes) for other in trials if other.values)
    ]


def _dominates(one: TrialRow, other: TrialRow, modes: Sequence[Mode]) -> bool:
    left, right = _gains(one, modes), _gains(other, modes)
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))


def _gains(row: TrialRow, modes: Sequence[Mode]) -> list[float]:
    """Values of which larger is better."""
    return [value if mode == "max" else -value for value, mode in zip(row.values or [], modes, strict=True)]


def write_best(book: Book, trials: Sequence[TrialRow]) -> Path:
    """Write `best.yaml` (for several metrics also `pareto/*.yaml`), `best.json` and the link `best`; returns the first.

    Raises:
        RunError: All failed, or none came to a validation; says why the first failed.
    """
    folder, config = book.sweep.folder, book.sweep.config
    order = ranked(trials, config.modes)
    if not order:
        failed = [row for row in trials if row.state == "failed"]
        why = f" Trial {failed[0].number} failed: {(failed[0].reason or 'no reason').splitlines()[0]}" if failed else ""
        what = f"all {len(failed)} trials" if len(failed) == len(trials) else "no trial"
        ended = "failed" if len(failed) == len(trials) else "came to its first validation"
        raise RunError(f"{what} of {folder} {ended}, so there is no best one.{why}")
    best = order[0]
    target = folder / "best.yaml"
    write_text(target, _file(book, best))
    about = {
        "trial": best.number,
        "state": best.state,
        **dict(zip(config.metrics, best.values or [], strict=True)),
        "step": best.step,
        "values": best.params,
        "run": str(best.run),
        "checkpoint": str(best.run / "checkpoints" / "best.pt"),
    }
    write_text(folder / "best.json", json.dumps(about, indent=1))
    try:
        RunFolder(best.run).checkpoints.best()
    except UnusableError as error:
        log.warning("%s. To have the best trial's weights, train it again: stssl train %s", error, target)
    _link(folder / "best", best.run)
    if len(config.metrics) > 1:
        (folder / "pareto").mkdir(exist_ok=True)
        for old in (folder / "pareto").glob("*.yaml"):
            old.unlink()
        for row in pareto(order, config.modes):
            write_text(folder / "pareto" / f"{row.run.name}.yaml", _file(book, row))
    return target


def chosen_recipe(book: Book, row: TrialRow, name: str) -> Recipe:
    """Build the full recipe of a trial, to be trained on its own.

    Args:
        book: The study.
        row: The trial.
        name: Name of the new run.
    """
    return book.space.recipe(row.params).model_copy(update={"name": name})


def _file(book: Book, row: TrialRow) -> str:
    metrics, config = book.sweep.config.metrics, book.sweep.config
    scores = ", ".join(f"{name} {value:.4f}" for name, value in zip(metrics, row.values or [], strict=True))
    name = f"{config.name}-best" if len(metrics) == 1 else f"{config.name}-{row.run.name}"
    head = f"# Trial {row.number} of the sweep {config.name} ({row.state}): {scores} on validation.\n"
    return head + chosen_recipe(book, row, name).yaml()


def _link(link: Path, target: Path) -> None:
    """Point `link` at a folder beside it; file systems without links have `best.json`."""
    with contextlib.suppress(OSError):
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target.relative_to(link.parent), target_is_directory=True)
        fresh.replace(link)
