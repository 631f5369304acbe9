"""Define what an archive format must offer, and small helpers that several formats share.

An archive is a data set as its makers publish it. Its format lists the patches once, in a fixed order, and then reads
each patch on its own, so that shards can be converted in any order and by any process.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stssl.archives.nomenclature import SEASONS
from stssl.base.json_types import JsonMapping
from stssl.store.schema import Column, Patch, PixelArray, Values

OnProgress = Callable[[int, int], None]
"""Called with the number of finished items and of all items."""


class Archive(Protocol):
    """List an archive's patches and read them; it can be pickled, so that other processes can read patches too."""

    @property
    def arrays(self) -> tuple[PixelArray, ...]:
        """Return the pixel arrays of the store, in order."""
        ...

    @property
    def maps(self) -> tuple[PixelArray, ...]:
        """Return arrays over the same patches that are no image bands, such as maps of classes."""
        ...

    @property
    def attributes(self) -> JsonMapping:
        """Return more attributes for the store's group, such as published statistics."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the metadata arrays of the store."""
        ...

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Return the names of the columns that hold labels."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits; the column of a split is called `split_<name>`."""
        ...

    @property
    def statistics_split(self) -> str:
        """Return the name of the split whose training part the band statistics are computed on."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Return the names of all patches, in the order of the store's rows."""
        ...

    @property
    def about(self) -> JsonMapping:
        """Return what tells this archive, and the way it is read, from others: no paths, hosts or times.

        A conversion is resumed only if this is equal, so it must not depend on the machine.
        """
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Return remarks for the user, one line each, such as columns that are not read."""
        ...

    def read(self, row: int) -> Patch:
        """Read one patch.

        Args:
            row: Its row in the store.

        Returns:
            The patch. Faults of the patch are listed in its `problems`; no exception is raised for them.

        Raises:
            OSError: The archive cannot be reached.
        """
        ...


class ArchiveFormat(Protocol):
    """Describe the class of a format's archives; the parameters of its constructor are the format's options.

    Each parameter after `archive` is annotated with an `Option`, from which the command line takes its help text.
    """

    def __call__(self, archive: Path, *args: Any, **options: Any) -> Archive:
        """Open an archive.

        Args:
            archive: Its folder or file, as an absolute path.
            *args: None; mypy needs them to accept any constructor here.
            **options: The format's options by name.

        Raises:
            ConfigError: An option has an impossible value.
            DataError: There is no archive of this format.
        """
        ...

    def write_example(self, folder: Path) -> "Example":
        """Write a tiny archive of this format for tests, and say what a store of it must hold.

        Args:
            folder: Empty folder to write into.
        """
        ...


@dataclass(frozen=True)
class Option:
    """Declare an option of an archive format, in the annotation of its constructor's parameter.

    The parameter's type may be `str`, `int`, `float`, `bool`, `Path`, or `Mapping[str, Path]` for an option that is
    repeated as NAME=FOLDER; each may be combined with None.

    Attributes:
        help: One line for the command line's help.
        flag: Name of the option on the command line; by default the parameter's, with hyphens.
    """

    help: str
    flag: str = ""


@dataclass(frozen=True)
class ExamplePatch:
    """State what a store must hold of one patch of an example archive.

    Attributes:
        name: Name of the patch.
        file: A file with pixels of this patch alone; a test damages it to see that the fault is found.
        pixels: For each band the value that all pixels have.
        classes: Names of its classes; empty for an unlabeled patch.
        place: Latitude and longitude of its center in degrees; None if it has none.
        time: Acquisition time; None if it has none.
        part: Its part of the first split; empty if it is in none.
        error: Name of its error code.
    """

    name: str
    file: Path
    pixels: Mapping[str, int]
    classes: tuple[str, ...] = ()
    place: tuple[float, float] | None = None
    time: datetime | None = None
    part: str = ""
    error: str = "ok"


@dataclass(frozen=True)
class Example:
    """Describe a tiny archive that a format wrote for tests.

    Attributes:
        archive: Folder or file to convert.
        patches: Its patches in the order of rows.
        label_set: Name of the label column that their classes are in.
        options: Options to convert it with.
        tolerance: Largest difference of a pixel's value, for formats that compress with loss.
    """

    archive: Path
    patches: tuple[ExamplePatch, ...]
    label_set: str
    options: Mapping[str, object] = field(default_factory=dict)
    tolerance: int = 0


def time_values(when: datetime | None) -> Values:
    """Return the columns `time` (seconds since 1970) and `day_of_year` of a UTC time; none without a time."""
    if when is None:
        return {}
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return {"time": int(when.timestamp()), "day_of_year": when.timetuple().tm_yday}


def season_of(when: datetime | None) -> str:
    """Return the meteorological season in the northern hemisphere; empty without a date."""
    return SEASONS[when.month] if when else ""


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def degrees(cell: object) -> float:
    """Read the number in a cell of a table; NaN if there is none.

    Python would read `1_0` as a number, and `48,1` is one in some countries: both give NaN rather than a wrong place.
    """
    if isinstance(cell, str):
        return float(cell) if _NUMBER.fullmatch(cell := cell.strip()) else float("nan")
    return float(cell) if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool) else float("nan")


def good_place(lat: float, lon: float) -> bool:
    """Return True if latitude and longitude are finite and within their ranges in degrees."""
    return bool(np.isfinite(lat) and np.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180)
