"""Open scenes (large georeferenced images), find their bands, and read windows of them."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from stssl.archives.band_numbers import BandNumbers, numbers_of
from stssl.archives.grids import EQUAL, ImageGrid, grid_of
from stssl.archives.images import IMAGE_SETTINGS
from stssl.archives.raster_files import explained_raster, scene_driver
from stssl.base.arrays import AnyArray
from stssl.base.errors import ConfigError, DataError

MOST_FILES = 32
"""Largest number of files that a reader keeps open."""
SAME_GRID = 0.05
"""Largest shift between the grids of two bands, in pixels."""
_SENTINEL = re.compile(r"B0?(\d{1,2})", re.IGNORECASE)


@dataclass(frozen=True)
class SceneBand:
    """Describe one band of a scene.

    Attributes:
        name: Name of the band, such as `B04`.
        path: File that holds the band.
        driver: Name of the GDAL driver that may open the file.
        index: Number of the band in the file, from 1.
        masked: True if the file marks pixels that are not measured.
        dtype: Type of the stored values, `uint8` or `uint16`.
        height: Height of the band in pixels.
        width: Width of the band in pixels.
        grid: Coordinate system, upper left corner and pixel size of the band.
        numbers: How the stored numbers become the pixel values of a patch.
        stated: True if the file itself states the band's name.
    """

    name: str
    path: Path
    driver: str
    index: int
    masked: bool
    dtype: str
    height: int
    width: int
    grid: ImageGrid
    numbers: BandNumbers = field(default_factory=BandNumbers)
    stated: bool = False

    @property
    def marked(self) -> bool:
        """Return True if the band may have unmeasured pixels: its file has a mask, or it has a nodata value."""
        return self.masked or self.numbers.nodata is not None

    @property
    def extent(self) -> tuple[ImageGrid, int, int]:
        """Return the band's grid (coordinate system, corner, pixel size), and its height and width in pixels."""
        return self.grid, self.height, self.width


@dataclass(frozen=True)
class SceneLayer:
    """Group the bands of a scene that have the same pixel size.

    Attributes:
        bands: The bands of this pixel size.
        ratio: Pixel size of these bands, as a multiple of the smallest pixel size in the scene.
    """

    bands: tuple[SceneBand, ...]
    ratio: int


@dataclass(frozen=True)
class SceneImage:
    """Describe a scene (a large georeferenced image) by its layers. A layer has all bands of one pixel size.

    Attributes:
        name: Name of the scene, without folders.
        layers: Layers of the scene. The one with the smallest pixels comes first.
    """

    name: str
    layers: tuple[SceneLayer, ...]

    @property
    def first(self) -> SceneBand:
        """Return the first band of the layer with the smallest pixels."""
        return self.layers[0].bands[0]

    @property
    def kind(self) -> tuple[object, ...]:
        """Return a tuple of what all scenes of a store must share, for comparison with the tuple of another scene.

        It has the bands, their types, and the ratios of pixel sizes.
        """
        return tuple((layer.ratio, tuple((band.name, band.dtype) for band in layer.bands)) for layer in self.layers)


def open_scene_file(path: Path, driver: str) -> DatasetReader:
    """Open a scene's file with the GDAL driver `driver` and no other. Return the open file.

    Raises:
        DataError: The file cannot be opened.
    """
    with (
        explained_raster(path),
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.Env(**IMAGE_SETTINGS),
    ):
        return rasterio.open(path, driver=driver, sharing=False)


def describe_file(path: Path) -> tuple[SceneBand, ...]:
    """Return descriptions of the bands in a file of a scene, without bands of transparency.

    If the file does not name its bands, three 8-bit bands become B04, B03, B02, and other bands get numbers.

    Raises:
        DataError: The file cannot be read, has no coordinate system, is turned, has neither 8 nor 16 bits, has several
            pages or a palette, or has a mask in a file of its own.
    """
    driver = scene_driver(path)
    with open_scene_file(path, driver) as file:
        if driver == "GTiff" and file.subdatasets:
            raise DataError(f"{path} has several pages. Write each as a file of its own (gdal_translate).")
        grid = grid_of(file)
        if grid is None:
            raise DataError(
                f"{path} has no coordinate system (CRS), or is turned against it. Set it with gdal_edit.py -a_srs "
                "EPSG:CODE -a_ullr LEFT TOP RIGHT BOTTOM, or warp the file with gdalwarp."
            )
        if path.with_name(f"{path.name}.msk").exists():
            raise DataError(
                f"{path}.msk marks pixels in a file of its own, which is not read. Put it into {path.name}."
            )
        kept = [
            index for index, color in zip(file.indexes, file.colorinterp, strict=True) if color != ColorInterp.alpha
        ]
        if any(file.colorinterp[index - 1] == ColorInterp.palette for index in kept):
            raise DataError(f"{path} has a table of colors: it is a picture or a map, not a scene.")
        wrong = sorted({file.dtypes[index - 1] for index in kept} - {"uint8", "uint16"})
        if wrong or not kept:
            raise DataError(
                f"{path} has values of type {', '.join(wrong)}, and stores hold uint8 and uint16. Give its "
                "original numbers (gdal_translate -ot UInt16 -scale changes a type)."
            )
        return tuple(
            SceneBand(
                name,
                path,
                driver,
                index,
                MaskFlags.all_valid not in file.mask_flag_enums[index - 1],
                file.dtypes[index - 1],
                file.height,
                file.width,
                grid,
                numbers_of(file, index),
                name == canonical_band(file.descriptions[index - 1] or ""),
            )
            for index, name in zip(kept, _names(file, kept), strict=True)
        )


