"""Read the cells of a manifest (a table of images): paths, times, places, and parts of a split, such as `train`.

Each kind of cell has its own function, so a bad cell does not keep the other cells of a row from being read.
"""

import os
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import unquote

from stssl.archives.base import degrees, good_place, season_of, time_values
from stssl.archives.label_cells import is_missing
from stssl.store.schema import SPLIT_CODES, BadPatchError, Values

OTHER_WORDS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
"""Other words for the parts of a split, and the words of the store."""
YEARS = (1800, 2200)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_YEAR_FIRST = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})(?=$|[T ])")
_NO_DATE = re.compile(r"\d{1,4}|\d{5,7}|\d{9,}(\.\d*)?")


def image_path(folder: Path, name: str) -> Path:
    """Return the path of an image from its name in a table.

    The name may be absolute or relative to `folder`, and may start with `~` or `file://`. The file need not exist.

    Raises:
        BadPatchError: The name is empty, a URL, a path of another operating system or unknown user, or has a NUL.
    """
    text = name.strip()
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://").removeprefix("localhost"))
    if is_missing(text):
        raise BadPatchError("no_pixels", "the row names no image")
    if _URL.match(text):
        raise BadPatchError("no_pixels", f"{name} is a URL: images must lie in folders. Fetch them first.")
    if "\0" in text:
        raise BadPatchError("no_pixels", f"{name} has a NUL character")
    if _DRIVE.match(text) and os.sep == "/":
        raise BadPatchError("no_pixels", f"{name} is a path of another system. Make it relative to the table.")
    if "\\" in text and "/" not in text:
        text = text.replace("\\", "/")
    if text.startswith("~"):
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise BadPatchError("no_pixels", f"{name} starts at the folder of nobody here") from None
    return folder / text


def first_rows(folder: Path, names: Sequence[str]) -> list[int]:
    """Return for each row of a table of images the number of the first row, from 0, that names the same file.

    A row that repeats no earlier one gets its own number. One file may have several names, such as `b`, `a/../b`, `./b`
    or a link.

    Args:
        folder: Folder that relative paths start at.
        names: Path of the image in each row.
    """
    first: dict[str, int] = {}
    parents: dict[str, str] = {}
    found = []
    for row, name in enumerate(names):
        try:
            parent, own = os.path.split(os.path.abspath(image_path(folder, name)))  # noqa: PTH100
            if parent not in parents:
                # Resolve links once for each folder, not for each file: each part of a path costs a system call.
                parents[parent] = os.path.realpath(parent)
            whole = os.path.join(parents[parent], own)  # noqa: PTH118
            key = os.path.realpath(whole) if os.path.islink(whole) else whole  # noqa: PTH114
        except (BadPatchError, OSError, ValueError):
            key = name
        found.append(first.setdefault(key, row))
    return found


def time_of(cell: object) -> Values:
    """Convert a cell of a table with a time to a dict of store columns (time, day of year, season).

    A time without time zone counts as UTC. An empty cell gives an empty dict.

    Raises:
        BadPatchError: The cell is no ISO 8601 time, or its year is out of range.
    """
    if is_missing(cell):
        return {}
    when = _moment(cell)
    try:
        when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except OverflowError:
        raise BadPatchError("bad_time", f"time '{cell}' is out of range") from None
    if not YEARS[0] <= when.year <= YEARS[1]:
        raise BadPatchError("bad_time", f"time '{cell}' is out of range")
    return time_values(when) | {"season": season_of(when)}


def _moment(cell: object) -> datetime:
    """Convert a cell of a table to a `datetime`. It has a time zone only if the cell states one.

    Raises:
        BadPatchError: The cell is no ISO 8601 time.
    """
    if isinstance(cell, datetime):
        return cell
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day)
    if not isinstance(cell, str):
        kind = type(cell).__name__
        raise BadPatchError("bad_time", f"time {cell} is a {kind}, not ISO 8601 (such as 2017-06-13T10:10:31Z)")
    text = cell.strip()
    form = "ISO 8601 (such as 2017-06-13 or 2017-06-13T10:10:31Z)"
    # Only a number of eight digits is a date. Other numbers could be a year, a day of the year or seconds.
    if _NO_DATE.fullmatch(text):
        raise BadPatchError("bad_time", f"time '{cell}' is a bare number, not {form}")
    try:
        return datetime.fromisoformat(_YEAR_FIRST.sub(lambda got: f"{got[1]}-{got[2]:0>2}-{got[3]:0>2}", text, count=1))
    except (ValueError, OverflowError):
        either = " (day or month first?)" if re.match(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}", text) else ""
        raise BadPatchError("bad_time", f"time '{cell}' is not {form}{either}") from None


def place_of(lat: object, lon: object, row: int) -> Values:
    """Return the latitude and longitude in two cells of a table as a dict of the store columns `lat` and `lon`.

    Two empty cells give an empty dict.

    Args:
        lat: Cell of the latitude.
        lon: Cell of the longitude.
        row: Row of the table, counted from 0, for messages.

    Raises:
        BadPatchError: One cell alone is empty, or the cells are no place in degrees. The message names row and column.
    """
    cells = {"lat": lat, "lon": lon}
    missing = [name for name, cell in cells.items() if is_missing(cell)]
    if len(missing) == len(cells):
        return {}
    where = f"row {row + 1} below the header"
    if missing:
        raise BadPatchError("bad_coordinates", f"{where} has no {missing[0]}, and the other one")
    for name, cell in cells.items():
        if isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell):
            hint = f"'{cell}' has a decimal comma: write {cell.strip().replace(',', '.')}"
            raise BadPatchError("bad_coordinates", f"{where}, column {name}: {hint}")
    south, east = degrees(lat), degrees(lon)
    if not good_place(south, east):
        hint = " (swapped?)" if good_place(east, south) else ""
        if good_place(south, east - 360):
            hint = " (longitudes run from -180 to 180)"
        raise BadPatchError("bad_coordinates", f"{where}: latitude {lat}, longitude {lon}{hint}")
    return {"lat": south, "lon": east}


def split_of(cell: object) -> Values:
    """Return the part of a split that a cell names as a dict: the store column `split_official` and the part's code.

    Parts are `train`, `validation` and `test`; other usual words, such as `val`, count too. An empty cell gives an
    empty dict.

    Raises:
        BadPatchError: The cell names no part of a split.
    """
    if is_missing(cell):
        return {}
    part = str(cell).strip().lower()
    part = OTHER_WORDS.get(part, part)
    if part not in SPLIT_CODES:
        raise BadPatchError("bad_split", f"split '{part}' is none of {', '.join(SPLIT_CODES)}")
    return {"split_official": SPLIT_CODES[part]}


def place_name(cell: object) -> str:
    """Return the cell of a table that identifies a location as text.

    The number 7.0 becomes `7`, and an empty cell an empty text.
    """
    if is_missing(cell):
        return ""
    text = str(cell).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text
