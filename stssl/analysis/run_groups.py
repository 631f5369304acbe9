"""Group runs that differ in nothing but their seeds: a page shows them as one row."""

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
    """Hold the parts of one run that a page keeps in memory. They are small, because a page may have many runs.

    Attributes:
        name: Name of the run on the page.
        path: Path or URL of the run's folder.
        key: Text that is equal for runs that differ only in their seeds.
        seed: Seeds of the run and of its choice of labels.
        recipe_text: Text of the recipe's file.
        record: Contents of `record.json`; None if the file does not exist.
        parts: Scores by part of the split.
        multilabel: True if a patch may have several classes.
        histories: [n, 2] steps and values, by kind of rows and name of the metric.
        details: Parts of the page that describe this run; empty if the page has none.
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
    """Hold runs of one recipe with different seeds.

    Attributes:
        label: Name of the group on the page.
        runs: The runs.
    """

    label: str
    runs: Sequence[RunDigest]

    def curve(self, kind: str, metric: str) -> Curve | None:
        """Return the mean curve of a metric over the group's runs; None if no run has it or no step is common."""
        return averaged([run.histories[kind, metric] for run in self.runs])


def group_key(view: RunView) -> str:
    """Return a text that is equal for runs that differ only in their seeds."""
    recipe = view.recipe
    labels = recipe.labels.model_copy(update={"seed": 0})
    same = recipe.model_copy(update={"name": "run", "seed": 0, "labels": labels})
    return f"{same.hash()} {view.record.store.fingerprint if view.record else ''}"


def grouped_runs(runs: Sequence[RunDigest]) -> list[RunGroup]:
    """Group runs by recipe, sorted by the first run of each. Put runs with equal seeds into different groups."""
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
    """Return one label for the names of a group's runs: `run-s* (2 seeds)` for `run-s0` and `run-s1`."""
    if len(names) == 1:
        return names[0]
    letters = os.path.commonprefix
    start = letters(names)
    end = letters([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end} ({len(names)} seeds)" if start or end else f"{names[0]} and {len(names) - 1} more"
