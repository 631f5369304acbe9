"""Choose the places, dates and classes of a synthetic archive from a table of real ones."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError

from stssl.archives.base import good_place
from stssl.archives.label_cells import read_labels
from stssl.archives.nomenclature import CLASSES_19, LABELS_43
from stssl.archives.places import crs_of, from_degrees, to_degrees
from stssl.archives.scenery import SyntheticStream
from stssl.archives.tables import read_table
from stssl.archives.world import CELL, RATES, World
from stssl.base.errors import DataError, shown

TABLE_COLUMNS = ("epsg", "ulx", "uly", "date", "labels", "country")


def from_table(path: Path, patches: int, seed: int) -> World:
    """Choose places, dates and classes for a synthetic archive at random from a table of real patches, and return them.

    Whole squares of neighboring places are chosen, with all dates, so that nearby patches have similar classes.

    Args:
        path: CSV or Parquet file with the columns `epsg`, `ulx`, `uly`, `date`, `labels` and `country`.
        patches: Number of rows (patches) to choose.
        seed: Seed of the random choice.

    Raises:
        DataError: The table lacks a column, has too few rows, has wrong numbers or dates, or has unknown classes.
    """
    table = read_table(path)
    missing = [name for name in TABLE_COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}. It has: {', '.join(table.column_names)}")
    if table.num_rows < patches:
        raise DataError(f"{path} has {table.num_rows} rows, and {patches} patches are asked for")
    try:
        grid = np.stack([np.asarray(table[name], np.float64) for name in ("epsg", "ulx", "uly")], 1)
        cells = table["date"].to_numpy()
        if cells.dtype.kind in "biuf":
            raise ValueError("dates are no numbers")
        # Hide NumPy's warning that it converts times with a time zone to UTC, since this conversion is wanted.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            when = np.asarray(cells, "datetime64[s]")
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: epsg, ulx and uly must be numbers and date ISO 8601 ({error})") from None
    if not np.isfinite(grid).all() or np.isnat(when).any():
        raise DataError(f"{path}: some rows have no epsg, ulx, uly or date")
    _check_places(grid, path)
    far = (when < np.datetime64("1970-01-01")) | (when >= np.datetime64("2200-01-01"))
    if far.any():
        row = int(np.flatnonzero(far)[0])
        raise DataError(f"{path}: row {row + 1} below the header, column 'date': {when[row]} is no date of an image")
    labels = read_labels("labels", table["labels"].to_pylist(), True, path)
    side = max(2, int((patches / 120) ** 0.5)) * CELL
    squares = np.unique(np.floor(grid / [1, side, side]), axis=0, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng((seed, SyntheticStream.WORLD))
    rank = rng.permutation(squares.max() + 1)[squares]
    rows = np.sort(np.argsort(rank, kind="stable")[:patches])
    chosen = table.take(rows)
    place = np.unique(grid[rows], axis=0, return_inverse=True)[1].reshape(-1)
    flags = {
        name: _flags(chosen[column].to_pylist(), column, path)
        if column in table.column_names
        else np.zeros(patches, bool)
        for name, column in (("snow", "contains_seasonal_snow"), ("cloud", "contains_cloud_or_shadow"))
    }
    return World(
        place=place,
        country=np.array([_word(name, path) for name in chosen["country"].to_pylist()], np.str_),
        epsg=grid[rows, 0].astype(np.int64),
        ulx=grid[rows, 1],
        uly=grid[rows, 2],
        when=when[rows],
        labels=_fine_labels([[labels.classes[i] for i in labels.rows[row]] for row in rows], place, rng, path),
        **flags,
    )


def _flags(cells: list[object], column: str, path: Path) -> NDArray[np.bool_]:
    """Convert the cells of a column to an array of booleans. A cell may be a text such as `true` or `0`.

    An empty cell becomes False.

    Args:
        cells: Cells of all rows.
        column: Name of the column, for messages.
        path: Path of the table, for messages.

    Raises:
        DataError: A cell is neither true nor false.
    """
    words = {"true": True, "1": True, "false": False, "0": False, "": False}
    found = ["" if cell is None else str(cell).strip().lower() for cell in cells]
    strangers = [word for word in found if word not in words]
    if strangers:
        raise DataError(f"{path}: column '{column}': {shown(strangers[0])} is neither true nor false")
    return np.array([words[word] for word in found], np.bool_)


def _word(cell: object, path: Path) -> str:
    """Return a cell of the column `country`, which must hold a text. Return an empty text for None.

    Args:
        cell: The cell.
        path: Path of the table, for messages.

    Raises:
        DataError: The cell is no text.
    """
    if isinstance(cell, str | None):
        return cell or ""
    raise DataError(f"{path}: column 'country': {shown(cell)} is no name")


def _check_places(grid: NDArray[np.float64], path: Path) -> None:
    """Raise an error if the corner of a patch lies outside the area of its projection, where degrees are not defined.

    Args:
        grid: [n, 3] EPSG code of the projection, x and y of the upper left corner of each patch.
        path: Path of the table, for messages.

    Raises:
        DataError: A corner lies outside that area, or an EPSG code is wrong. The message names the row.
    """
    for epsg in np.unique(grid[:, 0]):
        rows = np.flatnonzero(grid[:, 0] == epsg)
        where = f"{path}: row {rows[0] + 1} below the header, column 'epsg': {epsg:g}"
        if not (epsg.is_integer() and 1024 <= epsg < 2**31):
            raise DataError(f"{where} is no EPSG code")
        try:
            if not crs_of(int(epsg)).is_projected:
                raise DataError(f"{where} is no projection in meters")
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        wrong = rows[~_lead_back(int(epsg), grid[rows, 1], grid[rows, 2])]
        if len(wrong):
            _, x, y = grid[wrong[0]]
            raise DataError(
                f"{path}: row {wrong[0] + 1} below the header: ulx {x:g}, uly {y:g} is no place of EPSG:{int(epsg)}"
            )


def _lead_back(epsg: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Check which of n projected points lie in the area of their projection: convert them to degrees and back.

    Return booleans [n]: True for a point that comes back to within a meter of itself.

    Args:
        epsg: EPSG code of the projection.
        x: Eastings in meters.
        y: Northings in meters.
    """
    try:
        lat, lon = to_degrees(epsg, x, y)
        back = from_degrees(epsg, lat, lon)
    except (ValueError, CPLE_BaseError):
        if len(x) == 1:
            return np.zeros(1, np.bool_)
        half = len(x) // 2
        return np.concatenate([_lead_back(epsg, x[:half], y[:half]), _lead_back(epsg, x[half:], y[half:])])
    good = [good_place(*place) for place in zip(lat.tolist(), lon.tolist(), strict=True)]
    return np.array(good) & (abs(back[0] - x) < 1) & (abs(back[1] - y) < 1)


