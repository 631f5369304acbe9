"""Any other set of images: a CSV or Parquet table with `path`, and any of label(s), lat, lon, time, location_id, split.

Images are JPEG, PNG or GeoTIFF, 8 or 16 bits, of one size or resampled to one. What a table leaves out of the place, a
georeferenced image may say itself.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from math import isnan
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.archives.base import good_place, season_of, time_values
from stssl.archives.places import to_degrees
from stssl.archives.tables import ABOUT, columns_of, read_table
from stssl.archives.tiff import georeference, read_image
from stssl.errors import ConfigError, DataError
from stssl.schema import COMMON, REGION, SPLIT_CODES, BadPatchError, Column, Patch, PixelArray, split_column
from stssl.schema import label_columns as labels_of

WANTED = {"path": ("path", "filepath", "filename", "image", "file")} | ABOUT
PARTS = SPLIT_CODES | {"val": SPLIT_CODES["validation"], "valid": SPLIT_CODES["validation"]}
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
        table = columns_of(read_table(archive), WANTED)
        if not table.get("path"):
            raise DataError(f"{archive} needs a column 'path' with the images' paths, and at least one row")
        self.folder, self._table, self._size = archive.parent, table, size
        self.names = tuple(str(path or "") for path in table["path"])
        self._first = {name: row for row, name in reversed(list(enumerate(self.names)))}
        self.arrays = (self._look(bands, band_names),)
        self.splits = ("official",) if "split" in table else ()
        self.label_sets = tuple(name for name in ("label", "labels") if name in table)
        self.classes = {name: _classes(table[name], name == "labels") for name in self.label_sets}
        places = sorted({str(place) for place in table.get("location_id", ()) if place not in (None, "")})
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
                image = _read(self.folder / name, name, self._size)
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
        if self._first[name] != row:
            patch.complain(BadPatchError("duplicate", f"row {row + 1} names the image of row {self._first[name] + 1}"))
            return patch
        parts: tuple[Callable[[int], dict[str, Any]], ...] = (self._labels, self._time, self._place, self._split)
        for part in parts:
            try:
                patch.values |= part(row)
            except BadPatchError as problem:
                patch.complain(problem)
        try:
            image = _read(self.folder / name, name, self._size)
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
        values: dict[str, Any] = {}
        for name, classes in self.classes.items():
            own = _split_labels(self._table[name][row], name == "labels")
            if not own:
                raise BadPatchError("no_label", f"no {name}")
            if name == "label" and len(own) > 1:
                raise BadPatchError("bad_metadata", f"label {', '.join(own)}: a column of several is called labels")
            hits = np.array([label in own for label in classes], np.uint8)
            values[name] = hits if name == "labels" else int(hits.argmax())
        return values

    def _time(self, row: int) -> dict[str, Any]:
        """Time, season and the other plain columns."""
        location = self._places.get(str(self._cell("location_id", row)), -1)
        values: dict[str, Any] = {"country": str(self._cell("country", row) or ""), "location_id": location}
        when = self._cell("time", row)
        if when in (None, ""):
            return values
        if isinstance(when, str):
            try:
                when = datetime.fromisoformat(when)
            except ValueError:
                raise BadPatchError("bad_metadata", f"time '{when}' is not ISO 8601") from None
        elif isinstance(when, date) and not isinstance(when, datetime):
            when = datetime(when.year, when.month, when.day)
        elif not isinstance(when, datetime):
            raise BadPatchError("bad_metadata", f"time {when} is a {type(when).__name__}, not ISO 8601")
        when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
        return values | time_values(when) | {"season": season_of(when)}

    def _place(self, row: int) -> dict[str, Any]:
        given = [self._cell(name, row) for name in ("lat", "lon")]
        if None in given or "" in given:
            return self._own_place(row)
        try:
            lat, lon = map(float, given)
        except (TypeError, ValueError):
            lat = lon = float("nan")
        if not good_place(lat, lon):
            hint = " (swapped?)" if good_place(lon, lat) else ""
            raise BadPatchError("bad_coordinates", f"latitude {given[0]}, longitude {given[1]}{hint}")
        return {"lat": lat, "lon": lon}

    def _own_place(self, row: int) -> dict[str, Any]:
        """The place that a georeferenced image states, if it does."""
        try:
            frame = georeference(self.folder / self.names[row], self.names[row])
            lat, lon = (float(value[0]) for value in to_degrees(frame.projection, *frame.centre))
        except (BadPatchError, ValueError):
            return {}
        return {"lat": lat, "lon": lon} if good_place(lat, lon) else {}

    def _split(self, row: int) -> dict[str, Any]:
        part = str(self._cell("split", row) or "").lower()
        if part and part not in PARTS:
            raise BadPatchError("bad_metadata", f"split '{part}' is none of {', '.join(SPLIT_CODES)}")
        return {"split_official": PARTS[part]} if part else {}


def _read(path: Path, name: str, size: int | None) -> NDArray[Any]:
    """An image of 8 or 16 bits; without the alpha of an 8-bit one."""
    if not path.is_file():
        raise BadPatchError("no_pixels", f"{name} is missing")
    image = read_image(path, name, size)
    if image.dtype not in (np.uint8, np.uint16):
        raise BadPatchError("wrong_size", f"{name} has pixels of {image.dtype}, not uint8 or uint16")
    return image[:3] if image.dtype == np.uint8 and len(image) == 4 else image


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number + 1) for number in range(count))


def _split_labels(cell: Any, several: bool) -> list[str]:
    """Class names of a cell; only where there may be several does a `;` divide them."""
    if cell is None or (isinstance(cell, float) and isnan(cell)):  # as tables of numbers have it where nothing stands
        return []
    parts = cell if isinstance(cell, list) else str(cell).split(";") if several else [cell]
    return [str(part).strip() for part in parts if str(part).strip()]


def _classes(cells: list[Any], several: bool) -> tuple[str, ...]:
    return tuple(sorted({label for cell in cells for label in _split_labels(cell, several)}))
