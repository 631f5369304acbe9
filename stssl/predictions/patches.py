"""Read batches of patches with their metadata, from a store or from an archive that was never converted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stssl.archives.base import Archive
from stssl.base.arrays import AnyArray, Ints
from stssl.base.hashing import settings_hash
from stssl.data.loader import metadata_table
from stssl.store.schema import ERRORS, UNUSABLE, Column, ColumnArray, Patch, printable
from stssl.store.store import Store
from stssl.store.store_plan import empty_column

ERROR_NAMES = {code: name for name, code in ERRORS.items()}
PLACED = ("utm_epsg", "ulx", "uly", "crs", "corner_x", "corner_y", "pixel_width", "pixel_height")
"""Columns that say where a patch lies on a map, if the source has them."""


@dataclass(frozen=True)
class BandArray:
    """Describe the bands of one pixel size that a source of patches has.

    Attributes:
        bands: Names of the bands.
        height: Height in pixels.
        width: Width in pixels.
        dtype: Type of the values, such as `uint16`.
        meters: Pixel size in meters; 0 if unknown.
    """

    bands: tuple[str, ...]
    height: int
    width: int
    dtype: str
    meters: float


@dataclass(frozen=True)
class PatchBatch:
    """Hold the pixels, the metadata and the errors of n patches.

    Attributes:
        names: Name of each patch.
        pixels: [n, bands, height, width] stored values of each pixel size, by the name of its bands' array, such as
            `b10`. Patches without pixels have zeros.
        columns: [n] or [n, width] values of each metadata column, by its name.
        errors: Error of each patch as text; empty for patches without errors.
        usable: [n] False for patches without pixels, or with pixels that may be wrong.
    """

    names: list[str]
    pixels: dict[str, AnyArray]
    columns: dict[str, ColumnArray]
    errors: list[str]
    usable: NDArray[np.bool_]

    @property
    def metadata(self) -> Tensor:
        """Return places and dates of the n patches, [n, 4]: latitude, longitude, day of the year, and UTC hour.

        Missing values are NaN.
        """
        return metadata_table(*(self.columns[name] for name in ("lat", "lon", "day_of_year", "time")))


class PatchSource(Protocol):
    """Define the attributes and methods that every source of patches, such as a store or a folder of images, must have.

    Attributes:
        place: The input as the user wrote it, for messages.
        size: Number of patches.
        arrays: Description of the bands of each pixel size, by a name such as `b10`.
        columns: Descriptions of the metadata columns, by name.
        label_sets: Names of the metadata columns with labels.
        splits: Names of the splits. The column of a split is called `split_NAME`.
        notes: Remarks for the user, one line each.
        identity: Hash that changes if the patches change.
    """

    place: str
    size: int
    identity: str
    arrays: dict[str, BandArray]
    columns: dict[str, Column]
    label_sets: tuple[str, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...]

    def read(self, rows: Ints) -> PatchBatch:
        """Read the patches with the given numbers, and return them as one batch.

        Args:
            rows: [n] numbers of the patches in the source, from 0.

        Raises:
            DataError: The source cannot be read.
        """
        ...


class StorePatches:
    """Read the patches of a store in batches, with the bands that models need."""

    notes: tuple[str, ...] = ()

    def __init__(self, store: Store, bands: Sequence[str]) -> None:
        """Prepare to read some bands of a store. Read its metadata columns.

        Args:
            store: Open store.
            bands: Names of the bands that the models need. Bands that the store lacks are left out. If it has none of
                them, all its bands are read.
        """
        self.place, self.size, self._store = store.path, store.size, store
        self.identity = store.fingerprint
        found = [band for band in bands if band in store.bands]
        self._reader = store.reader(found or store.bands)
        self.arrays = {}
        for name, kept in self._reader.layout.items():
            group, about = store.groups[name], store.description.about(name)
            meters = float(about.get("gsd_m") or 0)
            self.arrays[name] = BandArray(kept, group.height, group.width, str(group.dtype), meters)
        self.label_sets, self.splits = store.label_sets, store.split_names
        wanted = ["patch_id", "lat", "lon", "time", "day_of_year", "error_code", *self.label_sets]
        wanted += [f"split_{name}" for name in self.splits]
        wanted += [name for name in PLACED if store.has_column(name)]
        self._columns = {name: store.column(name) for name in wanted}
        self.columns = {name: _described(store, name) for name in wanted}

    def read(self, rows: Ints) -> PatchBatch:
        """Read the patches with the given numbers, and return them as one batch.

        Args:
            rows: [n] store rows of the patches, from 0.

        Raises:
            DataError: The store cannot be read.
        """
        columns = {name: values[rows] for name, values in self._columns.items()}
        codes = columns["error_code"]
        errors = ["" if code == 0 else ERROR_NAMES.get(int(code), "unknown") for code in codes]
        return PatchBatch(
            [str(name) for name in columns["patch_id"]],
            dict(self._reader.read(rows)),
            columns,
            errors,
            ~np.isin(codes, UNUSABLE),
        )


def _described(store: Store, name: str) -> Column:
    values = store.column(name)
    width = values.shape[1] if values.ndim > 1 else 0
    return Column(name, str(values.dtype), "", store.column_attributes(name), width)


class ArchivePatches:
    """Read the patches of an open archive, such as a folder of images, without converting it first."""

    def __init__(self, archive: Archive, place: str, files: Iterable[Path], notes: Sequence[str]) -> None:
        """Prepare to read the patches of an open archive.

        Args:
            archive: The open archive.
            place: The input as the user wrote it, for messages.
            files: Files that patches are read from. Their sizes and times enter the hash `identity`.
            notes: Remarks for the user on the archive, one line each.
        """
        self.place, self.size, self._archive = place, len(archive.names), archive
        stamps = (tuple(archive.names), [_stamp(path) for path in files], {**archive.about})
        self.identity = settings_hash(stamps)
        self.arrays = {
            one.name: BandArray(one.bands, one.height, one.width, one.dtype, one.gsd_m) for one in archive.arrays
        }
        self.columns = {column.name: column for column in archive.columns}
        self.label_sets, self.splits, self.notes = archive.label_sets, archive.splits, tuple(notes)

    def read(self, rows: Ints) -> PatchBatch:
        """Read the patches with the given numbers, and return them as one batch.

        Metadata that a patch lacks get fill values.

        Args:
            rows: [n] numbers of the patches in the archive, from 0.
        """
        patches = [self._one(int(row)) for row in rows]
        pixels: dict[str, AnyArray] = {}
        for array in self._archive.arrays:
            block: AnyArray = np.zeros((len(rows), *array.shape), array.dtype)
            for place, patch in enumerate(patches):
                if array.name in patch.arrays:
                    block[place] = patch.arrays[array.name]
            pixels[array.name] = block
        columns = {column.name: empty_column(column, len(rows)) for column in self._archive.columns}
        for place, patch in enumerate(patches):
            for name, value in patch.values.items():
                columns[name][place] = value
        return PatchBatch(
            [self._archive.names[int(row)] for row in rows],
            pixels,
            columns,
            ["; ".join(f"{code}: {words}" for code, words in patch.problems) for patch in patches],
            np.array([ERRORS[patch.error] not in UNUSABLE for patch in patches], np.bool_),
        )

    def _one(self, row: int) -> Patch:
        """Read one patch of the archive, and return it. If the disk fails, return a patch marked as unreadable.

        Args:
            row: Number of the patch in the archive, from 0.
        """
        try:
            return self._archive.read(row)
        except OSError as error:
            return Patch(problems=[("unreadable", printable(f"{type(error).__name__}: {error.strerror}"))])


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return path, size in bytes and time of the last change (ns since 1970) of a file. They tell if it was changed.

    If the file cannot be read, size and time are -1.
    """
    try:
        about = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1
    return str(path), about.st_size, about.st_mtime_ns
