"""Draw the diagrams of the documentation: `python docs/figures/draw.py` writes SVG files beside this script.

The pictures of views and of the report are made by `shots.py`, which trains a small run first.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GRAY, RED = "#3b6fb6", "#d9822b", "#3c8f5a", "#6b7280", "#b4413c"
PALE = {BLUE: "#e3ecf8", ORANGE: "#fbecd9", GREEN: "#e1f1e6", GRAY: "#eef0f3", RED: "#f7e2e1"}
INK = "#1f2937"
mpl.rcParams |= {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "stssl",  # the same drawing gives the same bytes
    "svg.fonttype": "path",
}


def canvas(width: float, height: float) -> Axes:
    """Open an empty drawing of `width` x `height` units, 0.72 inches each."""
    figure = plt.figure(figsize=(width * 0.72, height * 0.72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], text: str, color: str = BLUE) -> None:
    """Draw a rounded box whose lower left corner is at `at`.

    Args:
        axes: Drawing.
        at: x, y of the lower left corner.
        size: Width, height.
        text: Words in its middle.
        color: Of the frame; the area is a pale shade of it.
    """
    shape = FancyBboxPatch(at, *size, boxstyle="round,pad=0,rounding_size=0.12", fc=PALE[color], ec=color, lw=1.4)
    axes.add_patch(shape)
    axes.text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ha="center", va="center", color=INK)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = GRAY,
    *,
    dashed: bool = False,
    bend: float = 0.0,
) -> None:
    """Draw an arrow.

    Args:
        axes: Drawing.
        start: x, y where it starts.
        end: x, y where it points.
        color: Of the line.
        dashed: True for what has no gradient.
        bend: Curvature; 0 is straight.
    """
    style = "dashed" if dashed else "solid"
    shape = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, color=color, lw=1.4, linestyle=style, shrinkA=0, shrinkB=0,
        connectionstyle=f"arc3,rad={bend}",
    )  # fmt: skip
    axes.add_patch(shape)


def words(axes: Axes, at: tuple[float, float], text: str, color: str = INK, *, size: float = 9.0) -> None:
    """Write centered words."""
    axes.text(*at, text, ha="center", va="center", color=color, fontsize=size)


def two_networks() -> Axes:
    """Draw one training step with teacher and student."""
    axes = canvas(12, 5.6)
    box(axes, (0.2, 3.9), (2.3, 1.2), "labeled patch\n+ its label", GRAY)
    box(axes, (0.2, 0.6), (2.3, 1.2), "unlabeled patch\nweak, strong view", GRAY)
    box(axes, (3.9, 3.6), (2.9, 1.5), "teacher\nimage + metadata", ORANGE)
    box(axes, (3.9, 0.6), (2.9, 1.5), "student\nimage only", BLUE)
    box(axes, (4.3, 2.5), (2.1, 0.7), "place, date", GREEN)
    arrow(axes, (5.35, 3.2), (5.35, 3.6), GREEN)
    for y in (4.5, 1.2):
        for target in (4.35, 1.35):
            arrow(axes, (2.5, y), (3.9, target))
    box(axes, (8.2, 3.9), (3.5, 0.9), "pseudo-labels\n(weak view, no gradient)", ORANGE)
    arrow(axes, (6.8, 4.35), (8.2, 4.35), ORANGE)
    box(axes, (8.2, 0.5), (3.5, 1.7), "losses\nlabels, pseudo-labels\non the strong view, context", BLUE)
    arrow(axes, (6.8, 1.35), (8.2, 1.35), BLUE)
    arrow(axes, (9.95, 3.9), (9.95, 2.2), ORANGE, dashed=True)
    arrow(axes, (6.8, 3.8), (8.2, 2.0), ORANGE, dashed=True)
    words(axes, (8.15, 3.05), "context", ORANGE)
    return axes


def pseudo_labels() -> Axes:
    """Draw probabilities that pass a threshold and some that do not."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.6), sharey=True)
    classes = ["forest", "crop", "water", "urban"]
    for axes, values, title in (
        (left, (0.97, 0.02, 0.005, 0.005), "kept: target for the strong view is forest"),
        (right, (0.55, 0.35, 0.04, 0.06), "left out: nothing is sure enough"),
    ):
        colors = [GREEN if value > 0.95 else GRAY for value in values]
        axes.bar(classes, values, color=colors, width=0.6)
        axes.axhline(0.95, color=RED, lw=1.2, ls="--")
        axes.set_title(title, fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 1.05)
    left.set_ylabel("labeler's probability")
    right.text(3.4, 0.93, "threshold 0.95", color=RED, fontsize=8.5, ha="right", va="top")
    figure.tight_layout()
    return left


