"""Read any set of images that a CSV or Parquet table lists, or all images of a folder.

The table has a column `path`. It may have the columns label, labels, lat, lon, time, location_id, country and split.
Images are GeoTIFF, PNG, JPEG or JPEG 2000, with 8 or 16 bits. They have one size or are resampled to one size. If the
table gives no place, the place comes from the image's georeference. Files beside an image (`.aux.xml`, `.tfw`, `.msk`,
...) are never read.
"""

import contextlib
import copy
import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import pyarrow
from PIL import Image

from stssl.archives.band_numbers import stated_numbers
from stssl.archives.base import Example, ExamplePatch, Option, Window
from stssl.archives.cells import first_rows, image_path, place_name, place_of, split_of, time_of
from stssl.archives.grids import ImageGrid, common_meters
from stssl.archives.image_places import place_in
from stssl.archives.images import Picture, in_color_order, read_image
from stssl.archives.label_cells import read_labels
from stssl.archives.manifest_words import (
    WANTED,
    column_remarks,
    elsewhere,
    files_beside,
    lacking_columns,
    missing_words,
    stated_scales,
)
from stssl.archives.scene_files import canonical_band, other_names
from stssl.archives.tables import cells_of, choose_columns, folder_of, folder_table, read_table
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonMapping
from stssl.store.schema import COMMON, GRID, REGION, BadPatchError, Column, Patch, PixelArray, Values, split_column
from stssl.store.schema import label_columns as labels_of

TRIED_IMAGES = 16
MOST_BANDS = 16
"""Largest number of bands of an image: `valid_bands` has one bit for each band."""


