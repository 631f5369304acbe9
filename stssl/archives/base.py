"""Define archives: a fixed list of patches, each read on its own, whatever the source format."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

import numpy as np

from stssl.archives.nomenclature import SEASONS
from stssl.store.schema import Column, Patch, PixelArray

OnProgress = Callable[[int, int], None]
"""Report progress: called with the number of finished and of all items."""


class Archive(Protocol):
    """A source format; picklable, so that workers can read patches of it."""

    @property
    def arrays(self) -> tuple[PixelArray, ...]:
        """Pixel arrays in order."""
        ...

    @property
    def maps(self) -> tuple[PixelArray, ...]:
        """Arrays of the same patches that are no image bands."""
        ...

    @property
    def attributes(self) -> Mapping[str, Any]:
        """More for the store's own attributes, such as published statistics."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """Metadata arrays."""
        ...

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Names of the columns that are labels."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, whose columns are `split_<name>`."""
        ...

    @property
    def statistics_split(self) -> str:
        """The split on whose training part band statistics are computed."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """List the names of all patches in the order of the store's rows."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Return what identifies this archive and how it is read, without paths, hosts or times."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """List remarks for the user, one a line: what was read of the archive's tables, and what looks wrong."""
        ...

    def read(self, row: int) -> Patch:
        """The patch of a row; what is wrong with it goes into `problems`, never out as an exception."""
        ...


def time_values(when: datetime | None) -> dict[str, Any]:
    """The columns that follow from an acquisition time (UTC)."""
    if when is None:
        return {}
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return {"time": int(when.timestamp()), "day_of_year": when.timetuple().tm_yday}


def season_of(when: datetime | None) -> str:
    """Meteorological season in the northern hemisphere; empty without a date."""
    return SEASONS[when.month] if when else ""


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def degrees(cell: Any) -> float:
    """The number in a cell of a table; NaN where there is none, so that `1_0` or `48,1` is no place."""
    if isinstance(cell, str):
        return float(cell) if _NUMBER.fullmatch(cell := cell.strip()) else float("nan")
    return float(cell) if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool) else float("nan")


def good_place(lat: float, lon: float) -> bool:
    """True if latitude and longitude are finite and within their ranges in degrees."""
    return bool(np.isfinite(lat) and np.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180)
