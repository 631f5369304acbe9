"""Group runs that differ in nothing but their seeds: a report page shows the runs of a group as one row or curve."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from stssl.analysis.drawing import AnyFloats
from stssl.analysis.histories import Curve, averaged
from stssl.analysis.run_views import RunView
from stssl.training.run_files import RecordFile, ScoresFile

MOST_SHOWN = 12
"""Largest number of recipes that a page draws. More lines or columns could not be told apart."""


@dataclass(frozen=True)
class RunDigest:
    """Hold the small part of one run's files that a report page shows; a page may have too many runs for more.

    Attributes:
        name: Name of the run on the page.
        path: Path or URL of the run's folder.
        key: Text that is equal for runs that differ only in their seeds.
        seed: Seeds of the run and of its choice of labels.
        recipe_text: Text of the recipe's file.
        record: Contents of `record.json`; None if the file does not exist.
        parts: Scores by part of the data, such as `test`.
        multilabel: True if a patch may have several classes.
        histories: [n, 2] steps and values of each metric, by kind of rows (such as `train`) and name of the metric.
        details: Parts of the page that describe this run alone; empty if the page shows none of this run.
    """

    name: str
    path: str | Path
    key: str
    seed: tuple[int, int]
    recipe_text: str
    record: RecordFile | None
    parts: Mapping[str, ScoresFile]
    multilabel: bool
    histories: Mapping[tuple[str, str], AnyFloats]
    details: Sequence[Markup]


@dataclass(frozen=True)
class RunGroup:
    """Hold runs of one recipe with different seeds, which a report page shows as one row or curve.

    Attributes:
        label: Name of the group on the page.
        runs: Runs of the group, which differ only in their seeds.
    """

    label: str
    runs: Sequence[RunDigest]

    def curve(self, kind: str, metric: str) -> Curve | None:
        """Return the mean curve of a metric over the group's runs; None if no run has the metric.

        Args:
            kind: Kind of rows that have the metric: `train` or `validation`.
            metric: Name of the metric.
        """
        return averaged([run.histories[kind, metric] for run in self.runs])


def group_key(view: RunView) -> str:
    """Return a text for the run `view`, by which a page groups runs.

    Two runs have the same text if their stores are the same, and their recipes differ only in seeds and names.
    """
    recipe = view.recipe
    labels = recipe.labels.model_copy(update={"seed": 0})
    same = recipe.model_copy(update={"name": "run", "seed": 0, "labels": labels})
    return f"{same.hash()} {view.record.store.fingerprint if view.record else ''}"


def grouped_runs(runs: Sequence[RunDigest]) -> list[RunGroup]:
    """Group runs that differ only in their seeds, and return the groups in the order of their first runs.

    Two runs with equal seeds come into different groups.
    """
    groups: dict[tuple[str, int], list[RunDigest]] = {}
    for run in runs:
        turn = 0
        while any(other.seed == run.seed for other in groups.get((run.key, turn), [])):
            turn += 1
        groups.setdefault((run.key, turn), []).append(run)
    found, used = list[RunGroup](), set[str]()
    for own in groups.values():
        label = _label([run.name for run in own])
        if label in used:
            label = f"{own[0].name} and {len(own) - 1} more"
        used.add(label)
        found.append(RunGroup(label, own))
    return found


def _label(names: Sequence[str]) -> str:
    """Return a label for a group of runs from the runs' names: `run-s* (2 seeds)` for `run-s0` and `run-s1`."""
    if len(names) == 1:
        return names[0]
    letters = os.path.commonprefix
    start = letters(names)
    end = letters([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end} ({len(names)} seeds)" if start or end else f"{names[0]} and {len(names) - 1} more"
