"""Draw the figures of finished runs as SVG text, for HTML pages."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from stssl.analysis.borders import borders_inside
from stssl.analysis.drawing import COLORS, INK, LINES, MUTED, SOFT, AnyFloats, figure_of, svg
from stssl.analysis.histories import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

UNITS: Mapping[str, str] = {
    "accuracy": "share of patches",
    "mAP": "mean average precision, 0 to 1",
    "F1": "mean F1 score, 0 to 1",
    "loss": "cross-entropy in nats",
    "supervised": "cross-entropy in nats",
    "unlabeled": "weighted cross-entropy in nats",
    "distillation": "loss of distillation",
    "pseudo_rate": "share of decisions",
    "pseudo_precision": "share of selected decisions",
    "pseudo_recall": "share of true labels",
    "learning_rate": "learning rate",
    "images_per_s": "images per second",
    "data_wait": "share of time",
}
"""Unit of the vertical axis for curves of each metric."""


def brief(names: Sequence[str], longest: int = 40) -> list[str]:
    """Return shorter names for a legend, in the same order. Change nothing if no name has more than `longest` letters.

    First, remove the start and the end that all names share. In names that are still too long, `…` replaces the middle.
    If two of the short names are equal, return `run 1`, `run 2`, ...
    """
    if max(map(len, names), default=0) <= longest:
        return list(names)
    letters = os.path.commonprefix
    start = max(letters(names).rfind(mark) for mark in "-_/ ") + 1
    backwards = letters([name[start:][::-1] for name in names])
    end = max(backwards.rfind(mark) for mark in "-_/ ") + 1
    own = [name[start : len(name) - end] for name in names]
    short = [text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}" for text in own]
    return short if len(set(short)) == len(short) else [f"run {number}" for number in range(1, len(names) + 1)]


def curves(title: str, unit: str, lines: Mapping[str, Curve | None], thin: Mapping[str, Curve | None]) -> Markup:
    """Draw a metric over training steps: for each recipe, a line for the mean of its runs, and a band for their range.

    Args:
        title: Title of the figure.
        unit: Unit of the vertical axis.
        lines: Curve of each recipe, by its name; None for a recipe without this metric. The order sets the colors.
        thin: Curve of each recipe's teachers, by the recipe's name, drawn as a thin line in the recipe's color.

    Returns:
        SVG text, empty if no recipe has a curve.
    """
    if not any(lines.values()):
        return Markup()
    figure, (axis,) = figure_of(4.0, 2.9)
    names = {}
    for number, (name, strong) in enumerate(lines.items()):
        color, dash = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
        for curve, width, whose in ((strong, 1.7, ""), (thin.get(name), 0.8, ", teacher")):
            if curve is None:
                continue
            marker = "o" if len(curve.steps) <= 30 else None
            (drawn,) = axis.plot(
                curve.steps, curve.mean, color=color, linestyle=dash, linewidth=width, marker=marker, markersize=3.5
            )
            drawn.set_gid(f"curve{number}{whose and 't'}")
            several = f", mean of {curve.runs} runs" if curve.runs > 1 else ""
            names[f"curve{number}{whose and 't'}"] = [
                f"{name}{whose}{several}: {curve.mean[-1]:.4g} at step {curve.steps[-1]:,.0f}"
            ]
            if curve.runs > 1:
                axis.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.set_ylabel(unit)
    axis.locator_params(axis="x", integer=True, nbins=6)
    return svg(figure, names)


def class_bars(networks: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Markup:
    """Draw the average precision (multi-label) or recall (single-label) of each class, as a bar for each network.

    Args:
        networks: Scores by network, then by class, then by name of the score: `count` (patches with the class), and
            `AP` or `recall`.

    Returns:
        SVG text with the class of the largest `count` at the top; empty if no patch has a class.
    """
    first = next(iter(networks.values()))
    name = "AP" if "AP" in next(iter(first.values())) else "recall"
    classes = sorted((c for c in first if first[c]["count"]), key=lambda c: first[c]["count"] or 0)
    if not classes:
        return Markup()
    figure, (axis,) = figure_of(8.4, 1.2 + 0.3 * len(classes) * max(1, len(networks) / 2))
    height, names = 0.8 / len(networks), dict[str, list[str]]()
    for i, (network, scores) in enumerate(networks.items()):
        values = [np.nan if (value := scores[c][name]) is None else value for c in classes]
        places = np.arange(len(classes)) + (len(networks) - 1 - i - (len(networks) - 1) / 2) * height
        bars = axis.barh(places, values, height, color=COLORS[i % len(COLORS)])
        for j, (bar, one, value) in enumerate(zip(bars, classes, values, strict=True)):
            bar.set_gid(f"bar{i}n{j}")
            names[f"bar{i}n{j}"] = [f"{one}, {network}: {name} {value:.3f}"]
    labels = [f"{c if len(c) < 48 else c[:46] + '…'} ({int(first[c]['count'] or 0):,})" for c in classes]
    axis.set_yticks(range(len(classes)), labels, fontsize=9)
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.6, len(classes) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.set_title("class (number of patches with it)")
    axis.set_xlabel("average precision, 0 to 1" if name == "AP" else "recall: share of the class's patches")
    return svg(figure, names)


@dataclass(frozen=True)
class PlaceColors:
    """Describe the colors, the scale and the number format with which a map shows values.

    Attributes:
        colormap: Matplotlib color map or its name: colors from the smallest value to the largest one.
        low: Value with the first color.
        high: Value with the last color. Maps that readers compare need the same value.
        label: Text beside the scale of colors, such as the unit of the values.
        sign: Format of a value, such as `+.3f`, in the texts that the page shows when the pointer rests on a cell.
    """

    colormap: "Colormap | str"
    low: float
    high: float
    label: str
    sign: str = ".3f"


def error_map(network: str, lat: AnyFloats, lon: AnyFloats, error: AnyFloats, high: float) -> Markup:
    """Draw a map with coasts and borders that shows a network's mean error on the patches in each hexagonal cell.

    Args:
        network: Name of the network, for the title.
        lat: [n] latitudes of the n patches, in degrees north; NaN if unknown.
        lon: [n] longitudes of the patches, in degrees east; NaN if unknown.
        error: [n] share of wrong predictions of each patch; NaN if a patch has no label.
        high: Error with the darkest color. Maps that readers compare need the same value.

    Returns:
        SVG text, empty if no patch has a place and a label.
    """
    known = np.isfinite(lat) & np.isfinite(lon) & np.isfinite(error)
    mean = error[known].mean() if known.any() else 0.0
    colors = PlaceColors(_errors(), 0.0, high, "share of wrong labels")
    return place_map(f"{network}: mean error {mean:.3f}", lat, lon, error, colors)


def place_map(title: str, lat: AnyFloats, lon: AnyFloats, values: AnyFloats, colors: PlaceColors) -> Markup:
    """Draw a map with coasts and borders that shows the mean value of the patches in each hexagonal cell.

    Args:
        title: Title of the map.
        lat: [n] latitudes of the n patches, in degrees north; NaN if unknown.
        lon: [n] longitudes of the patches, in degrees east; NaN if unknown.
        values: [n] values of the patches; NaN if unknown.
        colors: Colors and scale of the values.

    Returns:
        SVG text, empty if no patch has a place and a value.
    """
    known = np.isfinite(lat) & np.isfinite(lon) & np.isfinite(values)
    if not known.any():
        return Markup()
    lat, lon, values = lat[known], lon[known], values[known]
    # Stretch the map from south to north: away from the equator, a degree of longitude is shorter than one of latitude.
    stretch = 1 / max(0.2, float(np.cos(np.deg2rad(lat.mean()))))
    middle = (lon.min() + lon.max()) / 2, (lat.min() + lat.max()) / 2
    half = 0.55 * max(float(np.ptp(lat)), float(np.ptp(lon)) / stretch, 0.5)
    across = max(0.55 * float(np.ptp(lon)), 0.6 * half * stretch)
    up = max(0.55 * float(np.ptp(lat)), 0.6 * half)
    frame = middle[0] - across, middle[0] + across, middle[1] - up, middle[1] + up
    figure, (axis,) = figure_of(5.6, min(6.0, max(3.0, 4.6 * up * stretch / across)))
    # Choose the number of rows of cells by the region's shape: with a fixed one, cells of wide regions would be flat.
    down = max(1, round(30 / 3**0.5 * float(np.ptp(lat)) * stretch / max(float(np.ptp(lon)), 1e-6)))
    grid = (30, min(down, 60))
    counts = axis.hexbin(lon, lat, gridsize=grid, mincnt=1, visible=False).get_array()
    scale = {"cmap": colors.colormap, "vmin": colors.low, "vmax": colors.high}
    cells = axis.hexbin(lon, lat, C=values, gridsize=grid, mincnt=1, gid="cells", **scale)  # type: ignore[arg-type]
    cells.set_edgecolor(MUTED)
    cells.set_linewidth(0.3)
    means, places = cells.get_array(), cells.get_offsets()
    texts = [
        f"{mean:{colors.sign}} of {count:.0f} patches near {y:.2f}° N, {x:.2f}° E"
        for mean, count, (x, y) in zip(np.asarray(means), np.asarray(counts), np.asarray(places), strict=True)
    ]
    _draw_borders(axis, frame)
    axis.set_title(title)
    axis.set_xlabel("longitude in degrees east")
    axis.set_ylabel("latitude in degrees north")
    axis.set_aspect(stretch)
    figure.colorbar(cells, ax=axis, label=colors.label, shrink=0.8)
    return svg(figure, {"cells": texts})


def _draw_borders(axis: "Axes", frame: tuple[float, float, float, float]) -> None:
    """Draw coasts and land borders on the map `axis`, and limit it to `frame`: west, east, south, north in degrees."""
    lines = borders_inside(*frame)
    for group, color, width in ((lines.coasts, INK, 0.7), (lines.borders, SOFT, 0.5)):
        if group:
            # Join all lines into one with gaps (NaN): Matplotlib then writes one path, which makes the page smaller.
            gap = np.full((1, 2), np.nan)
            whole = np.concatenate([part for line in group for part in (line, gap)])
            axis.plot(*whole.T, color=color, linewidth=width, zorder=3)
    axis.set_xlim(*frame[:2])
    axis.set_ylim(*frame[2:])


def _errors() -> "Colormap":
    """Return the color map for prediction errors: `YlOrRd` without its palest tones, which a light page would hide."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["YlOrRd"](np.linspace(0.12, 1, 128)))


