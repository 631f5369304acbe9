"""Turn Matplotlib figures into SVG text for HTML pages.

When the pointer rests on a shape, such as a bar, the page shows the shape's name. Shapes use the page's colors.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from stssl.analysis.page import SERIES, joined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AnyFloats = NDArray[np.floating[Any]]
"""Type of an array of floats of any precision."""
COLORS = SERIES
LINES = ("-", "--", ":", "-.")
INK, SOFT, MUTED, RULE, PAPER = "#000000", "#56636f", "#8895a3", "#d5dbe1", "#fbfcfd"
STYLE: dict[Any, Any] = {
    # Matplotlib reads a dollar sign as the start of a formula, but names of runs and classes may contain it.
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
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
_THEME = {color: f"var(--series-{number})" for number, color in enumerate(COLORS)}
_THEME |= {INK: "var(--ink)", SOFT: "var(--soft)", MUTED: "var(--soft)", RULE: "var(--rule)", PAPER: "var(--paper)"}


def figure_of(width: float, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Create a Matplotlib figure with one row of axes, in the style of report pages. Return the figure and its axes.

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


def svg(figure: "Figure", names: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """Return a Matplotlib figure as SVG text for an HTML page. In texts, `?` replaces control characters.

    Args:
        figure: Figure to draw.
        names: Texts that the page shows when the pointer rests on a shape, by the `gid` of the Matplotlib artist that
            draws the shapes: one text for all its shapes, or one for each shape.
    """
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
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    for gid, texts in (names or {}).items():
        text = _named(text, gid, texts)
    # Remove the ids of Matplotlib's groups: each figure has the same ones, but an id may occur only once on a page.
    text = re.sub(r'(<g) id="[a-zA-Z_.]+_\d+"', r"\1", text)
    # The text is safe HTML: Matplotlib's XML writer escapes all names, and colors are replaced inside of tags only.
    return Markup(re.sub(r"<[^>]+>", _themed, text))


def _themed(tag: "re.Match[str]") -> str:
    return re.sub(r"#[0-9a-f]{6}(?=[;\"])", lambda color: _THEME.get(color[0], color[0]), tag[0])


def _named(text: str, gid: str, texts: Sequence[str]) -> str:
    """Add titles to the shapes that one Matplotlib artist drew. Browsers show a title if the pointer rests on a shape.

    Args:
        text: SVG text of the figure.
        gid: Id of the artist in the figure.
        texts: Titles: one for all shapes of the artist, or one for each shape.

    Returns:
        SVG text with the titles.
    """
    mark = f'<g id="{gid}">'
    start = text.find(mark)
    if start < 0 or not texts:
        return text
    head, body = text[:start], text[start + len(mark) :]
    if len(texts) == 1:
        return f"{head}<g>{_title(texts[0])}{body}"
    end = body.rfind("</defs>", 0, body.find("<use")) + 1
    left = iter(texts)

    def with_title(shape: "re.Match[str]") -> str:
        own = next(left, None)
        return shape[0] if own is None else f"{shape[1]}>{_title(own)}</{shape[2]}>"

    shapes = re.sub(r"(<(use|path)\b[^>]*?)\s*/>", with_title, body[end:], count=len(texts))
    return f"{head}<g>{body[:end]}{shapes}"


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>"


def legend(names: Sequence[str], marker: bool = False) -> Markup:
    """Return HTML with a legend for several figures: a sample of each line, with its color, and its name.

    Args:
        names: Names of the lines, in the order of their colors in the figures.
        marker: True if the lines have markers.
    """
    dashes = ("", "6 3", "2 3", "7 3 2 3")
    sample = Markup(
        "<li><svg width='28' height='10' aria-hidden='true'><path d='M1 5H27' stroke='var(--series-{}'"
        " stroke-width='2.5' stroke-dasharray='{}'/>{}</svg>{}</li>"
    )
    dot = Markup("<circle cx='14' cy='5' r='3.5' fill='var(--series-{})'/>")
    lines = (
        sample.format(
            f"{number % len(COLORS)})",
            dashes[number // len(COLORS) % len(dashes)],
            dot.format(number % len(COLORS)) if marker else "",
            name,
        )
        for number, name in enumerate(names)
    )
    return Markup("<ul class='legend'>{}</ul>").format(joined("", lines))


def panels(figures: Sequence[Markup]) -> Markup:
    """Return HTML that shows figures side by side, or below each other if the browser window is narrow.

    Leave out empty figures; return empty HTML if all are empty.
    """
    found = [figure for figure in figures if figure]
    frame = Markup("<figure>{}</figure>")
    return Markup("<div class='panels'>{}</div>").format(joined("", map(frame.format, found))) if found else Markup()
