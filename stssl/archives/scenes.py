"""Cut whole scenes (large georeferenced images) into patches for a store, with labels from polygons or rasters, if any.

A scene is a GeoTIFF or JPEG 2000 file with all bands, a folder of files of one band each, or a Sentinel-2 product (a
`.SAFE` folder of level 2A). Square windows lie side by side from its upper left corner. Each window becomes a patch,
except windows without a measured pixel. Pixels that remain at the right and lower edges are in no patch. Each patch
has its place, coordinate system, corner and date.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np

from stssl.archives.area_labels import AreaLabels, open_labels
from stssl.archives.band_numbers import shift_remarks
from stssl.archives.base import Example, ExamplePatch, Option, good_place
from stssl.archives.examples import EPSG, grid_around, write_bands
from stssl.archives.grids import ImageGrid, common_meters, footprint
from stssl.archives.images import fill_unmeasured
from stssl.archives.manifest import MOST_BANDS
from stssl.archives.scene_files import SceneBand, SceneImage, WindowReader
from stssl.archives.scene_lists import BandChoice, find_scenes, given_date, numbered
from stssl.base.arrays import AnyArray
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonMapping
from stssl.store.schema import COMMON, GRID, REGION, BadPatchError, Column, Patch, PixelArray, Values, label_columns

MAJORITY, COVERED, LEAST_PRESENT = 0.5, 0.5, 0.05
"""Least shares of a patch: of the class that covers most of it, of its area with labels, and of a class that counts."""


@dataclass(frozen=True)
class _Window:
    """Hold where a window (a future patch) begins: number of its scene, and row and column in the finest band."""

    scene: int
    row: int
    column: int


def _listed(words: str | None) -> tuple[str, ...] | None:
    """Return the names in a text such as `B04, B03`, with commas between them. Return None for None."""
    return None if words is None else tuple(name.strip() for name in words.split(","))


class Scenes:
    """Cut whole scenes (large georeferenced images) into patches, and read these patches.

    Attributes:
        remarks: Remarks for the user about windows (future patches) and labels, one line each.
        undated: Names of the scenes without a date.
        notes: `remarks`, and one more line for each scene without a date.
    """

    maps: tuple[PixelArray, ...] = ()
    splits: tuple[str, ...] = ()
    statistics_split = "official"
    attributes: JsonMapping = MappingProxyType({})

    def __init__(
        self,
        archive: Path,
        *others: Path,
        size: Annotated[int, Option("pixels a side of a patch.")] = 120,
        stride: Annotated[int | None, Option("distance of patches in pixels; default: the size.")] = None,
        labels: Annotated[Path | None, Option("polygons (GeoJSON, GeoPackage), or a GeoTIFF of class indexes.")] = None,
        attribute: Annotated[str | None, Option("attribute of the polygons with the class names.")] = None,
        classes: Annotated[str | None, Option("names of a raster's class indexes: 1=forest,2=water.")] = None,
        multi_label: Annotated[bool, Option("all classes of a patch, in place of the one that covers most.")] = False,
        share: Annotated[float | None, Option("least share of a class: 0.5, with multi-label 0.05.")] = None,
        band_names: Annotated[str | None, Option("names of the bands, with commas.")] = None,
        keep_bands: Annotated[str | None, Option("names of the bands to keep, with commas; default: all.")] = None,
        date: Annotated[str | None, Option("date of all scenes (ISO 8601); default: that in each name.")] = None,
    ) -> None:
        """Open scenes, and find the windows of them that become patches.

        Args:
            archive: A scene: a file, or a folder. A folder of files with one band each is one scene, and so is a
                `.SAFE` folder; in other folders, each file is a scene.
            *others: Further scenes.
            size: Width and height of a patch in pixels of the finest band.
            stride: Distance from one patch to the next in pixels of the finest band; None lays them side by side.
            labels: Polygons, or a raster of class indexes.
            attribute: Attribute of the polygons with the class names.
            classes: Names of a raster's indexes, such as `1=forest,2=water`.
            multi_label: True for all classes that cover a share of the patch; False for the class that covers most.
            share: Least share of a patch that its class covers; with `multi_label`, of each class.
            band_names: Names of the bands, with commas between them; None takes those of the files.
            keep_bands: Names of the bands to keep, with commas between them; None keeps all.
            date: Date of all scenes; None reads it from the names of files and folders, or from a product's metadata.

        Raises:
            ConfigError: An option is impossible.
            DataError: No scene can be read, or scenes differ in bands, types or pixel sizes.
        """
        self._size, self._stride = size, size if stride is None else stride
        self._multi, self._share = multi_label, share
        self._require_options(labels, attribute, classes)
        when = None if date is None else given_date(date)
        choice = BandChoice(_listed(band_names), _listed(keep_bands))
        self._scenes = list(numbered(list(find_scenes((archive, *others), choice, when))))
        whole = [scene.image for scene in self._scenes if scene.image is not None]
        if not whole:
            raise DataError(f"no scene can be read: {self._scenes[0].problem}")
        self._check(whole)
        self.arrays = self._arrays(whole)
        self._reader = WindowReader()
        self._windows = self._find_windows()
        if not self._windows:
            raise DataError(self._no_window(whole[0].first))
        self.names = tuple(self._name(window) for window in self._windows)
        self._places = self._location_ids()
        self._labels = None if labels is None else open_labels(labels, attribute, classes)
        if self._labels is not None and not any(self._labels.touches(*scene.first.extent) for scene in whole):
            raise DataError(f"--labels: {labels} touches no scene. Is its coordinate system (CRS) right?")
        self._declare(labels)

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the paths of all files that patches are read from, without files of labels."""
        images = [scene.image for scene in self._scenes if scene.image is not None]
        return tuple(dict.fromkeys(band.path for image in images for layer in image.layers for band in layer.bands))

    def _no_window(self, band: SceneBand) -> str:
        """Return the error message for scenes in which no window can become a patch.

        Args:
            band: First band of the first scene.
        """
        words = f"{self._scenes[0].name}: no window of {self._size} x {self._size} pixels"
        if min(band.height, band.width) < self._size:
            return f"{words} fits: the scene has {band.height} x {band.width} pixels. Give a larger scene."
        return f"{words} has a measured pixel."

    def _require_options(self, labels: Path | None, attribute: str | None, classes: str | None) -> None:
        """Check that the sizes are possible, and that no option for labels is given without labels.

        Args:
            labels: File of the labels; None if the user gave none.
            attribute: Attribute of polygons with the class names, or None.
            classes: Names of a raster's indexes, or None.

        Raises:
            ConfigError: An option is impossible.
        """
        if self._size < 2 or self._stride < 1 or not 0 < (MAJORITY if self._share is None else self._share) <= 1:
            raise ConfigError("--size must be 2 or more, --stride 1 or more, and --share above 0 and at most 1.")
        if labels is None and (attribute or classes or self._share is not None or self._multi):
            raise ConfigError(
                "--attribute, --classes, --share and --multi-label say how --labels are read: give it too."
            )

    def _declare(self, labels: Path | None) -> None:
        """Set the attributes that a conversion reads: store columns, remarks, and the values that identify the archive.

        Args:
            labels: File of the labels; None if there are none.
        """
        self.label_sets: tuple[str, ...] = ()
        self.columns: tuple[Column, ...] = (*COMMON, *REGION, *GRID)
        if self._labels is not None:
            self.label_sets = ("labels" if self._multi else "label",)
            self.columns += (label_columns(self.label_sets[0], self._labels.classes, self._multi),)
        self.remarks = tuple(self._remarks())
        self.undated = tuple(scene.name for scene in self._scenes if scene.image is not None and not scene.date)
        advice = "its name has no date (such as 20230614), so its patches have none. Give --date."
        self.notes = (*self.remarks, *(f"{name}: {advice}" for name in self.undated))
        sizes = {scene.name: scene.image.first.path.stat().st_size for scene in self._scenes if scene.image}
        digest = None if labels is None else hashlib.blake2b(labels.read_bytes(), digest_size=16).hexdigest()
        listed = hashlib.blake2b(json.dumps(sizes).encode(), digest_size=16).hexdigest()
        self.about: JsonMapping = {"source": "scenes", "scenes": listed, "labels": digest}

    def _check(self, scenes: Sequence[SceneImage]) -> None:
        """Check that all scenes can go into one store, and that patches consist of whole pixels in the coarse bands.

        Raises:
            ConfigError: The patch size or the stride cuts pixels of a coarse band.
            DataError: The scenes have too many bands, or differ in bands, types or pixel sizes.
        """
        first = scenes[0]
        if sum(len(layer.bands) for layer in first.layers) > MOST_BANDS:
            raise DataError(f"{first.name} has more than {MOST_BANDS} bands, and a store holds no more.")
        for other in scenes[1:]:
            if other.kind != first.kind:
                raise DataError(
                    f"{other.name} has other bands, types or pixel sizes than {first.name}. Convert them to two stores."
                )
        sizes = [scene.first.grid.meters for scene in scenes]
        if min(sizes) > 0 and max(sizes) / min(sizes) > 1.02:
            raise DataError(
                f"the scenes have pixels of {min(sizes):g} and of {max(sizes):g} m. Warp them to one size (gdalwarp)."
            )
        for layer in first.layers:
            if self._size % layer.ratio or self._stride % layer.ratio:
                raise ConfigError(
                    f"{layer.bands[0].name} has pixels {layer.ratio} times as large as {first.first.name}: --size and "
                    f"--stride must be multiples of {layer.ratio}."
                )

    def _arrays(self, scenes: Sequence[SceneImage]) -> tuple[PixelArray, ...]:
        """Return descriptions of the store's pixel arrays for patches of these scenes, one for each pixel size."""
        meters = common_meters([scene.first.grid for scene in scenes])
        found: list[PixelArray] = []
        for layer in scenes[0].layers:
            names = tuple(band.name for band in layer.bands)
            color = names == ("B04", "B03", "B02") and layer.bands[0].dtype == "uint8"
            name = (
                f"b{meters * layer.ratio:.0f}" if meters and len(scenes[0].layers) > 1 else "rgb" if color else "image"
            )
            name = name if not any(other.name == name for other in found) else f"{name}_{layer.ratio}"
            side = self._size // layer.ratio
            found.append(PixelArray(name, names, side, side, layer.bands[0].dtype, meters * layer.ratio))
        return tuple(found)

    def _windows_of(self, number: int, image: SceneImage | None) -> Iterator[_Window]:
        """Yield the windows of a scene that have a measured pixel in the first band. Each window becomes a patch.

        For a scene that cannot be read, yield one window.

        Args:
            number: Number of the scene.
            image: Description of the scene; None if it cannot be read.

        Raises:
            DataError: The scene cannot be read to its end.
        """
        if image is None:
            yield _Window(number, 0, 0)
            return
        band = image.first
        for row in range(0, band.height - self._size + 1, self._stride):
            seen = np.asarray(self._reader.measured(band, row, self._size).any(0))
            for column in range(0, band.width - self._size + 1, self._stride):
                if seen[column : column + self._size].any():
                    yield _Window(number, row, column)

    def _find_windows(self) -> list[_Window]:
        """Return the windows of all scenes. Each window becomes a patch.

        A scene that cannot be read gets one window, so the error report of the conversion names it.
        """
        found: list[_Window] = []
        for number, scene in enumerate(self._scenes):
            try:
                found += list(self._windows_of(number, scene.image))
            except DataError as error:
                self._scenes[number] = replace(scene, image=None, problem=str(error))
                found.append(_Window(number, 0, 0))
        return found

    def _name(self, window: _Window) -> str:
        """Return the name of the patch in a window: the scene's name with the window's first row and column.

        If the scene is as large as a patch, return the scene's name alone.
        """
        scene = self._scenes[window.scene]
        alone = scene.image is None or (scene.image.first.height, scene.image.first.width) == (self._size, self._size)
        return scene.name if alone else f"{scene.name}_r{window.row}_c{window.column}"

    def _grid(self, window: _Window) -> ImageGrid | None:
        """Return coordinate system, corner and pixel size of the patch in a window; None if its scene cannot be read.

        The pixel size is that of the finest bands.
        """
        image = self._scenes[window.scene].image
        return None if image is None else image.first.grid.at(window.row, window.column)

    def _location_ids(self) -> list[int]:
        """Return for each patch a number that tells its place; -1 if its scene cannot be read.

        Patches with the same corner, such as those in scenes of several dates, share a number.
        """
        known: dict[tuple[str, float, float], int] = {}
        found = []
        for window in self._windows:
            grid = self._grid(window)
            key = None if grid is None else (grid.crs, round(grid.x, 6), round(grid.y, 6))
            found.append(-1 if key is None else known.setdefault(key, len(known)))
        return found

    def _remarks(self) -> Iterator[str]:
        """Yield remarks for the user, one line each: windows and pixels left out, offsets of bands, and labels."""
        kept = Counter(window.scene for window in self._windows)
        for number, scene in enumerate(self._scenes):
            if scene.image is None:
                continue
            band, size, stride = scene.image.first, self._size, self._stride
            down, across = (max(0, (span - size) // stride + 1) for span in (band.height, band.width))
            empty = down * across - kept[number]
            if not down * across:
                yield f"{scene.name} is smaller than a patch of {size} pixels: it gives none"
                continue
            if empty:
                yield f"{scene.name}: {empty:,} windows without a measured pixel are left out"
            below, right = band.height - size - (down - 1) * stride, band.width - size - (across - 1) * stride
            if max(below, right) > 0:
                yield f"{scene.name}: the last {max(below, 0)} rows and {max(right, 0)} columns are in no patch"
            yield from shift_remarks(scene.name, (band.numbers for layer in scene.image.layers for band in layer.bands))
        if self._labels is not None:
            yield from self._labels.notes

    def read(self, row: int) -> Patch:
        """Read one patch of a scene, and return its pixels, place, date and label.

        What cannot be read is an error in the patch's list of problems.

        Args:
            row: Row of the patch in the store.
        """
        window, patch = self._windows[row], Patch()
        scene, grid = self._scenes[window.scene], self._grid(self._windows[row])
        patch.values |= scene.date
        patch.values["location_id"] = self._places[row]
        if scene.image is None or grid is None:
            patch.complain(BadPatchError("unreadable", scene.problem))
            return patch
        patch.values |= grid.columns
        try:
            patch.values |= self._place(grid, self.names[row])
        except BadPatchError as problem:
            patch.complain(problem)
        try:
            self._keep(patch, scene.image, window, self.names[row])
        except BadPatchError as problem:
            patch.complain(problem)
        if self._labels is not None:
            patch.values |= self._label(self._labels, grid)
        return patch

    def _keep(self, patch: Patch, image: SceneImage, window: _Window, name: str) -> None:
        """Read the pixels of a window and its mask of measured pixels, and put both into `patch`.

        Args:
            patch: Patch to change.
            image: Scene with the window.
            window: First row and column of the window.
            name: Name of the patch, for messages.

        Raises:
            BadPatchError: A file cannot be read, or a band has no measured pixel.
        """
        bit, empty = 0, []
        for layer, array in zip(image.layers, self.arrays, strict=True):
            row, column = window.row // layer.ratio, window.column // layer.ratio
            values: AnyArray = np.zeros(array.shape, array.dtype)
            there = np.ones(array.shape, np.bool_)
            for place, band in enumerate(layer.bands):
                try:
                    values[place], there[place] = self._reader.read(band, row, column, array.height, array.width)
                except DataError as error:
                    raise BadPatchError("unreadable", str(error).replace(f"{band.path.parent}/", "")) from None
                known = bool(there[place].any())
                patch.valid_bands |= known << bit
                bit += 1
                empty += [] if known else [band.name]
            if not there.all():
                values = fill_unmeasured(values, there, None)[0]
                patch.measured[array.name] = there
            patch.arrays[array.name] = values
        if empty:
            raise BadPatchError("nodata", f"{name} has no measured pixel in {', '.join(empty)}")

    def _place(self, grid: ImageGrid, name: str) -> Values:
        """Return latitude and longitude of the center of a patch in degrees as a dict of store columns.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the patch.
            name: Name of the patch, for messages.

        Raises:
            BadPatchError: The center has no place on the Earth.
        """
        half = self._size / 2
        lon, lat = footprint(grid.crs, [grid.x + half * grid.width], [grid.y - half * grid.height])
        if not good_place(float(lat[0]), float(lon[0])):
            raise BadPatchError("bad_coordinates", f"{name} lies outside its projection's area")
        return {"lat": float(lat[0]), "lon": float(lon[0])}

    def _label(self, labels: AreaLabels, grid: ImageGrid) -> Values:
        """Return the label of a patch as a dict with one store column, chosen by the share that each class covers.

        The label is the class that covers most; if the user wants several labels, all classes that cover enough. If
        classes cover too little of the patch, it is unlabeled: the dict is empty.

        Args:
            labels: Map of classes.
            grid: Coordinate system, upper left corner and pixel size of the patch.
        """
        shares = labels.shares(grid, self._size)
        if self._multi:
            if min(1.0, shares.sum()) < COVERED:
                return {}
            return {"labels": (shares >= (self._share or LEAST_PRESENT)).astype(np.uint8)}
        best = int(shares.argmax())
        return {"label": best} if shares[best] >= (self._share or MAJORITY) else {}

    @staticmethod
    def write_example(folder: Path) -> Example:
        """Write tiny scenes for tests, and return their description with the values that their store must hold.

        These are six GeoTIFFs of one patch each, and polygons of classes. No polygon covers the last scene.

        Args:
            folder: Empty folder to write into.
        """
        features, patches, side = [], [], 8
        (folder / "scenes").mkdir()
        for number in range(6):
            place = (48.2 + number / 10, 14.5)
            grid = grid_around(*place, side=side * 10)
            when = datetime(2017, 6, 13 + number, 10, 10, 31, tzinfo=UTC)
            name = f"scene{number}_{when:%Y%m%dT%H%M%S}"
            pixels = {"1": 100 + number, "2": 300 + number, "3": 900 + number}
            file = folder / "scenes" / f"{name}.tif"
            write_bands(file, list(pixels.values()), side, grid)
            patch = ExamplePatch(name, file, pixels, place=place, time=when)
            if number < 5:
                patch = replace(patch, classes=(("forest", "lake")[number % 2],))
                west, north, east, south = grid.ulx - 5, grid.uly + 5, grid.ulx + 85, grid.uly - 85
                ring = [[west, north], [west, south], [east, south], [east, north], [west, north]]
                shape = {"type": "Polygon", "coordinates": [ring]}
                features.append({"type": "Feature", "properties": {"label": patch.classes[0]}, "geometry": shape})
            patches.append(patch)
        crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{EPSG}"}}
        table = {"type": "FeatureCollection", "crs": crs, "features": features}
        (folder / "fields.geojson").write_text(json.dumps(table))
        options = {"size": side, "labels": folder / "fields.geojson"}
        return Example(folder / "scenes", tuple(patches), "label", options)
