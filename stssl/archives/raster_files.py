"""Choose the GDAL driver of a scene's file, and explain errors of reading it.

GDAL chooses a format by content, and some formats (VRT, WMS) make it read any other file. So the first bytes of a file
choose GeoTIFF or JPEG 2000, and only that driver opens it. Files beside it (`.aux.xml`, `.ovr`) are never opened.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from stssl.archives.images import DRIVERS
from stssl.base.errors import DataError, shown
from stssl.base.whole_files import open_plain

SCENE_DRIVERS = ("GTiff", "JP2OpenJPEG")
SCENE_ENDINGS = (".tif", ".tiff", ".jp2")
"""Endings of the files that a folder is searched for."""
READ_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError)
"""Errors that GDAL and rasterio raise for damaged files."""
MOST_NAME = 300
"""Largest number of letters of a path in a message."""


def scene_driver(path: Path) -> str:
    """Return the name of the GDAL driver for a file of a scene, such as `GTiff`, chosen by the first bytes of the file.

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
    driver = next((driver for head, driver in DRIVERS.items() if start.startswith(head)), "")
    if driver not in SCENE_DRIVERS:
        vrt = b"<VRTDataset" in start
        kind = "a VRT, which can make GDAL read any other file" if vrt else "neither a GeoTIFF nor a JPEG 2000 file"
        raise DataError(f"{path} is {kind}. Give GeoTIFFs or a Sentinel-2 .SAFE folder; gdal_translate converts files.")
    return driver


@contextlib.contextmanager
def explained_raster(path: Path) -> Iterator[None]:
    """Return a context that turns GDAL's errors about the file `path` of a scene into a `DataError` of one line."""
    try:
        yield
    except READ_ERRORS as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        words = re.sub(r"\s+", " ", str(cause)).replace(f"{path.parent}/", "")
        raise DataError(
            f"cannot read {shown(str(path), MOST_NAME)}: {shown(words, 200)}. It may be truncated: copy it again."
        ) from None
