"""Draw a small picture of a map, with a legend of its classes and a scale bar."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Ints
from stssl.mapping.kept_blocks import KeptBlocks
from stssl.mapping.windows import blend

MOST_PIXELS = 1200
"""Largest width and height of the picture's map in pixels."""
ROWS = 64
"""Number of rows of the picture that are blended at a time."""
UNMEASURED = -1
PICTURE_STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 9.0}
"""Matplotlib's settings. A dollar sign in a name must not begin a formula."""


def sampled_classes(kept: KeptBlocks) -> tuple[NDArray[np.int16], int]:
    """Choose evenly spaced pixels of a map for its picture, and find their most probable classes.

    Args:
        kept: Finished blocks of the map.

    Returns:
        [h, w] class indexes, -1 where nothing is measured; and the distance between neighbors, in pixels of the map.

    Raises:
        RunError: The file of a block was deleted or damaged after it was written.
    """
    grid = kept.plan.grid
    step = -(-max(grid.down.size, grid.across.size) // MOST_PIXELS)
    rows, columns = (np.arange(step // 2, axis.size, step, dtype=np.int64) for axis in (grid.down, grid.across))
    found = [_classes(kept, rows[start : start + ROWS], columns) for start in range(0, len(rows), ROWS)]
    return np.concatenate(found), step


def _classes(kept: KeptBlocks, rows: Ints, columns: Ints) -> NDArray[np.int16]:
    grid = kept.plan.grid
    numbers = (
        grid.down.touching(int(rows[0]), int(rows[-1]) + 1),
        grid.across.touching(int(columns[0]), int(columns[-1]) + 1),
    )
    values, covered = blend(grid, (rows, columns), numbers, *kept.windows(*numbers))
    width = range(grid.across.size)
    for place, row in enumerate(rows.tolist()):
        covered[place] &= kept.measured(range(row, row + 1), width)[0, columns]
    return np.where(covered, values.argmax(-1), UNMEASURED).astype(np.int16)


def draw_preview(
    classes: NDArray[np.int16], names: Sequence[str], colors: Sequence[str], title: str, meters: tuple[float, float]
) -> bytes:
    """Draw a map as a PNG picture with a legend and a scale bar.

    Args:
        classes: [h, w] class indexes; -1 where nothing is measured.
        names: Names of the classes.
        colors: Colors of the classes, such as `#1f77b4`.
        title: Title of the picture.
        meters: Height and width of a pixel of `classes` on the ground, in meters.

    Returns:
        Content of the PNG file.
    """
    # Import Matplotlib only here: it takes half a second.
    import matplotlib as mpl
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    table = np.array([to_rgb(color) for color in colors] + [(1.0, 1.0, 1.0)])
    height, width = classes.shape
    tall = height * meters[0] / (width * meters[1])
    with mpl.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(9, max(3.0, min(12.0, 6.5 * tall + 0.8))), dpi=130, layout="constrained")
        axes = figure.subplots()
        axes.imshow(table[classes], interpolation="nearest", aspect=meters[0] / meters[1])
        axes.set_title(title, loc="left")
        axes.set_axis_off()
        present = [number for number in range(len(names)) if (classes == number).any()]
        known = max(1, int((classes >= 0).sum()))
        handles = [
            Patch(facecolor=colors[n], edgecolor="#555555", label=f"{names[n]} ({(classes == n).sum() / known:.0%})")
            for n in present
        ]
        if (classes < 0).any():
            handles.append(Patch(facecolor="white", edgecolor="#555555", label="not measured"))
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        length, words = scale_bar(width * meters[1])
        pixels = length / meters[1]
        left, base = width * 0.03, height + max(3.0, height * 0.03)
        axes.plot([left, left + pixels], [base, base], color="black", linewidth=3, solid_capstyle="butt", clip_on=False)
        axes.text(left + pixels + width * 0.01, base, words, va="center", ha="left")
        axes.set_ylim(base + height * 0.03, -0.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def scale_bar(width: float) -> tuple[float, str]:
    """Choose the length of a scale bar: 1, 2 or 5 times a power of ten, at most a third of the map's width.

    Args:
        width: Width of the map in meters.

    Returns:
        Length in meters, and the length as text, such as `2 km`.
    """
    power = 10.0 ** np.floor(np.log10(width / 3))
    length = float(max(factor * power for factor in (1, 2, 5) if factor * power <= width / 3))
    return length, f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
