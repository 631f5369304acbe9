"""Define what an archive format must offer, and small helpers that several formats share.

An archive is a data set as its makers publish it. Its format lists the patches once, always in the same order. It reads
each patch on its own, so any process can convert any shard at any time.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

import numpy as np

from stssl.archives.nomenclature import SEASONS
from stssl.base.json_types import JsonMapping
from stssl.store.schema import Column, Patch, PixelArray, Values

T_co = TypeVar("T_co", covariant=True)
OnProgress = Callable[[int, int], None]
"""Function that is called with two numbers: finished items and all items."""


class Archive(Protocol):
    """Define the methods that an archive (a published data set) must have: it lists its patches and reads them.

    Archives can be pickled: other processes read patches too.
    """

    @property
    def arrays(self) -> tuple[PixelArray, ...]:
        """Return descriptions of the archive's pixel arrays, one for each resolution: name, bands, size and type."""
        ...

    @property
    def maps(self) -> tuple[PixelArray, ...]:
        """Return descriptions of the archive's maps: pixel arrays without image bands, such as maps of classes."""
        ...

    @property
    def attributes(self) -> JsonMapping:
        """Return a dict of further attributes for the store's Zarr group, such as the makers' band statistics."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return descriptions of the metadata columns that the archive gives to a store.

        Such columns are latitude and labels, for example.
        """
        ...

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Return the names of the columns with labels that the archive gives to a store."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the archive's splits into train, validation and test.

        The store's column of a split is called `split_<name>`.
        """
        ...

    @property
    def statistics_split(self) -> str:
        """Return the name of the split whose training patches the store's band statistics are computed from."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Return the names of all patches, in the sequence of the store's rows."""
        ...

    @property
    def about(self) -> JsonMapping:
        """Return a dict that identifies this archive and the way of reading it, without paths, hosts and times.

        An interrupted conversion continues only if this dict is still equal: it must not depend on the machine.
        """
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Return remarks for the user, one line each, such as the names of unused columns."""
        ...

    def read(self, row: int) -> Patch:
        """Read one patch of the archive, and return its pixels, labels, place and time.

        Args:
            row: Row of the patch in the store.

        Returns:
            The patch. Its `problems` list what is wrong with it. A bad patch raises no exception.

        Raises:
            OSError: The archive cannot be reached.
        """
        ...


@runtime_checkable
class SlicedArchive(Protocol):
    """Define the method of archives that can be cut to some of their patches.

    A worker process then gets only the part of the archive that it reads.
    """

    def of_rows(self, rows: range) -> Archive:
        """Return a copy of this archive that can read only the patches in `rows` of the store.

        The patches keep their row numbers.
        """
        ...


class Window(Sequence[T_co]):
    """Hold a contiguous part of a sequence. An index still counts from the start of the whole sequence."""

    def __init__(self, values: Sequence[T_co], rows: range) -> None:
        """Copy the items at the positions `rows` of the whole sequence `values`. The step of `rows` must be 1."""
        self._values, self._start = list(values[rows.start : rows.stop]), rows.start

    def __len__(self) -> int:
        """Return the number of values in this part of the sequence."""
        return len(self._values)

    @overload
    def __getitem__(self, at: int) -> T_co: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T_co]: ...
    def __getitem__(self, at: int | slice) -> T_co | Sequence[T_co]:
        """Return the item at the position `at`, which counts from the start of the whole sequence.

        Raises:
            IndexError: The window does not hold this position, or `at` is a slice.
        """
        if isinstance(at, slice) or not 0 <= at - self._start < len(self._values):
            raise IndexError(f"{at} is not one of {len(self._values)} positions from {self._start} on")
        return self._values[at - self._start]


class ArchiveFormat(Protocol):
    """Define the constructor and the test example that an archive format, such as BigEarthNet v1.0, must have.

    The parameters of the constructor are the format's options. Each parameter after `archive` has an `Option` in its
    annotation. The command line takes the help text from it.
    """

    def __call__(self, archive: Path, *args: Any, **options: Any) -> Archive:
        """Open an archive (a published data set), find its patches, and return the open archive.

        Args:
            archive: Folder or file of the archive, as an absolute path.
            *args: Never given. With them, mypy accepts any constructor here.
            **options: The format's options by name.

        Raises:
            ConfigError: An option has an impossible value.
            DataError: The path holds no archive of this format.
        """
        ...

    def write_example(self, folder: Path) -> "Example":
        """Write a tiny archive of this format for tests, and say what a store made from it must contain.

        Args:
            folder: Empty folder to write into.

        Returns:
            The archive's path and options, and the pixels, labels, places and dates that the store must have.
        """
        ...


@dataclass(frozen=True)
class Option:
    """Declare an option of an archive format, in the annotation of a constructor's parameter.

    The parameter's type is `str`, `int`, `float`, `bool`, `Path`, or `Mapping[str, Path]`. A mapping is given as
    NAME=FOLDER, once for each name. Each type may be combined with None.

    Attributes:
        help: Description of the option in one line, for the command line's help.
        flag: Name of the option on the command line, without hyphens at its start. Empty takes the parameter's name,
            with hyphens in place of underscores.
    """

    help: str
    flag: str = ""


@dataclass(frozen=True)
class ExamplePatch:
    """Hold the values that a store must have for one patch of an example archive, so that a test can compare the store.

    Attributes:
        name: Name of the patch.
        file: A file with pixels of this patch alone. A test damages it and checks that the conversion notices.
        pixels: Name of each band, and the one value of all its pixels.
        classes: Names of the classes of the patch; empty for an unlabeled patch.
        place: Latitude and longitude of the patch's center in degrees; None if the place is unknown.
        time: Acquisition time; None if the time is unknown.
        part: `train`, `validation` or `test` in the archive's first split; empty if the patch is in none of these.
        error: Name of the patch's error code; `ok` for a good patch.
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
        patches: The archive's patches, in the order of the store's rows.
        label_set: Name of the store's column with the classes.
        options: Options of the archive format that the test gives to the conversion, by name.
        tolerance: Largest allowed difference between a stored and an expected pixel value: some formats lose accuracy.
    """

    archive: Path
    patches: tuple[ExamplePatch, ...]
    label_set: str
    options: Mapping[str, object] = field(default_factory=dict)
    tolerance: int = 0


def time_values(when: datetime | None) -> Values:
    """Return a time as a dict of the store columns `time` (seconds since 1970) and `day_of_year`.

    A time without time zone counts as UTC. For None, the dict is empty.
    """
    if when is None:
        return {}
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return {"time": int(when.timestamp()), "day_of_year": when.timetuple().tm_yday}


def season_of(when: datetime | None) -> str:
    """Return the name of the meteorological season of a time in the northern hemisphere, such as `winter`.

    For None, return an empty text.
    """
    return SEASONS[when.month] if when else ""


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def degrees(cell: object) -> float:
    """Convert a cell of a table, which should hold a latitude or longitude, to a number. Return NaN for no number.

    `1_0` is a number in Python, and `48,1` is a number in some countries. Both give NaN, since a wrong place would be
    worse than a missing one.
    """
    if isinstance(cell, str):
        return float(cell) if _NUMBER.fullmatch(cell := cell.strip()) else float("nan")
    return float(cell) if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool) else float("nan")


def good_place(lat: float, lon: float) -> bool:
    """Return True if the latitude is from -90 to 90 degrees, and the longitude from -180 to 180 (both inclusive).

    For NaN, return False.
    """
    return bool(np.isfinite(lat) and np.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180)
