"""Draw the figures of a sweep's report as SVG.

Dots of complete trials are filled. Dots of trials that were stopped early are hollow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from stssl.analysis.drawing import COLORS, MUTED, PAPER, SOFT, figure_of, svg
from stssl.base.config import Domain
from stssl.sweeps.results import TrialRow
from stssl.sweeps.space import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STOPPED: dict[str, Any] = {"facecolors": "none", "edgecolors": MUTED, "linewidths": 0.9, "s": 20}
LABEL: dict[str, Any] = {
    "textcoords": "offset points",
    "fontsize": 8,
    "va": "center",
    "zorder": 5,
    "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
}
COMPLETE: dict[str, Any] = {"color": COLORS[0], "s": 26, "linewidths": 0}


def history(trials: Sequence[TrialRow], metric: int, name: str, larger: bool) -> Markup:
    """Draw a score of each trial (training run) over the trial's number, and a line for the best score so far.

    The line follows complete trials only. Trials without a score get no dot. A cross marks each failed trial. Return
    the figure as SVG.

    Args:
        trials: Trials, sorted by number.
        metric: Position of the score in the `values` of each trial, from 0.
        name: Name of the score, to label the figure.
        larger: True if larger scores are better.
    """
    figure, (axis,) = figure_of(8.4, 3.2)
    _dots(axis, [(row.number, row, row.values[metric]) for row in trials if row.values])
    ends = [(row.number, row.values[metric]) for row in trials if row.state == "complete" and row.values]
    if ends:
        best = (np.maximum if larger else np.minimum).accumulate([value for _, value in ends])
        axis.step([n for n, _ in ends], best, where="post", color=COLORS[1], linewidth=1.5, label="best so far")
    failed = [row.number for row in trials if row.state == "failed"]
    if failed:
        low = axis.get_ylim()[0]
        axis.scatter(failed, [low] * len(failed), marker="x", color=COLORS[1], s=28, label="failed", clip_on=False)
        axis.set_ylim(bottom=low)
    axis.set_xlabel("number of the trial")
    axis.set_ylabel(name)
    axis.locator_params(axis="x", integer=True)
    axis.set_title(f"{name} on validation")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure)


def _dots(axis: "Axes", points: Sequence[tuple[float, TrialRow, float]]) -> None:
    """Draw a filled dot for each complete trial, and a hollow dot for each trial that was stopped early.

    Args:
        axis: Matplotlib axes to draw into.
        points: Tuple (x, trial, y) for each trial. Trials in other states get no dot.
    """
    for state, style, label in (("complete", COMPLETE, "complete"), ("stopped", STOPPED, "stopped early")):
        shown = [(x, y) for x, row, y in points if row.state == state]
        if shown:
            axis.scatter(*zip(*shown, strict=True), **style, label=label)


def importances(shares: Mapping[str, float]) -> Markup:
    """Draw how important each searched key is, as horizontal bars with the largest on top. Return the figure as SVG.

    `shares` has the importance of each key, from 0 to 1, by the name of the key.
    """
    names = sorted(shares, key=lambda name: shares[name])
    figure, (axis,) = figure_of(8.4, 0.9 + 0.32 * len(names))
    axis.barh(range(len(names)), [shares[name] for name in names], 0.6, color=COLORS[0])
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlim(0, 1)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("share of the importance, 0 to 1")
    return svg(figure)


def slices(trials: Sequence[TrialRow], axes: Sequence[Axis], metric: int, name: str) -> list[Markup]:
    """Draw for each searched recipe key the score of each trial over the value that the trial has for this key.

    A trial gets no dot for a key if it lacks the key, or has no score.

    Args:
        trials: Trials, sorted by number.
        axes: Search dimensions: the searched keys, each with its allowed values.
        metric: Position of the score in the `values` of each trial, from 0.
        name: Name of the score, to label the figures.

    Returns:
        SVG figures, each with up to three panels. Each panel shows one key.
    """
    keys = wholes(axes)
    found = []
    for start in range(0, len(keys), 3):
        figure, panels = figure_of(12.6, 3.0, 3)
        for panel in panels[len(keys[start:]) :]:
            panel.set_visible(False)
        for panel, axis in zip(panels, keys[start : start + 3], strict=False):
            _slice(panel, trials, axis, metric)
        panels[0].set_ylabel(name)
        found.append(svg(figure))
    return found


def wholes(axes: Sequence[Axis]) -> list[Axis]:
    """Merge search dimensions that have the same recipe key, such as one dimension for each algorithm.

    Return one dimension for each key. It covers all values that the merged dimensions allow.
    """
    groups: dict[str, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.key, []).append(axis)
    return [replace(group[0], domain=_joined([axis.domain for axis in group])) for group in groups.values()]


def _joined(domains: Sequence[Domain]) -> Domain:
    if len(domains) == 1:
        return domains[0]
    if domains[0].choices:
        return Domain(choices=tuple(dict.fromkeys(choice for domain in domains for choice in domain.choices)))
    lows, highs = [float(domain.low or 0) for domain in domains], [float(domain.high or 0) for domain in domains]
    return Domain(min(lows), max(highs), log=all(domain.log for domain in domains))


def _slice(panel: "Axes", trials: Sequence[TrialRow], axis: Axis, metric: int) -> None:
    """Draw the score of each trial over the value that the trial has for one key.

    Args:
        panel: Matplotlib axes to draw into.
        trials: Trials. Those without a score, and those that lack the key, are left out.
        axis: Search dimension of the key, with all its allowed values.
        metric: Position of the score in the `values` of each trial, from 0.
    """
    rows = [row for row in trials if row.values and axis.key in row.params]
    if axis.domain.choices:
        known = {str(choice): place for place, choice in enumerate(axis.domain.choices)}
        # Move each dot sideways a little: dots of the same choice would hide each other. Use a fixed seed: equal sweeps
        # must give equal figures.
        spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(rows))
        points = [
            (known[str(row.params[axis.key])] + shift, row, (row.values or [])[metric])
            for row, shift in zip(rows, spread, strict=True)
        ]
        panel.set_xticks(range(len(known)), [_short(name, 14) for name in known], fontsize=8, rotation=20)
        panel.set_xlim(-0.5, len(known) - 0.5)
    else:
        points = [(_number(row.params[axis.key]), row, (row.values or [])[metric]) for row in rows]
        _ranged(panel, axis)
    _dots(panel, points)
    panel.set_title(axis.key)


def _ranged(panel: "Axes", axis: Axis) -> None:
    """Set the x limits and ticks of a panel, so that it shows the whole range of a key's allowed numbers, with margins.

    Args:
        panel: Matplotlib axes to change.
        axis: Search dimension of the key, whose allowed values are a range of numbers.
    """
    low, high = float(axis.domain.low or 0), float(axis.domain.high or 0)
    if axis.domain.log:
        room = (high / low) ** 0.03
        ticks = np.geomspace(low, high, 4)
        panel.set_xscale("log")
        panel.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], fontsize=8)
        panel.minorticks_off()
        panel.set_xlim(low / room, high * room)
    else:
        room = (high - low) * 0.03
        panel.set_xlim(low - room, high + room)


def parallel(trials: Sequence[TrialRow], axes: Sequence[Axis], metric: int, name: str) -> Markup:
    """Draw parallel coordinates: each complete trial is a line across its values of all keys, colored by score.

    Args:
        trials: Trials, sorted by number.
        axes: Search dimensions: the searched keys, each with its allowed values.
        metric: Position of the score in the `values` of each trial, from 0.
        name: Name of the score, to label the color bar.

    Returns:
        The figure as SVG; an empty text if there are fewer than two complete trials, or fewer than two keys.
    """
    rows = sorted(
        (row for row in trials if row.state == "complete" and row.values), key=lambda row: (row.values or [0])[metric]
    )
    keys = wholes(axes)
    if len(rows) < 2 or len(keys) < 2:
        return Markup()
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scores = [(row.values or [])[metric] for row in rows]
    norm, colors = Normalize(min(scores), max(scores) or 1), colormaps["viridis_r"]
    figure, (panel,) = figure_of(max(8.4, 1.9 * len(keys)), 4.0)
    for row, score in zip(rows, scores, strict=True):
        places = [_place(axis, row.params.get(axis.key)) for axis in keys]
        panel.plot(range(len(keys)), places, color=colors(norm(score)), linewidth=1.3, alpha=0.85)
    for x, axis in enumerate(keys):
        panel.axvline(x, color=SOFT, linewidth=0.8)
        for place, text in _ticks(axis):
            panel.annotate(text, (x, place), xytext=(4, 0), **LABEL)
    panel.set_xticks(range(len(keys)), [axis.key.replace(".", ".\n", 1) for axis in keys], fontsize=8)
    panel.set_yticks([-0.12], ["absent"], fontsize=8)
    panel.set_xlim(-0.1, len(keys) - 0.5)
    panel.set_ylim(-0.2, 1.08)
    panel.grid(visible=False)
    for side in panel.spines.values():
        side.set_visible(False)
    figure.colorbar(ScalarMappable(norm, colors), ax=panel, label=name, shrink=0.8)
    return svg(figure)


def _place(axis: Axis, value: object) -> float:
    """Return the height, from 0 to 1, at which parallel coordinates show a trial's value of a key.

    Args:
        axis: Search dimension of the key, with all its allowed values.
        value: Value of the key; None if the trial lacks the key. The height is then below 0, unless None is a choice.
    """
    domain = axis.domain
    if value is None and None not in domain.choices:
        return -0.12
    if domain.choices:
        names = [str(choice) for choice in domain.choices]
        return (names.index(str(value)) + 0.5) / len(names)
    low, high, at = float(domain.low or 0), float(domain.high or 0), _number(value)
    if domain.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _number(value: object) -> float:
    """Return a number (int or float) as a float. Raise a TypeError if the value is of another type."""
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.domain.choices:
        return [(_place(axis, choice), _short(str(choice), 16)) for choice in axis.domain.choices]
    return [(0.0, f"{axis.domain.low:g}"), (1.0, f"{axis.domain.high:g}")]


def strip_plot(groups: Mapping[str, Sequence[float]], name: str) -> Markup:
    """Draw the scores of groups of trials, one row of dots for each group, with mean and standard deviation.

    Return the figure as SVG.

    Args:
        groups: Scores of the trials in each group, by the name of the group. No group is empty.
        name: Name of the score, to label the figure.
    """
    figure, (axis,) = figure_of(8.4, 1.0 + 0.42 * len(groups))
    random = np.random.default_rng(0)
    for place, values in enumerate(groups.values()):
        axis.scatter(values, place + random.uniform(-0.13, 0.13, len(values)), **COMPLETE, alpha=0.6)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        axis.errorbar(
            float(np.mean(values)), place, xerr=spread, color=COLORS[1], fmt="D", markersize=5, capsize=4, linewidth=1.5
        )
    axis.set_yticks(range(len(groups)), [f"{_short(group, 28)} ({len(v)})" for group, v in groups.items()], fontsize=9)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlabel(name)
    return svg(figure)


def front(trials: Sequence[TrialRow], best: Sequence[TrialRow], names: Sequence[str]) -> Markup:
    """Draw the first score of complete trials against their second score, and mark the Pareto front.

    Return the figure as SVG.

    Args:
        trials: Trials, in any sequence.
        best: Trials of the Pareto front: no other trial dominates them.
        names: Names of the scores. Only the first two are drawn.
    """
    figure, (axis,) = figure_of(6.0, 4.2)
    rows = [row for row in trials if row.state == "complete" and row.values]
    if rows:
        axis.scatter(*zip(*[(row.values or [])[:2] for row in rows], strict=True), **COMPLETE, label="complete")
    ordered = sorted((row.values or [])[:2] for row in best)
    axis.plot(*zip(*ordered, strict=True), color=COLORS[1], marker="D", markersize=5, linewidth=1.2, label="best")
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
