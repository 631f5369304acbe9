"""Make HTML pages that are single files and load nothing from elsewhere. Their only script sorts tables.

Make pages only from `Markup`. Names and values come from files, and must not become HTML. `Markup` escapes every other
text that is formatted or joined into it.
"""

import base64
import hashlib
from collections.abc import Iterable

from markupsafe import Markup

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}
_SORT = """
document.addEventListener("click", event => {
  const button = event.target.closest("th button");
  if (!button) return;
  const head = button.parentNode, table = head.closest("table"), body = table.tBodies[0];
  const read = row => {
    const cell = row.cells[head.cellIndex], value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value);
  };
  const rows = [...body.rows].map(row => [read(row), row]);
  const old = head.getAttribute("aria-sort"), numbers = rows.some(pair => typeof pair[0] === "number");
  const down = old ? old === "ascending" : numbers;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", {numeric: true});
  rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : down ? order(b, a) : order(a, b));
  body.append(...rows.map(pair => pair[1]));
});
"""
SCRIPT = Markup("<script>{}</script>").format(Markup(_SORT))
"""The only script of a page: a click on the head of a column sorts the table; missing values stay last."""
# Let browsers run only a script with this hash, and fetch nothing. If a name from a file became HTML by a mistake, a
# script in it could do no harm.
_HASH = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
_RULES = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"
SERIES = ("#2563a8", "#d1662b", "#3a8f5c", "#8a4f9e", "#b0893b", "#5b6b7a")
"""Colors of runs and networks on a light page."""
_DARK_SERIES = ("#6ba6e8", "#f0935c", "#6cc78f", "#c490d8", "#dcb765", "#9fb0c0")
_LIGHT = "--ink: #1d2730; --paper: #fbfcfd; --soft: #56636f; --rule: #d5dbe1; --strong: #aab4be; --block: #f1f4f6;"
_DARK = "--ink: #e3e8ec; --paper: #14191e; --soft: #a3afba; --rule: #323c45; --strong: #566370; --block: #1f262d;"


def _colors(series: Iterable[str]) -> str:
    return " ".join(f"--series-{number}: {color};" for number, color in enumerate(series))


_STYLE = f"""
:root {{ color-scheme: light; {_LIGHT} {_colors(SERIES)} }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; {_DARK} {_colors(_DARK_SERIES)} }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2rem auto; padding: 0 1.2rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }}
h2 {{ margin-top: 2.4rem; border-bottom: 1px solid var(--rule); }}
h3 {{ margin: 1.4rem 0 .3rem; }} p.note {{ color: var(--soft); max-width: 50rem; }} a {{ color: var(--series-0); }}
table {{ border-collapse: collapse; margin: .8rem 0; overflow-wrap: normal; }} .wide {{ overflow-x: auto; }}
th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); }}
td {{ font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child, th.text, td.text {{ text-align: left; }} td.text {{ min-width: 7rem; }}
td:first-child {{ min-width: 9rem; }}
thead th {{ border-bottom: 2px solid var(--strong); vertical-align: bottom; }}
th button {{ all: unset; cursor: pointer; }} th button:focus-visible {{ outline: 2px solid var(--series-0); }}
th button::after {{ content: "\\2195"; color: var(--strong); margin-left: .25rem; }}
th[aria-sort=ascending] button::after {{ content: "\\2191"; color: inherit; }}
th[aria-sort=descending] button::after {{ content: "\\2193"; color: inherit; }}
svg {{ max-width: 100%; height: auto; }} svg text {{ fill: var(--ink); }}
.bars svg {{ min-width: 36rem; }}
.panels {{ display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: flex-start; }}
.panels > * {{ max-width: 100%; }} figure {{ margin: 0; }}
ul.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .5rem 0; }}
ul.legend svg {{ vertical-align: middle; margin-right: .4rem; }}
.patches figure {{ width: 9rem; font-size: .8rem; line-height: 1.3; }}
.patches img {{ width: 100%; image-rendering: pixelated; display: block; margin-bottom: .2rem; }}
pre {{ background: var(--block); padding: .8rem; overflow-x: auto; font-size: .85rem; }}
details > summary {{ cursor: pointer; margin: .6rem 0; }}
@media print {{
  body {{ max-width: none; margin: 0; font-size: 10pt; }} .wide {{ overflow: visible; }}
  table {{ font-size: 8pt; }} th, td {{ padding: .15rem .3rem; }} td.text {{ overflow-wrap: anywhere; }}
  th button::after {{ content: none; }} .bars svg {{ min-width: 0; }} td.text, td:first-child {{ min-width: 0; }}
  h2, h3 {{ break-after: avoid; }} figure, tr, svg {{ break-inside: avoid; }} pre {{ white-space: pre-wrap; }}
}}
"""
_PAGE = Markup("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{rules}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
{body}
{script}</body></html>
""")


def page(title: str, body: Iterable[Markup | str]) -> str:
    """Return the HTML text of a whole page.

    Args:
        title: Title of the page.
        body: Parts of the page. Parts that are not `Markup` are escaped.
    """
    text = _PAGE.format(rules=_RULES, title=title, style=Markup(_STYLE), body=joined("\n", body), script=SCRIPT)
    return str(text).translate(_CONTROLS).encode("utf-8", "replace").decode()


def joined(between: str, parts: Iterable[Markup | str]) -> Markup:
    """Return the parts of a page as one, with the HTML text `between` each two. Escape parts that are not `Markup`."""
    return Markup(between).join(parts)


def number(value: object) -> str:
    """Return a whole number as text with commas between thousands, and any other value as plain text.

    Other values come from damaged files, and must not stop the page from being written.
    """
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def note(words: str) -> Markup:
    """Return an HTML paragraph of small print with the given words."""
    return Markup("<p class='note'>{}</p>").format(words)
