"""Any other set of images: a CSV or Parquet table with `path`, and any of label(s), lat, lon, time, location_id, split.

Images are JPEG, PNG or GeoTIFF, 8 or 16 bits, of one size or resampled to one. What a table leaves out of the place, a
georeferenced image may say itself.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.archives.base import good_place
from stssl.archives.cells import first_rows, image_path, place_name, place_of, split_of, time_of
from stssl.archives.label_cells import is_missing, read_labels
from stssl.archives.places import to_degrees
from stssl.archives.tables import ABOUT, FORM, cells_of, choose_columns, read_table
from stssl.archives.tiff import georeference, read_image
from stssl.errors import ConfigError, DataError
from stssl.schema import COMMON, REGION, BadPatchError, Column, Patch, PixelArray, split_column
from stssl.schema import label_columns as labels_of

PATHS = ("path", "filepath", "file_path", "filename", "file_name", "image", "image_path", "file")
READ = ("country", "lat", "lon", "label", "labels", "time", "location_id", "split")
WANTED = {"path": PATHS} | {name: ABOUT[name] for name in READ}
"""What a manifest may say -> spellings of the column, the first that is there."""
SAMPLE = 16
MOST_BANDS = 16
"""Bits of `valid_bands`."""


class Manifest:
    """Images named by a table."""

    maps: tuple[PixelArray, ...] = ()
    statistics_split = "official"
    attributes: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, archive: Path, bands: str = "all", size: int | None = None, band_names: str | None = None
    ) -> None:
        """Read the table and look at the first images.

        Args:
            archive: The table; paths in it are relative to its folder.
            bands: `all`, or `rgb` for the first three.
            size: Height and width to resample to; without it all images must have the size of the first.
            band_names: Names of the images' bands, with commas; by default B04, B03, B02 for 8-bit colour images, and
                numbers for others.

        Raises:
            ConfigError: Impossible options.
            DataError: The table has no `path`, no rows, or no image can be read.
        """
        whole = read_table(archive)
        columns = choose_columns(whole.column_names, WANTED, archive)
        if "path" not in columns.used or not whole.num_rows:
            raise DataError(f"{archive} needs {_missing(whole.column_names, 'path' in columns.used)}")
        table = {name: cells_of(whole, own, archive) for name, own in columns.used.items()}
        self.folder, self._table, self._size = archive.parent, table, size
        self.names = tuple("" if path is None else str(path) for path in table["path"])
        self._first = first_rows(self.folder, self.names)
        self.arrays = (self._look(bands, band_names),)
        self.splits = ("official",) if "split" in table else ()
        labels = {
            name: read_labels(columns.used[name], table[name], name == "labels", archive)
            for name in ("label", "labels")
            if name in table
        }
        self._labels_of = {name: own for name, own in labels.items() if own.classes}
        self.label_sets = tuple(self._labels_of)
        self.classes = {name: own.classes for name, own in self._labels_of.items()}
        self.notes = (*columns.words(), *_remarks(table), *(note for own in labels.values() for note in own.notes))
        places = sorted({place_name(place) for place in table.get("location_id", ())} - {""})
        self._places = {place: number for number, place in enumerate(places)}
        self.columns: tuple[Column, ...] = (
            *COMMON,
            *REGION,
            *(labels_of(name, classes, name == "labels") for name, classes in self.classes.items()),
            *map(split_column, self.splits),
        )
        digest = hashlib.blake2b(archive.read_bytes(), digest_size=16).hexdigest()
        self.about: Mapping[str, Any] = {"source": "manifest", "table": digest, "bands": bands, "size": size}

    def _look(self, bands: str, band_names: str | None) -> PixelArray:
        """The pixel array that the first readable image asks for."""
        if bands not in ("all", "rgb") or (self._size is not None and self._size < 1):
            raise ConfigError(f"bands must be all or rgb (not '{bands}'), and size 1 or more")
        for name in self.names[:SAMPLE]:
            try:
                image = _read(image_path(self.folder, name), name, self._size)
                break
            except BadPatchError as problem:
                found = str(problem)
        else:
            raise DataError(f"none of the first {SAMPLE} images can be read ({found}). Paths start at {self.folder}")
        count, height, width = image.shape
        colour = image.dtype == np.uint8 and count == 3
        given = tuple(name.strip() for name in band_names.split(",")) if band_names else None
        names = given or (("B04", "B03", "B02") if colour else _numbers(count))
        if len(names) != count or len(set(names)) != count or not all(names):
            raise ConfigError(f"{len(names)} band names are given, and the images have {count} bands: {names}")
        if count < 3 and bands == "rgb":
            raise ConfigError(f"bands=rgb takes the first three bands, and the images have {count}")
        if height != width and self._size is None:
            raise DataError(f"{self.names[0]} is {width}x{height}: images must be square, or resampled with a size")
        kept = names[:3] if bands == "rgb" else names
        if len(kept) > MOST_BANDS:
            raise ConfigError(
                f"a store holds at most {MOST_BANDS} bands, and the images have {count}. Give --bands rgb."
            )
        self._count = count
        return PixelArray("rgb" if colour else "image", kept, height, width, str(image.dtype), 0.0)

    def read(self, row: int) -> Patch:
        """One image, and what the table says of it."""
        name, patch, array = self.names[row], Patch(), self.arrays[0]
        if self._first[row] != row:
            patch.complain(BadPatchError("duplicate", f"row {row + 1} names the image of row {self._first[row] + 1}"))
            return patch
        parts: tuple[Callable[[], dict[str, Any]], ...] = (
            lambda: self._labels(row) | self._plain(row),
            lambda: time_of(self._cell("time", row)),
            lambda: self._place(row),
            lambda: split_of(self._cell("split", row)),
        )
        for part in parts:
            try:
                patch.values |= part()
            except BadPatchError as problem:
                patch.complain(problem)
        try:
            image = _read(image_path(self.folder, name), name, self._size)
            if image.shape[1:] != array.shape[1:] or len(image) != self._count or str(image.dtype) != array.dtype:
                shape = "x".join(map(str, image.shape))
                raise BadPatchError("wrong_size", f"{name} is {shape} {image.dtype}, not {array.shape} {array.dtype}")
            patch.arrays[array.name] = image[: len(array.bands)]
            patch.valid_bands = (1 << len(array.bands)) - 1
        except BadPatchError as problem:
            patch.complain(problem)
        return patch

    def _cell(self, column: str, row: int) -> Any:
        return self._table[column][row] if column in self._table else None

    def _labels(self, row: int) -> dict[str, Any]:
        """Classes; a row without any is unlabeled, which is no error."""
        values: dict[str, Any] = {}
        for name, labels in self._labels_of.items():
            own = labels.rows[row]
            if own:
                hits = np.zeros(len(labels.classes), np.uint8)
                hits[list(own)] = 1
                values[name] = hits if name == "labels" else own[0]
        return values

    def _plain(self, row: int) -> dict[str, Any]:
        """Country and location."""
        country = self._cell("country", row)
        location = self._places.get(place_name(self._cell("location_id", row)), -1)
        return {"country": "" if country is None else str(country).strip(), "location_id": location}

    def _place(self, row: int) -> dict[str, Any]:
        """The place that the table states, else that of the image."""
        return place_of(self._cell("lat", row), self._cell("lon", row), row) or self._own_place(row)

    def _own_place(self, row: int) -> dict[str, Any]:
        """The place that a georeferenced image states, if it does."""
        try:
            frame = georeference(image_path(self.folder, self.names[row]), self.names[row])
            lat, lon = (float(value[0]) for value in to_degrees(frame.projection, *frame.centre))
        except (BadPatchError, ValueError):
            return {}
        return {"lat": lat, "lon": lon} if good_place(lat, lon) else {}


def _read(path: Path, name: str, size: int | None) -> NDArray[Any]:
    """An image of 8 or 16 bits; without the alpha of an 8-bit one."""
    try:
        there = path.is_file()
    except OSError as error:  # A name that is too long, or a folder that nobody may look into.
        raise BadPatchError("no_pixels", f"{name[:200]}: {error.strerror}") from None
    if not there:
        raise BadPatchError("no_pixels", f"{name} is missing")
    image = read_image(path, name, size)
    if image.dtype not in (np.uint8, np.uint16):
        raise BadPatchError("wrong_size", f"{name} has pixels of {image.dtype}, not uint8 or uint16")
    return image[:3] if image.dtype == np.uint8 and len(image) == 4 else image


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number + 1) for number in range(count))


def _missing(names: list[str], rows: bool) -> str:
    """What a table that is no manifest lacks."""
    if rows:
        return "at least one row below the names of the columns"
    has = f"It has: {', '.join(names)[:300]}" if names else "It is empty"
    return f"a column 'path' with the images' paths, and at least one row. {has}. In words: {FORM}"


def _remarks(table: Mapping[str, list[Any]]) -> Iterator[str]:
    """What looks wrong in a table as a whole."""
    for name, other in (("lat", "lon"), ("lon", "lat")):
        if name in table and other not in table:
            yield f"{name} is of no use without a column {other}: no patch has its place from the table"
    for name in ("lat", "lon", "time", "location_id", "split"):
        if name in table and all(map(is_missing, table[name])):
            yield f"the column of {name} is empty"
