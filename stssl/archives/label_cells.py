"""Read class names from the cells of a table. A cell holds one name, a list of names, or names divided by `;`.

Other tools write lists as text (Python, NumPy, JSON, PostgreSQL), so such a text is read as a list. Any other text that
could be several names is refused: else each combination of names would become a class. A list of numbers is refused.
"""

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isnan
from pathlib import Path

import numpy as np

from stssl.archives.nomenclature import LABELS_19, LABELS_43
from stssl.base.errors import DataError

MISSING = frozenset(
    ("", "nan", "na", "n/a", "#n/a", "#na", "<na>", "none", "null", "nil", "nat", "-", "--", "---", "\\n")
)
"""Words for a missing value in small letters, as pandas, SQL and people write them."""
DOUBTFUL = frozenset(("unknown", "unlabeled", "unlabelled", "undefined", "missing", "nodata", "no data", "-1", "?"))
"""Class names that often mean "no label"."""
BIGEARTHNET_LABELS = frozenset(LABELS_43) | frozenset(LABELS_19)
NEVER = {"|": "'|'", "\t": "tabs", "\n": "line breaks", "\r": "line breaks"}
"""Signs that no class name has, and their names in messages."""
SOMETIMES = (",", "/", "&", "+", ":", " and ", " ")
"""Signs that may be a part of one name or divide two names."""
WAY_OUT = "Only ; divides names"
AS_ONE = 'if it is one name, write it as a list of one: ["..."]'

