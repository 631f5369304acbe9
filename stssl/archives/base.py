"""What an archive is to the converter: a fixed list of patches, each read on its own, whatever the format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stssl.schema import Column, PixelArray

BAND_RESOLUTION = {
    "b10": ("B04", "B03", "B02", "B08"),
    "b20": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "b60": ("B01", "B09"),
}
"""Sentinel-2 bands of each stored array: RGB first, so that reading RGB alone is one contiguous read."""


class BadPatchError(Exception):
    """A patch cannot be stored as it is: an error code of the schema, and words for the report."""

    def __init__(self, code: str, words: str) -> None:
        """`code` is a name in `schema.ERRORS`."""
        super().__init__(words)
        self.code = code


@dataclass
class Patch:
    """One patch as it goes into the store.

    Attributes:
        arrays: Pixels by array name; empty where there are none.
        values: Metadata by column name; what is left out takes the column's fill value.
        valid_bands: Bit i is set where the i-th band has pixels.
        problems: (error code name, words) of everything that is wrong; the first decides `error_code`.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    valid_bands: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


class Archive(Protocol):
    """A source format; picklable, so that workers can read patches of it."""

    @property
    def arrays(self) -> tuple[PixelArray, ...]:
        """Pixel arrays in order."""
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
        """Of all patches, in the order of the store's rows."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """What identifies this archive, without paths, hosts or times."""
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


def good_place(lat: float, lon: float) -> bool:
    """Whether this can be a place in degrees."""
    return bool(np.isfinite(lat) and np.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180)