def sites() -> Axes:
    """Draw where each injection site acts."""
    axes = canvas(12, 5.2)
    steps = (("patches\nto tokens", GRAY), ("block 0", BLUE), ("block 1", BLUE), ("...", BLUE), ("pooling", BLUE))
    for number, (text, color) in enumerate(steps):
        box(axes, (0.4 + 2.1 * number, 2.3), (1.6, 1.0), text, color)
        if number:
            arrow(axes, (0.4 + 2.1 * number - 0.5, 2.8), (0.4 + 2.1 * number, 2.8))
    box(axes, (10.9, 2.3), (0.9, 1.0), "head", BLUE)
    arrow(axes, (10.4, 2.8), (10.9, 2.8))
    box(axes, (4.4, 0.2), (3.4, 0.8), "encoder: place, date to vector", GREEN)
    marks = {
        2.3: "token\nclass_add\ntoken_add\n(once)",
        4.4: "cross_attention\n(once, gated)",
        6.6: "film\n(every block)",
        10.6: "late",
    }
    for x, text in marks.items():
        words(axes, (x, 4.35), text, GREEN)
        arrow(axes, (x, 3.85), (x, 2.9), GREEN)
    words(axes, (6.1, 1.55), "the vector enters at one of these sites", GREEN)
    return axes


def votes() -> Axes:
    """Draw a patch whose neighbors vote."""
    axes = canvas(9, 5.4)
    rng = np.random.default_rng(4)
    center = np.array([3.2, 2.7])
    for radius, alpha in ((1.0, 0.5), (2.0, 0.3)):
        axes.add_patch(Circle(tuple(center), radius, fill=False, ec=GRAY, lw=0.8, ls=":", alpha=alpha + 0.3))
    places = center + rng.normal(0, 1.25, (34, 2))
    for place in places:
        distance = float(np.hypot(*(place - center)))
        if 0.35 < distance < 2.1:
            color = GREEN if rng.random() < 0.78 else ORANGE
            axes.add_patch(
                Circle(tuple(place), 0.13, fc=color, ec="white", alpha=float(np.exp(-distance / 1.6)) + 0.12)
            )
    axes.add_patch(Circle(tuple(center), 0.18, fc="white", ec=RED, lw=2))
    box(axes, (6.0, 3.5), (2.7, 0.9), "pixels alone:\nforest 0.6, crop 0.4", GRAY)
    box(axes, (6.0, 1.0), (2.7, 0.9), "with votes:\nforest 0.85, crop 0.15", GREEN)
    arrow(axes, (7.35, 3.5), (7.35, 1.9), GREEN)
    arrow(axes, (5.1, 2.7), (7.2, 2.7), GREEN)
    words(axes, (3.2, 0.25), "darker: nearer, counts more (1/e at reach_km)", GRAY)
    return axes