_WRAPPED = re.compile(r"(?:np\.|numpy\.)?(?:array|set|frozenset|list|tuple)\((.*?)(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_QUOTED = r"""(?:np\.str_\()?(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)?"""
_BARE = r"""(?P<bare>[^\s,'"\[\](){}][^,'"\[\](){}]*)"""
_TOKEN = re.compile(f"{_QUOTED}|{_BARE}", re.DOTALL)
_GAP = re.compile(r"[\s,]*")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|true|false", re.IGNORECASE)
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


def is_missing(cell: object) -> bool:
    """Return True if a cell is empty or NaN, or holds a word for a missing value, such as `n/a`."""
    if cell is None or (isinstance(cell, float | Decimal) and isnan(cell)):
        return True
    return isinstance(cell, str) and " ".join(cell.split()).casefold() in MISSING


@dataclass(frozen=True)
class TableLabels:
    """Hold the class names that were read from a label column of a table.

    Attributes:
        classes: Sorted names. If all names are numbers, they are sorted by value.
        rows: For each row, the indices of its names in `classes`; empty if the row has no label.
        notes: Remarks for the user, one line each.
    """

    classes: tuple[str, ...]
    rows: Sequence[tuple[int, ...]]
    notes: tuple[str, ...]


def read_labels(name: str, cells: Sequence[object], several: bool, path: Path) -> TableLabels:
    """Read the class names in a label column of a table. Return the sorted names, and the classes of each row.

    Args:
        name: Name of the column in the table.
        cells: Cells of all rows.
        several: True if a cell may hold several names.
        path: Path of the table, for messages.

    Raises:
        DataError: A cell holds a list of numbers, lists of lists, or several names without `;`, or two names differ
            only in spelling. The message names row and column.
    """
    reader = _Reader(name, several, path)
    # Read equal cells only once to save time: a table may have millions of rows, but few different cells.
    known: dict[str, tuple[str, ...]] = {}
    rows = []
    for row, cell in enumerate(cells, 1):
        key = cell if isinstance(cell, str) else repr(cell)
        if key not in known:
            known[key] = reader.names(row, cell)
        rows.append(known[key])
    reader.compare()
    numbers = all(map(_NUMBER.fullmatch, reader.first)) and not any(word.isalpha() for word in reader.first)
    short = _short_numbers(reader.first) if numbers else {}
    rows = [tuple(dict.fromkeys(short.get(own, own) for own in names)) for names in rows]
    found = {own for names in rows for own in names}
    classes = tuple(sorted(found, key=lambda own: (float(own) if numbers else 0.0, own)))
    place = {own: number for number, own in enumerate(classes)}
    return TableLabels(
        classes,
        tuple(tuple(place[own] for own in names) for names in rows),
        tuple(_notes(name, cells, rows, classes, several)),
    )


class _Reader:
    """Read the class names in the cells of one label column. Remember the first row of each name, for messages."""

    def __init__(self, name: str, several: bool, path: Path) -> None:
        self.name, self.several, self.path = name, several, path
        self.first: dict[str, int] = {}
        self.plain: dict[str, int] = {}
        """Names from cells without `;`, and their first rows. Such a name could be several names."""
        self.divided: dict[str, int] = {}

    def refuse(self, row: int, cell: object, words: str) -> DataError:
        """Return (do not raise) an error about a wrong cell. Its message names column, row and cell, and the reason.

        Args:
            row: Row of the cell below the header, from 1.
            cell: The wrong cell.
            words: The reason, such as `is a list of numbers`.
        """
        shown = _shown(cell)
        return DataError(f"{self.path}: row {row} below the header, column '{self.name}': {shown} {words}")

    def names(self, row: int, cell: object) -> tuple[str, ...]:
        """Return the class names in one cell: a text, a number or a list. Return an empty tuple for an empty cell.

        The row of each new name is remembered for messages.

        Args:
            row: Row of the cell below the header, from 1.
            cell: The cell.

        Raises:
            DataError: The cell holds no class name and no list of them.
        """
        if is_missing(cell):
            return ()
        if isinstance(cell, bytes):
            try:
                cell = cell.decode()
            except UnicodeDecodeError:
                raise self.refuse(row, cell, "is not text in UTF-8") from None
        if isinstance(cell, list | tuple | set | np.ndarray):
            found = self._listed(row, cell, list(cell))
        elif isinstance(cell, dict):
            raise self.refuse(row, cell, "is no name and no list of names")
        elif isinstance(cell, str):
            found = self._text(row, cell)
        else:
            found = [_number_name(cell)]
        for own in found:
            self.first.setdefault(own, row)
        return tuple(found)

    def _listed(self, row: int, cell: object, items: Iterable[object]) -> list[str]:
        """Return the class names in a list. Missing items are left out.

        Args:
            row: Row of the cell below the header, for messages.
            cell: The whole cell, for messages.
            items: Items of the list.

        Raises:
            DataError: An item is no text or has a `;`, or there are several names where one is allowed.
        """
        found = []
        for given in items:
            if is_missing(given):
                continue
            item = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
            if isinstance(item, int | float | Decimal | np.number | np.bool_):
                raise self.refuse(row, cell, "is a list of numbers. Give the names of the classes")
            if not isinstance(item, str):
                raise self.refuse(row, cell, "is a list of something else than names")
            if ";" in item:
                raise self.refuse(row, cell, "is a list with ';' inside a name. Use either a list or ;")
            found.append(_tidy(item))
        if len(found) > 1 and not self.several:
            raise self.refuse(row, cell, "has several classes: a column with several in a cell must be called 'labels'")
        return found

    def _text(self, row: int, cell: str) -> list[str]:
        """Return the class names in a text cell: one name, names divided by `;`, or a list that is written as text.

        Args:
            row: Row of the cell below the header, for messages.
            cell: The text.

        Raises:
            DataError: The text holds numbers, or divides names by another sign than `;`.
        """
        stripped = cell.strip()
        inner = _WRAPPED.fullmatch(stripped)
        text = inner[1].strip() if inner else stripped
        if not text:
            return []
        if _is_list(text):
            return self._listed(row, cell, self._tokens(row, cell, text))
        if not self.several:
            for sign, words in NEVER.items():
                if sign in text and sign != "|":
                    raise self.refuse(
                        row, cell, f"has {words} in a name. One class a cell, or a column 'labels' with ;"
                    )
            return [_tidy(text)]
        parts = [_tidy(part) for part in text.split(";")]
        found = [part for part in parts if not is_missing(part)]
        for part in found:
            self._check_part(row, text, part, ";" in text)
        flags = [part for part in found if _NUMBER.fullmatch(part)]
        if len(found) > 1 and len(flags) == len(found) and (len(set(flags)) < len(flags) or not _integers(flags)):
            raise self.refuse(row, cell, "holds numbers, not names. Give the names of the classes")
        return found

    def _check_part(self, row: int, cell: str, part: str, divided: bool) -> None:
        """Raise an error if a part of a cell's text, such as a text between two `;`, is no class name.

        Args:
            row: Row of the cell below the header, for messages.
            cell: Whole text of the cell.
            part: Part of the text.
            divided: True if the cell has a `;`.

        Raises:
            DataError: The text has signs that no name has, such as tabs, or the part is several numbers.
        """
        for sign, words in NEVER.items():
            if sign in cell:
                raise self.refuse(row, cell, f"has {words} between names. {WAY_OUT}")
        pieces = re.split(r"[\s,/]+", part)
        if len(pieces) > 1 and all(map(_NUMBER.fullmatch, pieces)):
            raise self.refuse(row, cell, "holds numbers, not names. Give the names of the classes")
        (self.divided if divided else self.plain).setdefault(part, row)

    def _tokens(self, row: int, cell: str, text: str) -> Iterator[str]:
        """Yield the items of a list that is written as text, such as `['Forest', 'Water']` or `{Forest,Water}`.

        Args:
            row: Row of the cell below the header, for messages.
            cell: Whole text of the cell, for messages.
            text: The list, with its brackets.

        Raises:
            DataError: The text is a list of lists or numbers, or lacks quotes where they are needed.
        """
        place, end = 1, len(text) - 1
        opening = text[0]
        while (place := _skip(text, place)) < end:
            token = _TOKEN.match(text, place, end)
            if token is None:
                raise self.refuse(row, cell, f"is a list that cannot be read (lists in lists?). {WAY_OUT}")
            place = token.end()
            if (quoted := token["quoted"]) is not None:
                yield _unquoted(quoted)
                continue
            bare = token["bare"].strip()
            if any(map(_NUMBER.fullmatch, bare.split())):
                raise self.refuse(row, cell, "is a list of numbers. Give the names of the classes")
            if opening != "{" and not is_missing(bare):
                raise self.refuse(row, cell, f"is a list without quotes. {WAY_OUT}; or quote the names of the list")
            yield bare

    def compare(self) -> None:
        """Check all class names of the column against each other, after the last cell was read.

        Raises:
            DataError: A name must be several names or a part of a vector of 0 and 1, or two names differ only in
                spelling.
        """
        folded: dict[str, str] = {}
        for own, row in self.first.items():
            same = folded.setdefault(_folded(own), own)
            if same != own:
                where = f"row {self.first[same]}"
                raise self.refuse(row, own, f"and {_shown(same)} ({where}) differ in spelling only. Make them one name")
        if self.several:
            for own, row in (self.plain | self.divided).items():
                self._compare_parts(own, row)
            names = set(self.first)
            if len(names) > 1 and all(re.fullmatch("[01]{2,}", own) for own in names) and len({*map(len, names)}) == 1:
                own = min(names)
                raise self.refuse(self.first[own], own, "is a vector of 0 and 1. Give the names of the classes")
            binary = {"0", "1", "0.0", "1.0", "True", "False"}
            if self.divided and names and names <= binary:
                own, row = next(iter(self.divided.items()))
                raise self.refuse(row, own, "is a part of a vector of 0 and 1. Give the names of the classes")

    def _compare_parts(self, own: str, row: int) -> None:
        """Raise an error if a class name must be several names, such as `Forest, Water`.

        It must be several if other rows have its parts as class names, or if it has a comma or ` / ` and no cell of the
        column divides names by `;`.

        Args:
            own: The class name.
            row: Row of the name below the header, for messages.

        Raises:
            DataError: The name must be several names.
        """
        if own in BIGEARTHNET_LABELS:
            return
        for sign in SOMETIMES:
            parts = [part.strip() for part in own.split(sign) if part.strip()]
            if len(parts) < 2:
                continue
            others = [part for part in parts if part in self.first]
            some = sign == "," or (sign == "/" and own not in self.divided)
            known = bool(others) if some else len(others) == len(parts)
            what = f"has {sign!r} between names" if sign.strip() else "has spaces or words between names"
            if known:
                seen = f"'{others[0]}' is the class of row {self.first[others[0]]}"
                raise self.refuse(row, own, f"{what} ({seen}). {WAY_OUT}; {AS_ONE}")
            if not self.divided and (sign == "," or (sign == "/" and " / " in own)):
                raise self.refuse(row, own, f"has {sign!r}, and no cell of the column has ';'. {WAY_OUT}; {AS_ONE}")


def _is_list(text: str) -> bool:
    """Return True if a text is a list of names in brackets. A single word in round brackets is a name, not a list."""
    enclosed = text[0] in _BRACKETS and text[-1] == _BRACKETS[text[0]]
    return enclosed and (text[0] != "(" or any(sign in text for sign in ",'\""))


def _skip(text: str, place: int) -> int:
    """Return the first position in a text, from `place` on, that has neither a space nor a comma."""
    gap = _GAP.match(text, place)
    return gap.end() if gap else place


def _unquoted(token: str) -> str:
    """Return an item of a list without the quotes around it. Escapes are resolved as in JSON or Python."""
    try:
        return str(json.loads(token)) if token[0] == '"' else str(ast.literal_eval(token))
    except (ValueError, SyntaxError):
        return token[1:-1]


def _shown(cell: object) -> str:
    """Return a cell as text for an error message, with at most 80 characters."""
    text = repr(cell if not isinstance(cell, np.ndarray) else cell.tolist())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tidy(name: str) -> str:
    """Return a class name with single spaces, and with one encoding for each letter (Unicode's normal form C)."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _folded(name: str) -> str:
    """Return a class name in small letters and without spaces. Names that differ only in these become equal."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _number_name(cell: object) -> str:
    """Return a cell with a number as text, which is a class name. The number 7.0 becomes `7`."""
    if isinstance(cell, float | Decimal):
        number = float(cell)
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else str(cell)
    return str(cell)


def _integers(names: Iterable[str]) -> bool:
    """Return True if all class names are whole numbers, such as `7` or `7.0`."""
    return all(re.fullmatch(r"[+-]?\d+(?:\.0*)?", name) for name in names)


def _short_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return the short form of class names such as `7.0`, which stand for whole numbers.

    The result is a dict from name to short form, such as `7`. Other names are left out.
    """
    return {name: name.partition(".")[0] for name in names if "." in name and _integers([name])}


def _notes(
    name: str, cells: Sequence[object], rows: Sequence[Sequence[str]], classes: Sequence[str], several: bool
) -> Iterator[str]:
    """Yield remarks for the user, one line each, about a label column: unlabeled rows, doubtful names, joined names.

    Args:
        name: Name of the column.
        cells: Cells of all rows.
        rows: Class names of each row.
        classes: All class names.
        several: True if a cell may hold several names.
    """
    empty = sum(not names for names in rows)
    if empty:
        words = Counter(cell.strip() for cell in cells if isinstance(cell, str) and cell.strip() and is_missing(cell))
        said = ", ".join(f"'{word}' {count:,} times" for word, count in sorted(words.items()))
        yield f"{name}: {empty:,} of {len(rows):,} rows are unlabeled" + (f" (among them {said})" if said else "")
    doubtful = [own for own in classes if own.casefold() in DOUBTFUL]
    if doubtful:
        shown = ", ".join(f"'{own}'" for own in doubtful)
        yield f"{name}: {shown} is taken for a class. Leave the cell empty where there is no label."
    several_in_one = [own for own in classes if not several and _could_be_several(own, classes)]
    if several_in_one:
        yield f"{name}: '{several_in_one[0]}' is taken for one class. A column with several must be called 'labels'."


def _could_be_several(own: str, classes: Sequence[str]) -> bool:
    """Return True if a class name looks like several names: it has `;` or `|`, or commas between known classes.

    Args:
        own: The class name.
        classes: All class names of the column.
    """
    parts = [part.strip() for part in own.split(",")]
    return ";" in own or "|" in own or (len(parts) > 1 and all(part in classes for part in parts))
