"""Reduce the metrics of runs to the points of curves, to keep a page of many runs small."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stssl.analysis.drawing import AnyFloats
from stssl.training.run_files import MetricsRow

CURVE_POINTS = 150
"""Largest number of points of one curve. A panel is about 300 pixels wide."""


class Curve(NamedTuple):
    """Hold one curve: the mean over runs at n steps, and the lowest and highest run.

    Attributes:
        steps: [n] steps.
        mean: [n] means over the runs.
        low: [n] lowest values.
        high: [n] highest values.
        runs: Number of runs.
    """

    steps: AnyFloats
    mean: AnyFloats
    low: AnyFloats
    high: AnyFloats
    runs: int


def thinned_history(rows: Sequence[MetricsRow], kind: str, name: str) -> AnyFloats:
    """Return the steps and values of a metric as [n, 2]. If they are many, return evenly spread ones only.

    Args:
        rows: Rows of metrics of one run.
        kind: `train` or `validation`.
        name: Name of the metric.
    """
    found = {float(row["step"]): float(row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None}
    points = np.array(sorted(found.items()), np.float64).reshape(-1, 2)
    if len(points) > CURVE_POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))]
    return points


def averaged(histories: Sequence[AnyFloats]) -> Curve | None:
    """Average a metric over runs, at the steps that all runs with this metric have; None if no step is common."""
    filled = [points for points in histories if len(points)]
    if not filled:
        return None
    steps = filled[0][:, 0]
    for points in filled[1:]:
        steps = np.intersect1d(steps, points[:, 0])
    if not len(steps):
        filled, steps = filled[:1], filled[0][:, 0]
    values = np.stack([points[np.isin(points[:, 0], steps), 1] for points in filled])
    # Divide before the sum: a sum of values near the largest float would overflow.
    mean = (values / len(values)).sum(0)
    return Curve(steps, mean, values.min(0), values.max(0), len(filled))
