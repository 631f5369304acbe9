"""Make HTML pages that are single files and need no scripts and no network.

Make pages only from `Markup`. Names and values come from files, and must not become HTML. `Markup` escapes every other
text that is formatted or joined into it.
"""

from collections.abc import Iterable

from markupsafe import Markup

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}
_PAGE = Markup("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d2730; background: #fbfcfd; max-width: 70rem;
  margin: 2rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ margin-top: 2.4rem; border-bottom: 1px solid #d5dbe1; }}
h3 {{ margin-bottom: .3rem; }} p.note {{ color: #56636f; }}
table {{ border-collapse: collapse; margin: .8rem 0; }} .wide {{ overflow-x: auto; }}
th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e8ec; }}
th:first-child, td:first-child, td.text {{ text-align: left; }} thead th {{ border-bottom: 2px solid #aab4be; }}
td.best {{ font-weight: 650; }} svg {{ max-width: 100%; height: auto; }}
pre {{ background: #f1f4f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }}
details > summary {{ cursor: pointer; margin: .6rem 0; }}
</style></head><body>
{body}
</body></html>
""")


def page(title: str, body: Iterable[Markup | str]) -> str:
    """Return the HTML text of a page with a title and the parts of its body. Escape parts that are not `Markup`."""
    made = _PAGE.format(title=title, body=joined("\n", body))
    return str(made).translate(_CONTROLS).encode("utf-8", "replace").decode()


def joined(between: str, parts: Iterable[Markup | str]) -> Markup:
    """Join HTML parts with the HTML text `between` them. Escape parts that are not `Markup`."""
    return Markup(between).join(parts)


def number(value: object) -> str:
    """Format a whole number with commas. Turn any other value, for example from a damaged file, into plain text."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
