"""Open the files of a scene by a chosen GDAL driver, and read what they say about their bands."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from stssl.archives.band_numbers import BandNumbers, numbers_of
from stssl.archives.raster_files import explained_raster, scene_driver
from stssl.base.errors import DataError

GDAL_CACHE = 128 << 20
"""Most bytes of decoded blocks that GDAL keeps."""
SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_CACHEMAX": GDAL_CACHE,
}
"""GDAL's settings for reading and writing scenes."""


@dataclass(frozen=True)
class RasterBand:
    """Describe one band of a raster file.

    Attributes:
        index: Number of the band in its file, from 1.
        description: Description of the band in the file; empty if there is none.
        dtype: Type of the stored values, such as `uint16`.
        masked: True if the file marks pixels that are not measured, by a nodata value, a mask or transparency.
        numbers: How to convert its stored numbers to those that students expect, as far as the file itself says it.
    """

    index: int
    description: str
    dtype: str
    masked: bool
    numbers: BandNumbers


@dataclass(frozen=True)
class Raster:
    """Describe a raster file: its grid on the ground and its bands.

    Attributes:
        path: The file.
        driver: GDAL driver that opens it. No other driver is tried.
        crs: Coordinate system as WKT.
        transform: Affine transform from pixels to coordinates.
        width: Width in pixels.
        height: Height in pixels.
        bands: Bands, except a band of transparency.
    """

    path: Path
    driver: str
    crs: str
    transform: Affine
    width: int
    height: int
    bands: tuple[RasterBand, ...]


@contextlib.contextmanager
def opened_raster(path: Path, driver: str) -> Iterator[DatasetReader]:
    """Return a context in which a raster file is open for reading by one GDAL driver. Its value is the open file.

    Args:
        path: The file.
        driver: Name of the GDAL driver, as `scene_driver` returns it. No other driver is tried.

    Raises:
        DataError: The file cannot be opened or read.
    """
    with explained_raster(path), quiet(), rasterio.open(path, driver=driver, sharing=False) as file:
        yield file


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Return a context with the GDAL settings for scenes. It hides warnings about files without coordinates."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.Env(**SETTINGS):
        yield


def describe_raster(path: Path) -> Raster:
    """Read a raster file's grid on the ground and the descriptions of its bands, and return them.

    Raises:
        DataError: The file cannot be read, has no coordinate system or a rotated grid, or is no image of a scene. For
            example, it has several pages, a color table, or its mask in another file.
    """
    driver = scene_driver(path)
    with opened_raster(path, driver) as file:
        if driver == "GTiff" and file.subdatasets:
            raise DataError(f"{path} has several pages. Write each as a file of its own (gdal_translate).")
        if file.crs is None or file.transform.is_identity:
            raise DataError(
                f"{path} has no coordinate system or no place (CRS). Set it: gdal_edit.py -a_srs EPSG:CODE -a_ullr "
                "LEFT TOP RIGHT BOTTOM FILE."
            )
        transform = file.transform
        if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
            raise DataError(f"{path} is turned against its coordinate system. Warp it with gdalwarp first.")
        if path.with_name(f"{path.name}.msk").exists():
            raise DataError(
                f"{path}.msk marks pixels in a file of its own, which is not read. Put it into {path.name}."
            )
        return Raster(path, driver, file.crs.to_wkt(), transform, file.width, file.height, tuple(_bands(file)))


def _bands(file: DatasetReader) -> Iterator[RasterBand]:
    """Yield a description of each band of an open file, except of a band of transparency.

    Raises:
        DataError: A band has a color table.
    """
    for place, index in enumerate(file.indexes):
        if file.colorinterp[place] == ColorInterp.alpha:
            continue
        if file.colorinterp[place] == ColorInterp.palette:
            raise DataError(f"{file.name} has a table of colors: it is a picture or a map, not a scene.")
        masked = MaskFlags.all_valid not in file.mask_flag_enums[place]
        yield RasterBand(index, file.descriptions[place] or "", file.dtypes[place], masked, numbers_of(file, index))
