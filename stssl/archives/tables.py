"""Lists and tables that come beside an archive: names of patches, and columns about them."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from stssl.errors import DataError
from stssl.textfiles import read_names, read_text

LIST_ENDINGS = (".txt", ".csv", ".csv.bz2", ".csv.gz", ".txt.bz2", ".txt.gz")
PART_NAMES = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def find_list(folders: Iterable[Path], *stems: str) -> Path | None:
    """The first file of these folders with one of these stems and an ending that lists have."""
    for folder in folders:
        for stem in stems:
            for ending in LIST_ENDINGS:
                if (folder / (stem + ending)).is_file():
                    return folder / (stem + ending)
    return None


def find_split(folders: Iterable[Path]) -> dict[str, frozenset[str]] | None:
    """Patch names of each part, from lists called train, val and test; None where there are none.

    Raises:
        DataError: Some of the lists are there and others not.
    """
    folders = tuple(folders)
    found = {part: find_list(folders, *stems) for part, stems in PART_NAMES.items()}
    if not any(found.values()):
        return None
    missing = [part for part, path in found.items() if path is None]
    if missing:
        there = ", ".join(path.name for path in found.values() if path)
        raise DataError(f"{folders[0]} has {there}, but no list for {' and '.join(missing)} (such as test.csv)")
    return {part: read_names(path) for part, path in found.items() if path}


def read_table(path: Path) -> pyarrow.Table:
    """A CSV (of strings) or Parquet table.

    Raises:
        DataError: It cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
    except (OSError, pyarrow.ArrowException, csv.Error) as error:
        raise DataError(f"cannot read the table {path}: {error}") from None
    names = list(rows[0]) if rows else []
    return pyarrow.table({name: [row[name] or None for row in rows] for name in names if name})


def columns_of(table: pyarrow.Table, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, list[Any]]:
    """Those of the wanted columns that a table has, under any of their names (case aside), as lists."""
    known = {name.lower(): name for name in table.column_names}
    found: dict[str, list[Any]] = {}
    for name, spellings in wanted.items():
        column = next((known[spelling] for spelling in spellings if spelling in known), None)
        if column is not None:
            found[name] = table.column(column).to_pylist()
    return found


NAMES = ("patch_id", "s2v1_name", "patch", "name", "filepath", "filename", "path", "image")
ABOUT = {
    "country": ("country",),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "longitude"),
    "label": ("label", "class"),
    "labels": ("labels",),
    "time": ("time", "date", "datetime", "timestamp", "acquisition_date"),
    "location_id": ("location_id", "location", "place_id"),
    "split": ("split", "part"),
    "seasonal_snow": ("contains_seasonal_snow", "seasonal_snow"),
    "cloud_or_shadow": ("contains_cloud_or_shadow", "cloud_or_shadow"),
}
"""Spellings of the columns that tables about patches have."""
