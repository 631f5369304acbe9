"""Draw the figures of finished runs as SVG text, for HTML pages."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stssl.training.run_files import MetricsRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AnyFloats = NDArray[np.floating[Any]]
"""Type of an array of floats of any precision."""
COLORS = ("#2563a8", "#d1662b", "#3a8f5c", "#8a4f9e", "#b0893b", "#5b6b7a")
LINES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    # Matplotlib reads a dollar sign as the start of a formula, but names of runs and classes may contain it.
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d5dbe1",
    "grid.linewidth": 0.6,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # Keep text as text. By default Matplotlib draws it as paths, and readers could not search the page.
    "svg.fonttype": "none",
    # By default, ids in the SVG are random. With a fixed salt, the same runs give the same bytes.
    "svg.hashsalt": "stssl",
}


def figure_of(width: float, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Create a Matplotlib figure with one row of axes.

    Args:
        width: Width of the figure in inches.
        height: Height of the figure in inches.
        columns: Number of axes.
    """
    # Import Matplotlib only here: it takes half a second, and many commands draw nothing.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def svg(figure: "Figure") -> Markup:
    """Draw a figure as SVG text for an HTML page, with `?` in place of control characters in names."""
    import matplotlib as mpl
    from matplotlib.text import Text

    for words in figure.findobj(Text):
        if not isinstance(words, Text):
            continue
        words.set_parse_math(False)
        if not words.get_text().isprintable():
            words.set_text("".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in words.get_text()))
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # The text is safe HTML: Matplotlib's XML writer escapes all names.
    return Markup(text[text.index("<svg") :])


def brief(names: Sequence[str], longest: int = 40) -> list[str]:
    """Shorten names for a legend.

    If a name is longer than `longest` letters, remove the start and the end that all names share. Names that are still
    too long lose their middle. If two of the short names are equal, return `run 1`, `run 2`, ...
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


def curves(runs: Mapping[str, Sequence[MetricsRow]], kind: str, names: Sequence[str]) -> Markup:
    """Draw metrics over steps: one panel for each metric that any run has, with one line for each run.

    Args:
        runs: Rows of metrics, by the name of the run.
        kind: Kind of rows to draw: `train` or `validation`.
        names: Names of the metrics, from the left panel to the right one.

    Returns:
        SVG text, empty if no run has any of the metrics.
    """
    present = [n for n in names if any(row.get(n) is not None for rows in runs.values() for row in rows)]
    columns = max(3, len(present))
    figure, axes = figure_of(4.2 * columns, 3.0, columns)
    for axis, name in zip(axes, present, strict=False):
        for number, (run, rows) in enumerate(zip(brief(list(runs)), runs.values(), strict=True)):
            points = [(row["step"], row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None]
            if points:
                marker = "o" if kind == "validation" else None
                color, line = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
                axis.plot(
                    *zip(*points, strict=True),
                    label=run,
                    linewidth=1.5,
                    marker=marker,
                    markersize=3,
                    color=color,
                    linestyle=line,
                )
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("step")
    for axis in axes[len(present) :]:
        axis.set_visible(False)
    if len(runs) > 1 and present:
        axes[0].legend(fontsize=8)
    return svg(figure) if present else Markup()


def class_bars(networks: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Markup:
    """Draw the score of each class as a bar for each network: average precision (multi-label) or recall.

    Args:
        networks: Scores by network, class and name of the score: `count`, and `AP` or `recall`. Classes are sorted by
            `count`.
    """
    first = next(iter(networks.values()))
    name = "AP" if "AP" in next(iter(first.values())) else "recall"
    classes = sorted((c for c in first if first[c]["count"]), key=lambda c: first[c]["count"] or 0)
    figure, (axis,) = figure_of(8.4, 1.2 + 0.3 * len(classes) * max(1, len(networks) / 2))
    height = 0.8 / len(networks)
    for i, (network, scores) in enumerate(networks.items()):
        values = [np.nan if (value := scores[c][name]) is None else value for c in classes]
        places = np.arange(len(classes)) + (len(networks) - 1 - i - (len(networks) - 1) / 2) * height
        axis.barh(places, values, height, color=COLORS[i % len(COLORS)], label=network)
    labels = [f"{c if len(c) < 48 else c[:46] + '…'} ({int(first[c]['count'] or 0)})" for c in classes]
    axis.set_yticks(range(len(classes)), labels, fontsize=9)
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.6, len(classes) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.set_title(f"{name} of each class (patches of that class)")
    axis.legend(loc="lower right", fontsize=8)
    return svg(figure)


def error_maps(lat: AnyFloats, lon: AnyFloats, errors: Mapping[str, AnyFloats]) -> Markup:
    """Draw the mean prediction error at each place as a map for each network, all with the same color scale.

    Args:
        lat: [n] latitudes of the n patches, in degrees north.
        lon: [n] longitudes of the patches, in degrees east.
        errors: [n] errors of the patches, by network. NaN if a patch has no label.

    Returns:
        SVG text, empty if no patch has a place and a label.
    """
    known = np.isfinite(lat) & np.isfinite(lon) & np.isfinite(next(iter(errors.values())))
    if not known.any():
        return Markup()
    figure, axes = figure_of(4.6 * len(errors), 4.0, len(errors))
    high = max(0.05, *(float(np.quantile(error[known], 0.98)) for error in errors.values()))
    for axis, (network, error) in zip(axes, errors.items(), strict=True):
        cells = axis.hexbin(
            lon[known], lat[known], C=error[known], gridsize=34, mincnt=1, cmap="YlOrRd", vmin=0, vmax=min(1.0, high)
        )
        axis.set_title(f"{network}: mean error {error[known].mean():.3f}")
        axis.set_xlabel("longitude in degrees")
        # Away from the equator, a degree of longitude is shorter than one of latitude, by the cosine of the latitude.
        axis.set_aspect(1 / max(0.2, float(np.cos(np.deg2rad(lat[known].mean())))))
    axes[0].set_ylabel("latitude in degrees")
    figure.colorbar(cells, ax=axes, label="share of wrong labels", shrink=0.8)
    return svg(figure)


def reliability(confidences: Mapping[str, tuple[AnyFloats, AnyFloats]]) -> Markup:
    """Draw a reliability diagram: for each range of predicted probabilities, the share of right predictions.

    Args:
        confidences: By network: [n] probabilities of n predictions, and [n] 1 if the prediction is right, else 0.
    """
    figure, (axis,) = figure_of(4.2, 3.6)
    axis.plot([0, 1], [0, 1], color="#8895a3", linewidth=1, linestyle=":")
    edges = np.linspace(0, 1, 11)
    for color, (network, (probability, outcome)) in zip(COLORS, confidences.items(), strict=False):
        which = np.clip(np.digitize(probability, edges) - 1, 0, 9)
        filled = [i for i in range(10) if (which == i).any()]
        mean = [float(probability[which == i].mean()) for i in filled]
        share = [float(outcome[which == i].mean()) for i in filled]
        axis.plot(mean, share, marker="o", markersize=4, color=color, label=network)
    axis.set_xlabel("predicted probability")
    axis.set_ylabel("share that is right")
    axis.set_title("reliability")
    if confidences:
        axis.legend(fontsize=8)
    return svg(figure)