def _names(file: DatasetReader, kept: Sequence[int]) -> list[str]:
    """Return names for bands of a file: those that the file states, if each band has one of its own.

    Otherwise, three 8-bit bands are taken for red, green and blue (B04, B03, B02), and other bands get numbers.

    Args:
        file: The open file.
        kept: Numbers of the bands in the file, from 1.
    """
    described = [canonical_band(file.descriptions[index - 1] or "") for index in kept]
    if all(described) and len(set(described)) == len(described):
        return described
    if len(kept) == 3 and file.dtypes[kept[0] - 1] == "uint8":
        return ["B04", "B03", "B02"]
    return [str(number) for number in range(1, len(kept) + 1)]


def canonical_band(name: str) -> str:
    """Return the usual spelling of a Sentinel-2 band's name: `B04` for `B4`, `b04` or `B4, central wavelength`.

    Any other name is returned as it is, but without spaces around it.
    """
    start = re.split(r"[,;:(\s]", name.strip(), maxsplit=1)[0]
    match = _SENTINEL.fullmatch(start)
    return f"B{int(match[1]):02d}" if match else ("B8A" if start.upper() == "B8A" else name.strip())


def other_names(given: Sequence[str], place: str, stated: Sequence[str]) -> ConfigError:
    """Make the error for band names that contradict those in a file. Return it for the caller to raise.

    Args:
        given: Names that the user gave.
        place: Name of the image or scene.
        stated: Names that the file states.
    """
    return ConfigError(
        f"the band names {', '.join(given)} are given, and {place} names its bands {', '.join(stated)}. Leave the "
        "names out: only files without names need them."
    )


def arrange_scene(name: str, bands: Sequence[SceneBand]) -> SceneImage:
    """Group the bands of a scene by pixel size into layers, and return the scene.

    All layers must share a grid: one corner, and pixel sizes that are multiples of the smallest.

    Args:
        name: Name of the scene.
        bands: Bands of the scene, from one or several files.

    Raises:
        DataError: The bands have no common grid, or two have one name.
    """
    names = [band.name for band in bands]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise DataError(f"{name} has band {twice} twice. Name the bands with --band-names, or leave a file out.")
    finest = min(bands, key=lambda band: band.grid.width)
    layers: dict[int, list[SceneBand]] = {}
    for band in bands:
        if band.grid.crs != finest.grid.crs:
            raise DataError(
                f"{band.path} has another coordinate system than {finest.path}. Warp them to one (gdalwarp)."
            )
        ratio = round(band.grid.width / finest.grid.width)
        off = (band.grid.width / finest.grid.width - ratio, band.grid.height / finest.grid.height - ratio)
        away = (band.grid.x - finest.grid.x, band.grid.y - finest.grid.y)
        if max(map(abs, off)) > EQUAL or max(map(abs, away)) > SAME_GRID * finest.grid.width:
            raise DataError(
                f"{band.path} does not lie on the grid of {finest.path}: their corners must be equal, and pixel sizes "
                "multiples of each other. Warp them to one grid: gdalwarp -te LEFT BOTTOM RIGHT TOP -tr SIZE SIZE."
            )
        layers.setdefault(ratio, []).append(band)
    return SceneImage(name, tuple(SceneLayer(tuple(layers[ratio]), ratio) for ratio in sorted(layers)))


class WindowReader:
    """Read rectangular windows of scenes.

    The reader leaves files open between two calls, so GDAL can cache a decoded block of a file for the next window.
    """

    def __init__(self) -> None:
        """Create a reader without open files."""
        self._open: OrderedDict[Path, DatasetReader] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Return the dict of attributes to pickle, without open files: another process opens the files again."""
        return {"_open": OrderedDict()}

    def read(
        self, band: SceneBand, row: int, column: int, height: int, width: int
    ) -> tuple[AnyArray, NDArray[np.bool_]]:
        """Read a window of one band, and return its pixels and its mask.

        Args:
            band: The band to read.
            row: First row of the window, counted from the band's upper edge.
            column: First column of the window, counted from the band's left edge.
            height: Number of rows of the window.
            width: Number of columns of the window.

        Returns:
            Two arrays [height, width]: values after conversion to the numbers that students expect, and True for
            measured pixels.

        Raises:
            DataError: The file cannot be read.
        """
        window = Window(column, row, width, height)
        with explained_raster(band.path), rasterio.Env(**IMAGE_SETTINGS):
            file = self._file(band)
            stored: AnyArray = file.read(band.index, window=window)
            there = np.ones(stored.shape, np.bool_)
            if band.masked:
                there &= file.read_masks(band.index, window=window) > 0
        known = band.numbers.measured(stored)
        return band.numbers.converted(stored), there if known is None else there & known

    def measured(self, band: SceneBand, row: int, height: int) -> NDArray[np.bool_]:
        """Return which pixels in `height` rows of a band, from the row `row` on, are measured.

        The result has booleans [height, width], and the width is that of the band.

        Raises:
            DataError: The file cannot be read.
        """
        if not band.marked:
            return np.ones((height, band.width), np.bool_)
        return self.read(band, row, 0, height, band.width)[1]

    def _file(self, band: SceneBand) -> DatasetReader:
        if band.path in self._open:
            self._open.move_to_end(band.path)
            return self._open[band.path]
        while len(self._open) >= MOST_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[band.path] = open_scene_file(band.path, band.driver)
        return self._open[band.path]