def store() -> Axes:
    """Draw chunks and shards of a pixel array, and columns."""
    axes = canvas(12, 4.6)
    words(axes, (3.4, 4.25), "pixels: one chunk a patch, 512 chunks a shard file", BLUE, size=10)
    for shard in range(3):
        x = 0.3 + 2.15 * shard
        box(axes, (x, 0.5), (1.95, 3.3), "", BLUE)
        for row in range(4):
            for column in range(3):
                axes.add_patch(
                    FancyBboxPatch(
                        (x + 0.16 + 0.57 * column, 1.05 + 0.66 * row), 0.47, 0.5,
                        boxstyle="round,pad=0,rounding_size=0.05", fc="white", ec=BLUE, lw=0.8,
                    )
                )  # fmt: skip
        words(axes, (x + 0.97, 0.77), f"shard {shard}", BLUE)
    names = ("patch_id", "lat, lon", "time", "label", "split", "content_hash", "error_code")
    words(axes, (9.4, 4.25), "columns: one value a patch", GREEN, size=10)
    for number, name in enumerate(names):
        box(axes, (7.3, 3.35 - 0.47 * number), (4.3, 0.38), name, GREEN)
    return axes


def resume() -> Axes:
    """Draw an interrupted run that ends with the weights of an uninterrupted one."""
    axes = canvas(12, 3.6)
    words(axes, (1.0, 2.8), "never\nstopped")
    words(axes, (1.0, 0.9), "killed\nat step 700")
    arrow(axes, (2.0, 2.8), (10.2, 2.8), BLUE)
    arrow(axes, (2.0, 0.9), (6.4, 0.9), RED)
    arrow(axes, (5.2, 0.5), (10.2, 0.5), BLUE)
    for x in (2.0, 3.6, 5.2, 6.8, 8.4):
        axes.add_patch(Circle((x, 2.8), 0.11, fc=BLUE, ec="white"))
        if x <= 5.2:
            axes.add_patch(Circle((x, 0.9), 0.11, fc=RED, ec="white"))
    axes.add_patch(Circle((5.2, 0.5), 0.11, fc=BLUE, ec="white"))
    words(axes, (6.6, 1.15), "killed here", RED)
    words(axes, (5.2, 0.18), "resumes from last.pt (step 600)", BLUE)
    words(axes, (5.2, 3.2), "checkpoints")
    box(axes, (10.3, 1.2), (1.5, 1.1), "the same\nweights", GREEN)
    arrow(axes, (10.4, 2.75), (10.9, 2.3), GREEN)
    arrow(axes, (10.4, 0.6), (10.9, 1.2), GREEN)
    return axes


def batch() -> Axes:
    """Draw the way of a batch from stored bytes to a checkpoint."""
    axes = canvas(12.6, 4.4)
    top = (
        ("data/order\nwhich rows", GREEN),
        ("store/reader\nbytes, CRC-32C", BLUE),
        ("data/loader\nready batches", BLUE),
        ("data/views\nweak, strong", BLUE),
    )
    bottom = (
        ("training/checkpoint\nlast.pt, best.pt", GRAY),
        ("scoring/evaluation\nvalidation", GRAY),
        ("training/loop\noptimizer, averages", ORANGE),
        ("steps/teacher_student\nalgorithm, losses", ORANGE),
    )
    for number, (text, color) in enumerate(top):
        box(axes, (0.3 + 3.1 * number, 2.8), (2.6, 1.1), text, color)
        if number:
            arrow(axes, (0.3 + 3.1 * number - 0.5, 3.35), (0.3 + 3.1 * number, 3.35))
    for number, (text, color) in enumerate(bottom):
        box(axes, (0.3 + 3.1 * number, 0.6), (2.6, 1.1), text, color)
        if number:
            arrow(axes, (0.3 + 3.1 * number, 1.15), (0.3 + 3.1 * number - 0.5, 1.15))
    arrow(axes, (10.9, 2.8), (10.9, 1.7))
    return axes


FIGURES: tuple[Callable[[], Axes], ...] = (two_networks, pseudo_labels, sites, votes, store, resume, batch)


def main() -> None:
    """Write all diagrams."""
    for figure in FIGURES:
        drawn = figure().figure
        drawn.savefig(HERE / f"{figure.__name__}.svg", metadata={"Date": None})
        plt.close("all")


if __name__ == "__main__":
    main()
