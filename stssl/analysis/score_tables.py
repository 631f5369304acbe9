"""Make the tables of a report about runs: their scores, scores of classes, and the data and versions behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev

from markupsafe import Markup

from stssl.analysis.comparison import ComparisonOptions, compare_groups
from stssl.analysis.page import joined, note, number
from stssl.analysis.run_groups import MOST_SHOWN, RunDigest, RunGroup
from stssl.analysis.tables import Cell, CellValue, table
from stssl.base.errors import StsslError

MEANINGS: Mapping[str, str] = {
    "accuracy": "share of patches whose most probable class is right",
    "balanced accuracy": "mean of the classes' recalls",
    "precision": "mean over classes: share of the patches predicted as the class that have it",
    "mAP": "mean over classes of the average precision",
    "mAP micro": "average precision over all decisions of all classes",
    "F1": "mean over classes of the F1 score at probability 0.5",
    "F1 micro": "F1 score over all decisions at probability 0.5",
    "calibration error": "mean gap between stated probability and how often it is right; lower is better",
    "loss": "cross-entropy in nats; lower is better",
    "seeds": "number of runs that differ in nothing but their seeds",
}
"""Explanations of columns, by name."""
DUPLICATES = {"recall": "balanced_accuracy"}
"""Scores that equal another one. A table that has the other one leaves them out."""
MOST_COMPARED = 2_000_000
"""Most decisions (patches, classes and pairs of runs multiplied) that a page compares. More would take minutes."""


def score_tables(groups: Sequence[RunGroup]) -> list[Markup]:
    """Return parts of the page (HTML): for each part of the data, a table with a row for each network of each recipe.

    `groups` has the runs of each recipe. Runs with different classes get different tables, because their scores cannot
    be compared.
    """
    found = list[Markup]()
    for part in ("test", "validation", "train"):
        tasks: dict[tuple[str, ...], list[RunGroup]] = {}
        for group in groups:
            scored = next((run.parts[part] for run in group.runs if part in run.parts), None)
            if scored:
                kind = "several" if group.runs[0].multilabel else "one"
                tasks.setdefault((kind, *scored.networks["student"].per_class), []).append(group)
        for task, own in tasks.items():
            classes = f", {len(task) - 1} classes" if len(tasks) > 1 else ""
            best, words = _best(own, part)
            found += [Markup("<h3>{}{}</h3>").format(part, classes), _score_table(own, part, best)]
            found += [note(words)] if words else []
    words = "Rows with several seeds show the mean ± the standard deviation over seeds." if _several(groups) else ""
    return [*found, *([note(words)] if words else [])]


def _best(groups: Sequence[RunGroup], part: str) -> tuple[tuple[str, str] | None, str]:
    """Find the recipe whose students are better than the students of each other recipe, beyond chance.

    Args:
        groups: Runs of each recipe, all with the same classes.
        part: Part of the data on which students are compared, such as `test`.

    Returns:
        Label of the best recipe and name of the score that compares them, or None if no recipe is best; and a remark
        for the reader of the page.
    """
    chance = "A small difference between two rows may be chance"
    own = _with(groups, part)
    name = "mAP" if own[0].runs[0].multilabel else "accuracy"
    known = dict[str, float]()
    for group in own:
        values = [_scores(run, part, "student").get(name) for run in group.runs]
        if there := [value for value in values if value is not None]:
            known[group.label] = mean(there)
    if len(own) < 2 or len(known) < len(own):
        return None, ""
    first = max(own, key=lambda group: known[group.label])
    others = [group for group in own if group is not first]
    decisions = sum(run.parts[part].patches * len(_classes(run, part)) for group in others for run in group.runs)
    if decisions > MOST_COMPARED:
        return None, f"{chance}: `stssl compare` tells."
    try:
        paths = [[run.path for run in group.runs] for group in (*others, first)]
        # The smallest p is 1 / (1 + draws), and Holm multiplies it by the number of comparisons: with fewer draws than
        # these, no corrected p could be below 0.05.
        draws = max(ComparisonOptions.draws, 1 + 20 * len(others))
        compared = compare_groups(paths[:-1], paths[-1], ComparisonOptions(part=part, score=name, draws=draws))
    except StsslError as error:
        return None, f"{chance}. No row is bold, because the rows cannot be compared: {str(error).rstrip('.')}."
    if all(one.significant and one.difference < 0 for one in compared):
        words = f"Bold: better than each other row beyond chance (as `stssl compare` finds by {name})."
        return (first.label, name), words
    return None, f"No row is bold: the best {name} is not better than each other one beyond chance (`stssl compare`)."


def _several(groups: Sequence[RunGroup]) -> bool:
    return any(len(group.runs) > 1 for group in groups)


def _score_table(groups: Sequence[RunGroup], part: str, best: tuple[str, str] | None) -> Markup:
    networks = [
        (group, name, [run for run in group.runs if part in run.parts and name in run.parts[part].networks])
        for group in groups
        for name in dict.fromkeys(name for run in group.runs if part in run.parts for name in run.parts[part].networks)
    ]
    scores = dict.fromkeys(score for _, name, runs in networks for run in runs for score in _scores(run, part, name))
    shown = [score for score in scores if DUPLICATES.get(score) not in scores]
    several = _several(groups)
    rows = []
    for group, name, runs in networks:
        row: list[CellValue] = [group.label, name, *([len(runs)] if several else [])]
        row += [_patches(runs, part), ", ".join(dict.fromkeys(_checkpoint(run, part) for run in runs))]
        cells = {score: _score([_scores(run, part, name).get(score) for run in runs]) for score in shown}
        if best and name == "student" and group.label == best[0] and best[1] in cells:
            cells[best[1]] = _bold(cells[best[1]])
        rows.append(row + list(cells.values()))
    head = ["run", "network", *(["seeds"] if several else []), "patches", "checkpoint and step"]
    return table(head + [score.replace("_", " ") for score in shown], rows, MEANINGS)


def _scores(run: RunDigest, part: str, network: str) -> Mapping[str, float | None]:
    return run.parts[part].networks[network].scores


def _patches(runs: Sequence[RunDigest], part: str) -> CellValue:
    return max(run.parts[part].patches for run in runs)


def _checkpoint(run: RunDigest, part: str) -> str:
    return f"{run.parts[part].checkpoint}, {run.parts[part].step:,}"


def _score(values: Sequence[float | None]) -> Cell:
    """Return a table cell with the mean of a score over runs with different seeds, and its standard deviation.

    `values` has the score of each run. If it is None for some runs, the cell also shows how many have a score.
    """
    found = [value for value in values if value is not None]
    if not found:
        return Cell("–")
    middle = mean(found)
    spread = f" ± {_digits(stdev(found))}" if len(found) > 1 else ""
    fewer = f" ({len(found)} of {len(values)})" if len(found) < len(values) else ""
    return Cell(f"{_digits(middle)}{spread}{fewer}", middle)


def _bold(cell: Cell) -> Cell:
    return replace(cell, shown=Markup("<strong>{}</strong>").format(cell.shown))


def _digits(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e9 else f"{value:.4g}"


def class_table(groups: Sequence[RunGroup]) -> list[Markup]:
    """Return parts of the page (HTML) with tables that compare the students of recipes by the scores of each class.

    A table has a row for each class and a column for each recipe, whose runs are one of `groups`. Recipes with
    different classes get different tables.
    """
    found = list[Markup]()
    part = next((name for name in ("test", "validation", "train") if _with(groups, name)), "test")
    tasks: dict[tuple[str, ...], list[RunGroup]] = {}
    for group in _with(groups, part):
        tasks.setdefault((str(group.runs[0].multilabel), *_classes(group.runs[0], part)), []).append(group)
    for own in tasks.values():
        if len(own) < 2:
            continue
        shown, first = own[:MOST_SHOWN], own[0].runs[0]
        name = "AP" if first.multilabel else "recall"
        rows = list[list[CellValue]]()
        for one, scores in _classes(first, part).items():
            cells = [_class_cell([_classes(run, part)[one][name] for run in group.runs]) for group in shown]
            rows.append([one, int(scores["count"] or 0), *cells])
        title = "average precision" if first.multilabel else "recall"
        left = f" Shown are the first {len(shown)} of {len(own)} recipes." if len(shown) < len(own) else ""
        found += [
            table(["class", "patches", *(group.label for group in shown)], rows),
            note(f"The {title} of each class on {part}, 0 to 1; mean over seeds.{left}"),
        ]
    return found


def _with(groups: Sequence[RunGroup], part: str) -> list[RunGroup]:
    """Return the groups with only those runs that have scores on `part`, a part of the data such as `test`.

    Leave out groups without such a run.
    """
    own = (RunGroup(group.label, [run for run in group.runs if part in run.parts]) for group in groups)
    return [group for group in own if group.runs]


def _classes(run: RunDigest, part: str) -> Mapping[str, Mapping[str, float | None]]:
    return run.parts[part].networks["student"].per_class


def _class_cell(values: Sequence[float | None]) -> Cell:
    found = [value for value in values if value is not None]
    if not found:
        return Cell("–")
    middle = mean(found)
    return Cell(f"{middle:.3f}", middle, shade=0.5 * min(1.0, max(0.0, middle)))


def record_table(runs: Sequence[RunDigest]) -> Markup:
    """Return an HTML table of what produced each run: seed, number of labels, data, software versions, restarts.

    Runs without `record.json` are left out.
    """
    head = ["run", "seed", "ranks", "labeled patches", "patches", "data", "commit", "versions", "started again"]
    rows = list[list[CellValue]]()
    for run in runs:
        record = run.record
        if record is None:
            continue
        steps = ", ".join(number(start.step) for start in record.starts[1:])
        rows.append(
            [
                run.name,
                *(_plain(value) for value in (record.seed, record.ranks, record.labeled)),
                joined(", ", (f"{number(count)} {part}" for part, count in record.parts.items())),
                record.store.fingerprint[:12],
                _plain(record.commit) if record.commit else "unknown",
                joined(", ", (f"{package} {version}" for package, version in record.versions.items())),
                f"after step {steps}" if steps else "no",
            ]
        )
    return table(head, rows)


def _plain(value: object) -> CellValue:
    """Return a value for a table cell: a whole number unchanged, any other value as text.

    Other values come from damaged files, and must not stop the page from being written.
    """
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)
