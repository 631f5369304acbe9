"""Make HTML tables whose columns sort on a click."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stssl.analysis.page import joined


@dataclass(frozen=True)
class Cell:
    """Describe one cell of an HTML table: what it shows, and how a click on its column's name sorts it.

    Attributes:
        shown: Text or HTML that the cell shows.
        value: Number by which the column is sorted; None for a cell of text, which a column of numbers sorts last.
        shade: Strength of the cell's background color, 0 to 1.
    """

    shown: Markup | str
    value: float | None = None
    shade: float = 0.0


CellValue = Cell | Markup | str | float | int | None
_TABLE = Markup("<div class='wide'><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>")
_HEAD = Markup("<th scope='col'{}{}><button type='button'>{}</button></th>")
_SHADE = Markup(" style='background: color-mix(in srgb, var(--series-0) {:.0f}%, transparent)'")


def table(
    head: Sequence[str], rows: Sequence[Sequence[CellValue]], meanings: Mapping[str, str] | None = None
) -> Markup:
    """Return an HTML table. A click on a column's name sorts the rows by the letters or numbers in this column.

    Args:
        head: Names of the columns.
        rows: Values of each row: one value or `Cell` for each column. None shows a dash.
        meanings: Explanations of columns by name. The page shows them when the pointer rests on the name.

    Returns:
        HTML, empty without rows.
    """
    if not rows:
        return Markup()
    found = [
        _HEAD.format(
            Markup(" class='text'") if all(_is_text(row[place]) for row in rows) else "",
            Markup(" title='{}'").format(meanings[name]) if meanings and name in meanings else "",
            name,
        )
        for place, name in enumerate(head)
    ]
    line = Markup("<tr>{}</tr>")
    return _TABLE.format(
        joined("", found), joined("", (line.format(joined("", (_cell(value) for value in row))) for row in rows))
    )


def _is_text(value: CellValue) -> bool:
    return isinstance(value, str)


def _cell(value: CellValue) -> Markup:
    if value is None:
        return Markup("<td data-value=''>–</td>")
    if isinstance(value, Cell):
        return Markup("<td data-value='{}'{}>{}</td>").format(
            "" if value.value is None else repr(float(value.value)),
            _SHADE.format(100 * value.shade) if value.shade > 0 else "",
            value.shown,
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Markup("<td class='text'>{}</td>").format(value)
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return Markup("<td data-value='{}'>{}</td>").format(repr(value), shown)
