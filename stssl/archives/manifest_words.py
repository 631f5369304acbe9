"""Define the columns of a table of images, and compose messages and remarks about such a table and its images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stssl.archives.band_numbers import stated_numbers
from stssl.archives.cells import image_path
from stssl.archives.images import sidecars
from stssl.archives.label_cells import is_missing
from stssl.archives.tables import ABOUT, FORM, TableColumns, nearest_column
from stssl.store.schema import BadPatchError

PATHS = ("path", "filepath", "file_path", "filename", "file_name", "image", "image_path", "file")
READ = ("country", "lat", "lon", "label", "labels", "time", "location_id", "split")
WANTED = {"path": PATHS} | {name: ABOUT[name] for name in READ}
"""Columns that a manifest may have, and the possible names of each. The first name that a table has is used."""


def missing_words(names: list[str], rows: bool) -> str:
    """Return the end of an error message about a table of images, which says what the table needs.

    Args:
        names: Names of the table's columns.
        rows: True if the table needs only rows; False if it needs a column with paths, too.
    """
    if rows:
        return "at least one row below the names of the columns"
    has = f"It has: {', '.join(names)[:300]}" if names else "It is empty"
    return f"a column 'path' with the images' paths, and at least one row. {has}. {FORM[0].upper()}{FORM[1:]}"


def lacking_columns(columns: TableColumns) -> Iterator[str]:
    """Yield remarks, one line each, on what a table of images seems to lack.

    One remark says that no column has labels. Others name unused columns whose names look like mistyped known names.

    Args:
        columns: Used and unused columns of the table.
    """
    if columns.unused and not {"label", "labels"} & columns.used.keys():
        near = nearest_column("label", columns.unused, WANTED) or nearest_column("labels", columns.unused, WANTED)
        yield f"no labels: no column is called label (or class). Not used: {near or ', '.join(columns.unused)}"
    for name in ("lat", "lon", "time", "location_id", "country", "split"):
        if name not in columns.used and (near := nearest_column(name, columns.unused, WANTED)):
            yield f"no {name}: not used is the column {near}"


def column_remarks(table: Mapping[str, list[object]]) -> Iterator[str]:
    """Yield remarks for the user, one line each, about columns of a table of images that are empty or useless.

    Args:
        table: Cells of each column, by the name of the column in this package.
    """
    for name, other in (("lat", "lon"), ("lon", "lat")):
        if name in table and other not in table:
            yield f"{name} is of no use without a column {other}: no patch has its place from the table"
    for name in ("lat", "lon", "time", "location_id", "split"):
        if name in table and all(map(is_missing, table[name])):
            yield f"the column of {name} is empty"


def elsewhere(folder: Path, names: Sequence[str]) -> str:
    """Search for the first image of a table in the folders directly below and above `folder`.

    Return advice for an error message, which names the folder with the image; an empty text if no folder has it.

    Args:
        folder: Folder that the table's paths start at.
        names: Paths of the images in the table.
    """
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        name = next(name for name in names if not is_missing(name))
        found = next((path for path in (*below, folder.parent) if image_path(path, name).is_file()), None)
    except (OSError, BadPatchError, StopIteration, ValueError):
        return ""
    if found is None or Path(name).is_absolute():
        return ""
    if found == folder.parent:
        return f". {name} is found in {found}: give --images {found}"
    return f". {name} is found in {found.name}/: add this folder to the paths, or give --images {found}"


def files_beside(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield one remark if images have files beside them that GDAL would read, since this package ignores such files.

    Args:
        folder: Folder that the table's paths start at.
        names: Paths of the images in the table.
    """
    listed: dict[Path, frozenset[str]] = {}
    count, example = 0, ""
    for name in dict.fromkeys(names):
        try:
            path = image_path(folder, name)
            if path.parent not in listed:
                listed[path.parent] = frozenset(file.name.lower() for file in path.parent.iterdir())
        except (BadPatchError, OSError, ValueError):
            continue
        found = sidecars(path, listed[path.parent])
        count, example = count + bool(found), example or next(iter(found), "")
    if count:
        yield (
            f"{count:,} images have files beside them that are never read (such as {example}): a place, mask or "
            "palette that stands only there counts as absent"
        )


def stated_scales(scaling: tuple[tuple[float, float], ...]) -> Iterator[str]:
    """Yield remarks if the first image file states an offset, which is added, or a scale, which is not applied.

    Args:
        scaling: (scale, offset) of each band of the first image; (1, 0) if the file states none.
    """
    shifts = sorted({stated_numbers(*one).shift for one in scaling} - {0.0})
    if shifts:
        words = ", ".join(f"{shift:+g}" for shift in shifts)
        yield f"the first image states an offset ({words}), which conversions apply: 0 means zero reflectance"
    scales = sorted({scale for scale, _ in scaling} - {1.0})
    if scales:
        yield f"the first image states a scale ({', '.join(f'{scale:g}' for scale in scales)}), which is not applied"
