"""Read tables about patches, and find the wanted columns. A column may have any of its usual names."""

import csv
import difflib
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

import pyarrow
import pyarrow.parquet

from stssl.base.errors import DataError, first_line
from stssl.base.textfiles import MOST_BYTES, decode_text, read_unpacked

SEPARATORS = ",;\t|"
"""Signs that may separate the cells of a text table. The first line shows which one is used."""
FORM = "a table is a CSV or Parquet file such as: path,label,lat,lon,time,split (first line), then a line an image"
KINDS = (
    (b"PK\x03\x04", "a zip archive or spreadsheet"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "a SQLite file"),
    (b"%PDF", "a PDF"),
)
PARQUET = b"PAR1"
ALIKE = 0.8
"""Similarity of two names, from 0 to 1, from which on one counts as a mistyped form of the other."""


def read_table(path: Path) -> pyarrow.Table:
    """Read a Parquet table, or a text table with commas, semicolons, tabs or bars between its cells. Return the table.

    Spaces and quotes around the names of columns are removed. All cells of a text table are strings; empty ones are
    null.

    Raises:
        DataError: The file cannot be read, is no table, or has two columns of one name.
    """
    if not path.exists():
        raise DataError(f"there is no table {path}")
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a table: {FORM}")
    try:
        with path.open("rb") as file:
            head = file.read(16)
        table = _read_parquet(path) if head.startswith(PARQUET) else _read_lines(path, head)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"cannot read the table {path}: {first_line(error)}") from None
    names = [_stripped(name) for name in table.column_names]
    for place, name in enumerate(names):
        if name and name in names[:place]:
            both = f"columns {names.index(name) + 1} and {place + 1}"
            raise DataError(f"{path}: {both} are both called '{name}'. Rename or remove one of them.")
    return table.rename_columns(names)


IMAGES = frozenset((".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2"))
"""Endings of the files that a folder is searched for."""


def folder_of(place: Path) -> Path:
    """Return the folder that image paths are relative to.

    For a folder, this is `place` itself; for a table file, its folder; for a pattern, the folder before the first `*`.

    Args:
        place: Folder, table file, or pattern such as `tiles/*.tif`.
    """
    if place.is_dir():
        return place
    return next(above for above in place.parents if not has_magic(str(above)))


def folder_table(place: Path) -> pyarrow.Table:
    """Return a table with one column, `path`: the images in a folder and all its subfolders, or those of a pattern.

    Hidden files and folders are left out. Paths are relative to the folder, or to the folder before the pattern.

    Args:
        place: Folder, or pattern such as `tiles/*.tif`. `**` stands for any number of folders.

    Raises:
        DataError: The folder or the pattern has no image.
    """
    folder = folder_of(place)
    if place.is_dir():
        found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES]
    else:
        found = list(folder.glob(str(place.relative_to(folder))))
    inside = (path.relative_to(folder) for path in found if path.is_file())
    names = sorted(str(path) for path in inside if not any(part.startswith(".") for part in path.parts))
    if not names:
        words = (
            f"{place} has no images ({', '.join(sorted(IMAGES))})" if place.is_dir() else f"there is no file {place}"
        )
        raise DataError(f"{words}. Give a table, or a folder or a pattern of images.")
    return pyarrow.table({"path": names})


def _read_parquet(path: Path) -> pyarrow.Table:
    """Read a Parquet table, and return it. Its size is checked first, since it could fill the memory.

    Raises:
        ValueError: The table is larger than this package reads.
    """
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
        if size > 8 * MOST_BYTES:
            raise ValueError(f"it holds {size:,} bytes")
        return file.read()


