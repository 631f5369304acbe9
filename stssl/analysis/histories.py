"""Reduce the training metrics of runs to the points of a few curves, to keep an HTML page about many runs small."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stssl.analysis.drawing import AnyFloats
from stssl.training.run_files import MetricsRow

CURVE_POINTS = 150
"""Largest number of points of one curve. A panel is about 300 pixels wide."""


class Curve(NamedTuple):
    """Hold one curve of a metric over training: its mean over several runs, and its range, at n steps.

    Attributes:
        steps: [n] numbers of the steps.
        mean: [n] mean of the runs at each step.
        low: [n] lowest value of the runs at each step.
        high: [n] highest value of the runs at each step.
        runs: Number of runs that the curve is made of.
    """

    steps: AnyFloats
    mean: AnyFloats
    low: AnyFloats
    high: AnyFloats
    runs: int


def thinned_history(rows: Sequence[MetricsRow], kind: str, name: str) -> AnyFloats:
    """Return the steps and values [n, 2] of a run's metric, as points of a curve.

    Leave out rows without the metric. Of more than `CURVE_POINTS` values, return only so many, evenly spread.

    Args:
        rows: Rows that the run wrote during training, each with a step and metrics.
        kind: Kind of rows that have the metric: `train` or `validation`.
        name: Name of the metric.
    """
    found = {float(row["step"]): float(row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None}
    points = np.array(sorted(found.items()), np.float64).reshape(-1, 2)
    if len(points) > CURVE_POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))]
    return points


def averaged(histories: Sequence[AnyFloats]) -> Curve | None:
    """Average a metric over runs, at the steps that all runs with this metric have in common.

    Args:
        histories: Steps and values [n, 2] of each run; empty for a run without the metric.

    Returns:
        The mean curve. If the runs have no step in common, the curve of the first run; if no run has the metric, None.
    """
    filled = [points for points in histories if len(points)]
    if not filled:
        return None
    steps = filled[0][:, 0]
    for points in filled[1:]:
        steps = np.intersect1d(steps, points[:, 0])
    if not len(steps):
        filled, steps = filled[:1], filled[0][:, 0]
    values = np.stack([points[np.isin(points[:, 0], steps), 1] for points in filled])
    # Divide before the sum: the values of a diverged run may be so large that their sum overflows.
    mean = (values / len(values)).sum(0)
    return Curve(steps, mean, values.min(0), values.max(0), len(filled))