def error_maps(lat: AnyFloats, lon: AnyFloats, errors: Mapping[str, AnyFloats]) -> list[Markup]:
    """Draw a map of mean prediction errors in hexagonal cells for each network, all with the same color scale.

    Args:
        lat: [n] latitudes of the n patches, in degrees north; NaN if unknown.
        lon: [n] longitudes of the patches, in degrees east; NaN if unknown.
        errors: By network: [n] share of wrong predictions of each patch; NaN if a patch has no label.

    Returns:
        SVG text of each map; an empty list if no patch has a place and a label.
    """
    known = np.isfinite(lat) & np.isfinite(lon) & np.isfinite(next(iter(errors.values())))
    if not known.any():
        return []
    high = min(1.0, max(0.05, *(float(np.quantile(error[known], 0.98)) for error in errors.values())))
    return [error_map(network, lat, lon, error, high) for network, error in errors.items()]


def reliability(confidences: Mapping[str, tuple[AnyFloats, AnyFloats]]) -> Markup:
    """Draw a reliability diagram: a line for each network over the predicted probability, with the share that is right.

    Each point of a line stands for the predictions in one of ten ranges of probability.

    Args:
        confidences: By network: [n] probabilities of n predictions, and [n] 1 if the prediction is right, else 0.

    Returns:
        SVG text, empty without any prediction.
    """
    if not any(len(probability) for probability, _ in confidences.values()):
        return Markup()
    figure, (axis,) = figure_of(4.2, 3.6)
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    edges, names = np.linspace(0, 1, 11), {}
    for number, (network, (probability, outcome)) in enumerate(confidences.items()):
        which = np.clip(np.digitize(probability, edges) - 1, 0, 9)
        filled = [i for i in range(10) if (which == i).any()]
        mean = [float(probability[which == i].mean()) for i in filled]
        share = [float(outcome[which == i].mean()) for i in filled]
        (line,) = axis.plot(mean, share, marker="o", markersize=4, color=COLORS[number % len(COLORS)])
        line.set_gid(f"network{number}")
        names[f"network{number}"] = [network]
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("predicted probability, 0 to 1")
    axis.set_ylabel("share that is right")
    return svg(figure, names)