def _read_lines(path: Path, head: bytes) -> pyarrow.Table:
    """Read a table from a text file, such as CSV, and return it. All its columns have texts.

    Args:
        path: Path of the file.
        head: First bytes of the file, which tell other kinds of files.

    Raises:
        DataError: The file is no text table. The message says what it is, if the first bytes show it.
    """
    kind = next((words for start, words in KINDS if head.startswith(start)), None)
    if path.suffix in (".parquet", ".pq"):
        raise DataError(f"cannot read the table {path}: it is {kind or 'not a Parquet file (it does not start so)'}")
    text = "" if kind else decode_text(read_unpacked(path), path)
    if text.lstrip()[:1] in ("{", "["):
        kind = "JSON"
    if kind:
        raise DataError(f"{path} is {kind}, not a table: {FORM}")
    rows, lines = _cells(text, path)
    if not rows:
        return pyarrow.table({})
    header = rows[0]
    for row, line in zip(rows[1:], lines[1:], strict=True):
        # A missing or extra separator moves all later cells of the line into wrong columns.
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} cells, and the first line names {len(header)} columns")
    columns = [
        pyarrow.array([row[place] or None for row in rows[1:]], pyarrow.string()) for place in range(len(header))
    ]
    return pyarrow.Table.from_arrays(columns, header)


def _cells(text: str, path: Path) -> tuple[list[list[str]], list[int]]:
    """Split the lines of a text table into cells. Return the list of cells of each line, and the line numbers, from 1.

    Empty lines, and a first line such as `sep=;`, are left out.

    Args:
        text: The whole text of the table.
        path: Path of the table, for messages.

    Raises:
        DataError: A quote is open at the end of a cell.
    """
    skipped = 0
    separator = ""
    first = text.partition("\n")[0].strip().strip('"')
    # Excel writes a first line such as `sep=;` to name the separator. Skip it, since it is no row of the table.
    if first.lower().startswith("sep=") and len(first) == 5:
        skipped, separator = 1, first[4]
        text = text.partition("\n")[2]
    rows: list[list[str]] = []
    lines: list[int] = []
    separator = separator or _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num + skipped)
    except csv.Error as error:
        line = (lines[-1] if lines else skipped) + 1
        raise DataError(
            f"cannot read the table {path}: {error} (lines {line} to {reader.line_num + skipped}). "
            "A quote that opens a cell must also close it."
        ) from None
    return rows, lines


def _separator(text: str) -> str:
    """Return the separator of a text table: the sign that divides the first line with text into the most cells.

    Candidates are comma, semicolon, tab and bar.
    """
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    try:
        counts = {sign: len(next(csv.reader([first], delimiter=sign))) for sign in SEPARATORS}
    except csv.Error:
        return ","
    return max(counts, key=lambda sign: (counts[sign], -SEPARATORS.index(sign)))


def _stripped(name: str) -> str:
    """Return a column's name without spaces and quotes around it, and without invisible signs (control characters)."""
    name = "".join(sign for sign in str(name) if unicodedata.category(sign) not in ("Cf", "Cc"))
    return name.strip().strip("\"'").strip()


def _key(name: str) -> str:
    """Return the name of a column in small letters, with one `_` for each group of spaces and hyphens.

    Names that differ only in these become equal.
    """
    return "_".join(unicodedata.normalize("NFKC", name).casefold().replace("-", " ").replace("_", " ").split())


@dataclass(frozen=True)
class TableColumns:
    """Hold which columns of a table this package uses, and which it does not.

    Attributes:
        used: Name of each used column in the table, by its name in this package.
        unused: Names of all other columns in the table.
        doubled: Names of columns in the table that have the same meaning as a used one, by the name of the latter in
            this package.
    """

    used: dict[str, str]
    unused: tuple[str, ...]
    doubled: dict[str, tuple[str, ...]]

    def words(self) -> tuple[str, ...]:
        """Return lines of text for the user about a table's columns: used ones, unused ones, those of equal meaning."""
        used = ", ".join(name if name == own else f"{name} from '{own}'" for name, own in self.used.items())
        lines = [f"columns used: {used}"]
        if self.unused:
            lines.append(f"columns not used: {', '.join(name or '(without a name)' for name in self.unused)}")
        for name, others in self.doubled.items():
            rest = " and ".join(f"'{other}'" for other in others)
            lines.append(f"{name} is read from '{self.used[name]}', not from {rest}")
        return tuple(lines)


