"""Draw the places, dates and classes of a synthetic archive from a table of real ones."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.archives.nomenclature import CLASSES_19, LABELS_43
from stssl.archives.tables import read_table
from stssl.archives.world import CELL, RATES, World
from stssl.base.errors import DataError

TABLE_COLUMNS = ("epsg", "ulx", "uly", "date", "labels", "country")


def from_table(path: Path, patches: int, seed: int) -> World:
    """Draw places, dates and classes from a table of real patches (`epsg`, `ulx`, `uly`, `date`, `labels`, `country`).

    Squares of neighboring places are drawn whole, with all their dates, so that correlations over kilometers remain.

    Args:
        path: CSV or Parquet file with those columns.
        patches: Number of patches to draw.
        seed: Seed of the draw.

    Raises:
        DataError: The table lacks a column or has too few rows, cells that are no numbers or dates, or unknown classes.
    """
    table = read_table(path)
    missing = [name for name in TABLE_COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}. It has: {', '.join(table.column_names)}")
    if table.num_rows < patches:
        raise DataError(f"{path} has {table.num_rows} rows, and {patches} patches are asked for")
    try:
        grid = np.stack([np.asarray(table[name], np.float64) for name in ("epsg", "ulx", "uly")], 1)
        when = np.asarray(table["date"].to_numpy(), "datetime64[s]")
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: epsg, ulx and uly must be numbers and date ISO 8601 ({error})") from None
    if not np.isfinite(grid).all() or np.isnat(when).any():
        raise DataError(f"{path}: some rows have no epsg, ulx, uly or date")
    side = max(2, int((patches / 120) ** 0.5)) * CELL
    squares = np.unique(np.floor(grid / [1, side, side]), axis=0, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng((seed, 0))
    rank = rng.permutation(squares.max() + 1)[squares]
    rows = np.sort(np.argsort(rank, kind="stable")[:patches])
    chosen = table.take(rows)
    place = np.unique(grid[rows], axis=0, return_inverse=True)[1].reshape(-1)
    flags = {
        name: _flags(chosen[column].to_pylist()) if column in table.column_names else np.zeros(patches, bool)
        for name, column in (("snow", "contains_seasonal_snow"), ("cloud", "contains_cloud_or_shadow"))
    }
    return World(
        place=place,
        country=np.array([name or "" for name in chosen["country"].to_pylist()], np.str_),
        epsg=grid[rows, 0].astype(np.int64),
        ulx=grid[rows, 1],
        uly=grid[rows, 2],
        when=when[rows],
        labels=_fine_labels([_names(cell) for cell in chosen["labels"].to_pylist()], place, rng, path),
        **flags,
    )


def _flags(cells: list[Any]) -> NDArray[np.bool_]:
    """Read booleans, also as a CSV spells them."""
    return np.array([str(cell).lower() in ("true", "1") for cell in cells])


def _names(cell: Any) -> list[str]:
    """Split a cell of class names."""
    return [name.strip() for name in cell.split(";")] if isinstance(cell, str) else list(cell or ())


def _fine_labels(
    labels: list[list[str]], place: NDArray[np.int64], rng: np.random.Generator, path: Path
) -> NDArray[np.bool_]:
    """Return level-3 classes [n, 43], as the table lists them.

    For a class of the 19 one of its members is chosen, the same one on all dates of a place.
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
