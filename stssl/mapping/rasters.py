"""Open the files of a scene by one of two GDAL drivers, and read what they say about their bands.

GDAL chooses a format by content, and some formats (VRT, WMS) make it read any other file. So the first bytes of a file
choose GeoTIFF or JPEG 2000, and only that driver opens it. Files beside it (`.aux.xml`, `.ovr`) are never opened.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from stssl.archives.images import DRIVERS
from stssl.base.errors import DataError, shown
from stssl.base.whole_files import open_plain

SCENE_DRIVERS = ("GTiff", "JP2OpenJPEG")
READ_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError)
"""Errors that GDAL and rasterio raise for damaged files."""
GDAL_CACHE = 128 << 20
"""Most bytes of decoded blocks that GDAL keeps."""
MOST_NAME = 300
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
        description: Description of the band by the file; empty if there is none.
        dtype: Type of the stored values, such as `uint16`.
        masked: True if the file marks pixels that are not measured, by a nodata value, a mask or transparency.
        shift: Number to add to stored values, in stored units, so that 0 means zero reflectance.
    """

    index: int
    description: str
    dtype: str
    masked: bool
    shift: float


@dataclass(frozen=True)
class Raster:
    """Describe a raster file: its grid on the ground and its bands.

    Attributes:
        path: The file.
        driver: GDAL driver that may open it.
        crs: Coordinate system as WKT.
        transform: Affine transform from pixels to coordinates.
        width: Width in pixels.
        height: Height in pixels.
        bands: Bands, without transparency.
    """

    path: Path
    driver: str
    crs: str
    transform: Affine
    width: int
    height: int
    bands: tuple[RasterBand, ...]


def driver_for(path: Path) -> str:
    """Return the GDAL driver for a file of a scene, chosen by the first bytes of the file.

    Raises:
        DataError: The file is empty, cannot be read, or has another format.
    """
    try:
        with open_plain(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"cannot read {shown(str(path), MOST_NAME)}: {error.strerror}.") from None
    if not start:
        raise DataError(f"{path} is empty (0 bytes). Copy or download it again.")
    driver = next((driver for head, driver in DRIVERS.items() if start.startswith(head)), None)
    if driver not in SCENE_DRIVERS:
        kind = (
            "a VRT, which can make GDAL read any other file"
            if b"<VRTDataset" in start
            else "neither a GeoTIFF nor a JPEG 2000"
        )
        raise DataError(f"{path} is {kind}. Give GeoTIFFs or a Sentinel-2 .SAFE folder; gdal_translate converts files.")
    return str(driver)


@contextlib.contextmanager
def opened_raster(path: Path, driver: str) -> Iterator[DatasetReader]:
    """Open a raster file by one driver while the context lasts.

    Args:
        path: The file.
        driver: GDAL driver, of `driver_for`.

    Raises:
        DataError: The file cannot be opened or read.
    """
    with explained_raster(path), quiet(), rasterio.open(path, driver=driver, sharing=False) as file:
        yield file


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Use this module's GDAL settings while the context lasts, and hide warnings about files without a place."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.Env(**SETTINGS):
        yield


@contextlib.contextmanager
def explained_raster(path: Path) -> Iterator[None]:
    """Turn errors of GDAL about a file into a `DataError` of one line."""
    try:
        yield
    except READ_ERRORS as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        words = re.sub(r"\s+", " ", str(cause)).replace(f"{path.parent}/", "")
        raise DataError(
            f"cannot read {shown(str(path), MOST_NAME)}: {shown(words, 200)}. It may be truncated: copy it again."
        ) from None


def describe_raster(path: Path) -> Raster:
    """Read the grid and the bands of a raster file.

    Raises:
        DataError: The file cannot be read, has no coordinate system, is turned, or holds no plain values.
    """
    driver = driver_for(path)
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
    """Yield the bands of an open file, without transparency."""
    for place, index in enumerate(file.indexes):
        if file.colorinterp[place] == ColorInterp.alpha:
            continue
        if file.colorinterp[place] == ColorInterp.palette:
            raise DataError(f"{file.name} has a table of colors: it is a picture or a map, not a scene.")
        scale, offset = float(file.scales[place]), float(file.offsets[place])
        masked = MaskFlags.all_valid not in file.mask_flag_enums[place]
        # Files of some archives state reflectance = scale * value + offset. Students want scale * value.
        shift = offset / scale if offset and scale and np.isfinite(offset / scale) else 0.0
        yield RasterBand(index, file.descriptions[place] or "", file.dtypes[place], masked, shift)