def nearest_column(what: str, names: Sequence[str], wanted: Mapping[str, tuple[str, ...]]) -> str:
    """Return a hint if the name of an unused column looks like a mistyped name of a wanted one; else an empty text.

    Args:
        what: Name of the wanted column in this package, a key of `wanted`.
        names: Names of the unused columns.
        wanted: Name of each wanted column in this package, and its possible names in a table, in small letters.

    Returns:
        A text such as `'clas': did you mean class?`.
    """
    for name in names:
        if near := difflib.get_close_matches(_key(name), wanted[what], n=1, cutoff=ALIKE):
            return f"'{name}': did you mean {near[0]}?"
    return ""


def choose_columns(names: Sequence[str], wanted: Mapping[str, tuple[str, ...]], path: Path) -> TableColumns:
    """Find the wanted columns of a table by their names. Return the names of the used and the unused columns.

    If a table has several columns with possible names of one wanted column, the name that comes first in `wanted` wins.

    Args:
        names: Names of the table's columns.
        wanted: Name of each wanted column in this package, and its possible names in a table, in small letters.
        path: Path of the table, for messages.

    Raises:
        DataError: The names of two columns of one meaning differ only in case, spaces or hyphens.
    """
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(_key(name), []).append(name)
    used: dict[str, str] = {}
    doubled: dict[str, tuple[str, ...]] = {}
    for what, spellings in wanted.items():
        found = [known[spelling] for spelling in spellings if spelling in known]
        for same in found:
            if len(same) > 1:
                both = " and ".join(f"'{name}'" for name in same)
                raise DataError(f"{path}: the columns {both} are one to stssl. Rename or remove one of them.")
        if found:
            used[what] = found[0][0]
        if len(found) > 1:
            doubled[what] = tuple(same[0] for same in found[1:])
    taken = set(used.values())
    return TableColumns(used, tuple(name for name in names if name not in taken), doubled)


def columns_of(table: pyarrow.Table, wanted: Mapping[str, tuple[str, ...]], path: Path) -> dict[str, list[object]]:
    """Return the wanted columns of a table: a dict from the column's name in this package to the list of its cells.

    Columns that the table lacks are left out.

    Args:
        table: The table.
        wanted: Name of each wanted column in this package, and its possible names in a table, in small letters.
        path: Path of the table, for messages.

    Raises:
        DataError: Two columns have nearly the same name, or a column's cells cannot be read.
    """
    chosen = choose_columns(table.column_names, wanted, path)
    return {what: cells_of(table, name, path) for what, name in chosen.used.items()}


def cells_of(table: pyarrow.Table, name: str, path: Path) -> list[object]:
    """Return the cells of one column of a table as a list of Python values; None for an empty cell.

    Args:
        table: The table.
        name: Name of the column.
        path: Path of the table, for messages.

    Raises:
        DataError: The cells cannot be read.
    """
    column = table.column(name)
    try:
        if pyarrow.types.is_timestamp(column.type):
            # Drop nanoseconds: Python's times have none, and pyarrow would raise an error for a time with nanoseconds.
            column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
        cells: list[object] = column.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError, LookupError) as error:
        raise DataError(f"{path}: the column '{name}' cannot be read: {first_line(error)}") from None
    return cells


ID_NAMES = ("patch_id", "s2v1_name", "patch", "name", "filepath", "filename", "path", "image")
ABOUT = {
    "country": ("country",),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "long", "longitude"),
    "label": ("label", "class", "category", "label_name", "class_name", "category_name", "classname")
    + ("land_cover", "landcover", "lulc", "land_use", "landuse"),
    "labels": ("labels", "classes", "categories"),
    "time": ("time", "date", "datetime", "timestamp", "acquisition_date", "acquisition_time")
    + ("acquired", "acquired_at", "acquired_on", "sensing_time", "sensing_date"),
    "location_id": ("location_id", "location", "place_id"),
    "split": ("split", "part", "subset"),
    "seasonal_snow": ("contains_seasonal_snow", "seasonal_snow"),
    "cloud_or_shadow": ("contains_cloud_or_shadow", "cloud_or_shadow"),
}
"""Columns of tables about patches, and the possible names of each."""