class Manifest:
    """Read the images that a table lists, or all images of a folder, with their labels, places, dates and splits."""

    maps: tuple[PixelArray, ...] = ()
    statistics_split = "official"
    attributes: JsonMapping = MappingProxyType({})

    def __init__(
        self,
        archive: Path,
        bands: Annotated[str, Option("all, or rgb for the first three.")] = "all",
        size: Annotated[int | None, Option("resample to this many pixels a side.")] = None,
        band_names: Annotated[str | None, Option("names of the bands, with commas.")] = None,
        images: Annotated[Path | None, Option("folder where the table's paths start; default: its own.")] = None,
    ) -> None:
        """Read the table of images, and find out the size and the bands of the images from the first ones.

        Args:
            archive: The table, a CSV or Parquet file. Or a folder of images, or a pattern such as `tiles/*.tif`.
            bands: `all`, or `rgb` for the first three bands of the images.
            size: New height and width of all images in pixels. If it is None, all images must have one size.
            band_names: Names of the images' bands, with commas between them. The default is what the image files state,
                else B04, B03, B02 for 8-bit images with three bands, and numbers for other images.
            images: Folder that the table's paths start at. The default is the table's own folder.

        Raises:
            ConfigError: An option is impossible.
            DataError: The table has no column `path` or no rows, or no image can be read.
        """
        whole = folder_table(archive) if archive.is_dir() or not archive.exists() else read_table(archive)
        if images is not None and not images.is_dir():
            raise ConfigError(f"--images {images}: there is no such folder")
        self._fill(whole, archive, bands, size, band_names, images=images)

    @classmethod
    def listed(cls, paths: Sequence[Path], band_names: str | None = None) -> "Manifest":
        """Return a data set of the images at `paths`, without a table: the images have no labels and no split.

        Args:
            paths: Absolute paths of the images.
            band_names: Names of the images' bands, with commas between them; None takes those that the image files
                state.

        Raises:
            ConfigError: The number of names is wrong.
            DataError: No image can be read.
        """
        folder = Path(os.path.commonpath([path.parent for path in paths]))
        made = cls.__new__(cls)
        made._fill(
            pyarrow.table({"path": [str(path.relative_to(folder)) for path in paths]}), folder, "all", None, band_names
        )
        return made

    def _fill(
        self,
        whole: pyarrow.Table,
        archive: Path,
        bands: str,
        size: int | None,
        band_names: str | None,
        *,
        images: Path | None = None,
    ) -> None:
        """Set the attributes of this object from a table of images, and from the first images for their size and bands.

        Args:
            whole: The table.
            archive: File of the table, or folder or pattern of the images.
            bands: `all`, or `rgb` for the first three bands of the images.
            size: New height and width of all images in pixels; None keeps the size.
            band_names: Names of the bands, with commas between them; None takes those that the image files state.
            images: Folder that the table's paths start at; None takes the folder of `archive`.
        """
        columns = choose_columns(whole.column_names, WANTED, archive)
        if "path" not in columns.used or not whole.num_rows:
            raise DataError(f"{archive} needs {missing_words(whole.column_names, 'path' in columns.used)}")
        table = {name: cells_of(whole, own, archive) for name, own in columns.used.items()}
        self.folder, self._size = images or folder_of(archive), size
        self._table: Mapping[str, Sequence[object]] = table
        self.names: Sequence[str] = tuple("" if path is None else str(path) for path in table["path"])
        self._first: Sequence[int] = first_rows(self.folder, self.names)
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
        self.notes: tuple[str, ...] = (
            *columns.words(),
            *lacking_columns(columns),
            *column_remarks(table),
            *(note for own in labels.values() for note in own.notes),
            *files_beside(self.folder, self.names),
            *stated_scales(self._scaling),
        )
        places = sorted({place_name(place) for place in table.get("location_id", ())} - {""})
        self._places = {place: number for number, place in enumerate(places)}
        self.columns: tuple[Column, ...] = (
            *COMMON,
            *REGION,
            *GRID,
            *(labels_of(name, classes, name == "labels") for name, classes in self.classes.items()),
            *map(split_column, self.splits),
        )
        # Hash the whole table, not only its paths: with changed labels or places, it is another conversion.
        listed = archive.read_bytes() if archive.is_file() else "\n".join(self.names).encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(listed, digest_size=16).hexdigest()
        self.about: JsonMapping = {"source": "manifest", "table": digest, "bands": bands, "size": size}

    @property
    def files(self) -> Iterator[Path]:
        """Yield the path of each image. Leave out names in the table that cannot be paths, such as URLs."""
        for name in self.names:
            with contextlib.suppress(BadPatchError, ValueError):
                yield image_path(self.folder, name)

    def _look(self, bands: str, band_names: str | None) -> PixelArray:
        """Read the first `TRIED_IMAGES` images, and return a description of the store's pixel array.

        The description (bands, size, type) is that of the first image that can be read. It has the pixel size in meters
        only if all images that were read share it.

        Args:
            bands: `all`, or `rgb` for the first three bands of the images.
            band_names: Names of the images' bands, with commas between them; None takes those that the image files
                state.

        Raises:
            ConfigError: The options do not fit the image.
            DataError: None of these images can be read, or the first good one is not square.
        """
        if bands not in ("all", "rgb") or (self._size is not None and self._size < 1):
            raise ConfigError(f"bands must be all or rgb (not '{bands}'), and size 1 or more")
        # The first image may be bad, so try several. Do not try all: if every path of a long table is wrong, that would
        # take long.
        first, found, grids = None, "", list[ImageGrid | None]()
        for name in self.names[:TRIED_IMAGES]:
            try:
                picture = _read(image_path(self.folder, name), name, self._size)
            except BadPatchError as problem:
                found = str(problem)
            else:
                first = first or picture
                grids.append(picture.grid)
        if first is None:
            raise DataError(
                f"none of the first {TRIED_IMAGES} images can be read ({found}). Paths start at {self.folder}"
                f"{elsewhere(self.folder, self.names)}"
            )
        self._named = band_names is not None
        arranged = self._arranged(first)
        self._scaling = arranged.scaling
        image = arranged.pixels
        count, height, width = image.shape
        color = image.dtype == np.uint8 and count == 3
        given = tuple(name.strip() for name in band_names.split(",")) if band_names else None
        own = _described(arranged)
        if given and own and tuple(map(canonical_band, given)) != own:
            raise other_names(given, self.names[0], own)
        names = given or own or (("B04", "B03", "B02") if color else _numbers(count))
        if len(names) != count or len(set(names)) != count or not all(names):
            raise ConfigError(f"{len(names)} band names are given, and the images have {count} bands: {names}")
        if count < 3 and bands == "rgb":
            raise ConfigError(f"bands=rgb takes the first three bands, and the images have {count}")
        # Networks need square images. Making other images square distorts them, so do it only if the user gives a size.
        if height != width and self._size is None:
            raise DataError(f"{self.names[0]} is {width}x{height}: images must be square, or resampled with a size")
        kept = names[:3] if bands == "rgb" else names
        if len(kept) > MOST_BANDS:
            raise ConfigError(
                f"a store holds at most {MOST_BANDS} bands, and the images have {count}. Give --bands rgb."
            )
        self._count = count
        return PixelArray("rgb" if color else "image", kept, height, width, str(image.dtype), common_meters(grids))

    def _arranged(self, picture: Picture) -> Picture:
        """Return an image with red, green and blue as its first bands, if its file states these colors.

        Else, or if the user named the bands, return it unchanged.
        """
        order = None if self._named else in_color_order(picture.colors)
        if order is None or order == sorted(order):
            return picture
        measured = None if picture.measured is None else picture.measured[order]
        colors = tuple(picture.colors[band] for band in order)
        names = tuple(picture.names[band] for band in order)
        scaling = tuple(picture.scaling[band] for band in order)
        arranged = replace(picture, pixels=picture.pixels[order], measured=measured, colors=colors, names=names)
        return replace(arranged, scaling=scaling)

    @staticmethod
    def write_example(folder: Path) -> Example:
        """Write a tiny data set for tests, and return its description with the values that its store must hold.

        It has six PNGs and their table. The last image has no label, place, time or split.

        Args:
            folder: Empty folder to write into.
        """
        rows, patches = [["path", "label", "lat", "lon", "time", "split"]], []
        for number, part in enumerate(("train", "train", "train", "validation", "test", "")):
            pixels = {"B04": 60 + number, "B03": 120 + number, "B02": 180 + number}
            patch = ExamplePatch(f"{number}.png", folder / f"{number}.png", pixels)
            if part:
                when = datetime(2017, 6, 13 + number, 10, 10, 31, tzinfo=UTC)
                label, place = ("forest", "lake")[number % 2], (48.2 + number / 10, 14.5)
                patch = replace(patch, classes=(label,), place=place, time=when, part=part)
                rows.append([patch.name, label, str(place[0]), str(place[1]), when.isoformat(), part])
            else:
                rows.append([patch.name, "", "", "", "", ""])
            Image.new("RGB", (8, 8), tuple(pixels.values())).save(patch.file)
            patches.append(patch)
        table = folder / "images.csv"
        with table.open("w", newline="") as text:
            csv.writer(text).writerows(rows)
        return Example(table, tuple(patches), "label")

    def of_rows(self, rows: range) -> "Manifest":
        """Return a copy of this data set that can read only the images in `rows` of the store.

        The images keep their row numbers.
        """
        part = copy.copy(self)
        part.names, part._first = Window(self.names, rows), Window(self._first, rows)
        part._table = {column: Window(cells, rows) for column, cells in self._table.items()}
        part._labels_of = {name: replace(own, rows=Window(own.rows, rows)) for name, own in self._labels_of.items()}
        here = {place_name(self._cell("location_id", row)) for row in rows} - {""}
        part._places = {place: self._places[place] for place in here}
        part.notes = ()
        return part

    def read(self, row: int) -> Patch:
        """Read one image, and return it as a patch with its labels, place, time and split from the table.

        What cannot be used is an error in the patch's list of problems.

        Args:
            row: Row of the image in the store.
        """
        name, patch = self.names[row], Patch()
        if self._first[row] != row:
            patch.complain(BadPatchError("duplicate", f"row {row + 1} names the image of row {self._first[row] + 1}"))
            return patch
        parts: tuple[Callable[[], Values], ...] = (
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
            self._keep(patch, name)
        except BadPatchError as problem:
            patch.complain(problem)
        return patch

    def _keep(self, patch: Patch, name: str) -> None:
        """Read an image file, and put its pixels, its mask of measured pixels and its grid into `patch`.

        Args:
            patch: Patch to change.
            name: Path of the image in the table.

        Raises:
            BadPatchError: The image cannot be read, differs from the first one in size, type or scaling, or has a band
                without a measured pixel.
        """
        array = self.arrays[0]
        picture = self._arranged(_read(image_path(self.folder, name), name, self._size))
        image, measured = picture.pixels, picture.measured
        if image.shape[1:] != array.shape[1:] or len(image) != self._count or str(image.dtype) != array.dtype:
            shape = "x".join(map(str, image.shape))
            raise BadPatchError("wrong_size", f"{name} is {shape} {image.dtype}, not {array.shape} {array.dtype}")
        # The store holds numbers without their scale, so numbers with different scales could not be compared.
        if picture.scaling != self._scaling:
            raise BadPatchError("wrong_size", f"{name} states another scale or offset than the first image")
        count = len(array.bands)
        numbers = [stated_numbers(*one) for one in picture.scaling[:count]]
        if not all(one.plain for one in numbers):
            image = np.stack([one.converted(band) for one, band in zip(numbers, image[:count], strict=True)])
        patch.arrays[array.name] = image[:count]
        patch.values |= {} if picture.grid is None else picture.grid.columns
        patch.valid_bands = (1 << count) - 1
        if measured is not None:
            patch.measured[array.name] = measured[:count]
            filled = [bool(band.any()) for band in measured[:count]]
            patch.valid_bands = sum(1 << bit for bit, there in enumerate(filled) if there)
            empty = [band for band, there in zip(array.bands, filled, strict=True) if not there]
            if empty:
                raise BadPatchError("nodata", f"{name} has no measured pixel in {', '.join(empty)}")

    def _cell(self, column: str, row: int) -> object:
        """Return the cell of the table in a row and a column (its name in this package); None without this column."""
        return self._table[column][row] if column in self._table else None

    def _labels(self, row: int) -> Values:
        """Return the labels in a row of the table as a dict of store columns; an empty dict for a row without classes.

        The column `label` is the index of a class. The column `labels` is an array with 1 for each class of the row,
        else 0.
        """
        values: Values = {}
        for name, labels in self._labels_of.items():
            own = labels.rows[row]
            if own:
                hits = np.zeros(len(labels.classes), np.uint8)
                hits[list(own)] = 1
                values[name] = hits if name == "labels" else own[0]
        return values

    def _plain(self, row: int) -> Values:
        """Return the country and the number of the location in a row of the table as a dict of store columns.

        A missing country is an empty text, and a missing location is -1.
        """
        country = self._cell("country", row)
        location = self._places.get(place_name(self._cell("location_id", row)), -1)
        return {"country": "" if country is None else str(country).strip(), "location_id": location}

    def _place(self, row: int) -> Values:
        """Return latitude and longitude of the image in a row as a dict of store columns; empty if they are unknown.

        They are those in the table, or else those in the image file.

        Raises:
            BadPatchError: The place in the table or in the file is unusable.
        """
        return place_of(self._cell("lat", row), self._cell("lon", row), row) or self._own_place(row)

    def _own_place(self, row: int) -> Values:
        """Return latitude and longitude of the image in a row as a dict of store columns, from the image file.

        The dict is empty if the file states no place, or cannot be read.

        Raises:
            BadPatchError: The file's information on the place is unusable.
        """
        try:
            place = place_in(image_path(self.folder, self.names[row]), self.names[row])
        except BadPatchError as problem:
            if problem.code == "bad_coordinates":
                raise
            return {}  # Do not report an image that cannot be read, since `_keep` reports it.
        return {} if place is None else {"lat": place[0], "lon": place[1]}


def _read(path: Path, name: str, size: int | None) -> Picture:
    """Read an image of 8 or 16 bits, and return its pixels with what its file states about them.

    Args:
        path: Path of the file.
        name: Name of the image in messages.
        size: New height and width in pixels; None keeps the size.

    Raises:
        BadPatchError: The image is missing, cannot be read, or has pixels of another type.
    """
    try:
        there = path.is_file()
    except OSError as error:  # the system raises it for names that are too long and for forbidden folders
        raise BadPatchError("no_pixels", f"{name[:200]}: {error.strerror}") from None
    if not there:
        raise BadPatchError("no_pixels", f"{name} is missing")
    picture = read_image(path, name, size)
    if picture.pixels.dtype not in (np.uint8, np.uint16):
        raise BadPatchError("wrong_size", f"{name} has pixels of {picture.pixels.dtype}, not uint8 or uint16")
    return picture


def _described(picture: Picture) -> tuple[str, ...]:
    """Return the band names that the file of an image states, such as `B02`.

    Return an empty tuple if a band has no name, or shares it with another band.
    """
    names = tuple(canonical_band(name) for name in picture.names)
    plain = all(name and name.isprintable() for name in names)
    return names if plain and len(set(names)) == len(names) == len(picture.pixels) else ()


def _numbers(count: int) -> tuple[str, ...]:
    """Return names for `count` bands, none of which has a known name: the texts `1`, `2`, and so on."""
    return tuple(str(number + 1) for number in range(count))