def _fine_labels(
    labels: list[list[str]], place: NDArray[np.int64], rng: np.random.Generator, path: Path
) -> NDArray[np.bool_]:
    """Convert the class names of n rows to booleans [n, 43]: True if a row has the CORINE level-3 class.

    A row may name one of the 19 coarse classes. This name becomes one of its level-3 classes, chosen at random for each
    place: all dates of a place get the same class.

    Args:
        labels: Class names of each row.
        place: [n] number of the place of each row, from 0.
        rng: Source of random numbers.
        path: Path of the table, for messages.

    Raises:
        DataError: A row has no labels, or an unknown class.
    """
    rates = np.array(list(RATES.values())) * rng.exponential(size=(place.max() + 1, len(RATES)))
    found = np.zeros((len(labels), len(LABELS_43)), bool)
    number = {name: i for i, name in enumerate(LABELS_43)}
    members = {name: [number[member] for member in group] for name, group in CLASSES_19.items()}
    members |= {name: [i] for name, i in number.items() if name not in members}
    for row, names in enumerate(labels):
        if not names:
            raise DataError(f"{path} has a row without labels")
        for name in names:
            if name not in members:
                raise DataError(f"{path} names the class '{name}', which is not one of BigEarthNet's")
            found[row, max(members[name], key=lambda i: rates[place[row], i])] = True
    return found
