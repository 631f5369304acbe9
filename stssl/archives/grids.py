"""Describe where the pixels of an image lie: its coordinate system, its corner, and its pixel size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from stssl.archives.places import crs_of, to_degrees
from stssl.store.schema import Values

Doubles = NDArray[np.float64]
EQUAL = 0.02
"""Largest relative difference between pixel sizes that count as equal."""
MEASURED_PIXELS = 100
"""Number of pixels over which the pixel size on the ground is measured."""


@dataclass(frozen=True)
class ImageGrid:
    """Describe where the pixels of an image lie: coordinate system, upper left corner and pixel size.

    The image must not be turned: north is up in its coordinate system.

    Attributes:
        crs: Coordinate system, such as `EPSG:32633`; as WKT if it has no EPSG code.
        x: Coordinate of the image's left edge.
        y: Coordinate of the image's upper edge.
        width: Width of a pixel in units of the coordinate system.
        height: Height of a pixel in units of the coordinate system, above 0.
    """

    crs: str
    x: float
    y: float
    width: float
    height: float

    def at(self, row: int, column: int) -> "ImageGrid":
        """Return the grid of a part of the image: its upper left pixel is the image's pixel in `row` and `column`."""
        return replace(self, x=self.x + column * self.width, y=self.y - row * self.height)

    def resized(self, down: float, across: float) -> "ImageGrid":
        """Return the grid of a resampled image, with pixels `down` times as high and `across` times as wide as now."""
        return replace(self, width=self.width * across, height=self.height * down)

    @property
    def meters(self) -> float:
        """Return the width of a pixel on the ground in meters.

        Return 0 if pixels are not square or have no place on the Earth. Units of a coordinate system are not always
        meters on the ground: those of Web Mercator are not.
        """
        x, y, width, height = self.x, self.y, MEASURED_PIXELS * self.width, MEASURED_PIXELS * self.height
        try:
            lat, lon = to_degrees(_definition(self.crs), [x, x + width, x], [y, y, y - height])
        except ValueError:
            return 0.0
        if not (np.isfinite(lat).all() and np.isfinite(lon).all()):
            return 0.0
        north, east = degree_meters(float(lat[0]))
        turned = (lon - lon[0] + 180) % 360 - 180
        across, down = np.hypot((lat[1:] - lat[0]) * north, turned[1:] * east) / MEASURED_PIXELS
        if min(across, down) <= 0 or abs(across / down - 1) > EQUAL:
            return 0.0
        return float(self.width) if abs(across / self.width - 1) < EQUAL else float(across)

    @property
    def columns(self) -> Values:
        """Return coordinate system, upper left corner and pixel size of the image as a dict of store columns."""
        sizes = {"pixel_width": self.width, "pixel_height": self.height}
        return {"crs": self.crs, "corner_x": self.x, "corner_y": self.y, **sizes}


def system_of(crs: str) -> CRS:
    """Return rasterio's coordinate system for a text in the form of `ImageGrid.crs`: `EPSG:32633`, for example, or WKT.

    Raises:
        ValueError: PROJ does not know this system.
    """
    return crs_of(_definition(crs))


def _definition(crs: str) -> str | int:
    """Convert a text in the form of `ImageGrid.crs` to the form that `to_degrees` takes.

    `EPSG:32633` becomes the number 32633, and WKT stays as it is.
    """
    return int(crs.removeprefix("EPSG:")) if crs.startswith("EPSG:") else crs


def degree_meters(latitude: float) -> tuple[float, float]:
    """Return the length of a degree of latitude and that of a degree of longitude at a place, in meters (WGS 84).

    Args:
        latitude: Latitude of the place in degrees.
    """
    at = math.radians(latitude)
    north = 111132.92 - 559.82 * math.cos(2 * at) + 1.175 * math.cos(4 * at)
    return north, 111412.84 * math.cos(at) - 93.5 * math.cos(3 * at) + 0.118 * math.cos(5 * at)


def footprint(crs: str, xs: Sequence[float], ys: Sequence[float]) -> tuple[Doubles, Doubles]:
    """Convert the coordinates of n points to longitudes and latitudes in degrees (WGS 84).

    Args:
        crs: Coordinate system of the points, such as `EPSG:32633` or WKT.
        xs: [n] x coordinates of the points.
        ys: [n] y coordinates of the points.

    Returns:
        Longitudes [n] and latitudes [n]; both are NaN for a point that cannot be converted.
    """
    try:
        lat, lon = to_degrees(_definition(crs), xs, ys)
    except ValueError:
        return np.full(len(xs), np.nan), np.full(len(xs), np.nan)
    known = np.isfinite(lat) & np.isfinite(lon)
    return np.where(known, lon, np.nan), np.where(known, lat, np.nan)


def grid_of(file: DatasetReader) -> ImageGrid | None:
    """Return coordinate system, upper left corner and pixel size of an open image.

    Return None if the image has no coordinate system, or north is not up in it.
    """
    plane = file.transform
    if file.crs is None or plane.is_identity or plane.b or plane.d or plane.a <= 0 or plane.e >= 0:
        return None
    if not all(map(math.isfinite, (plane.a, plane.c, plane.e, plane.f))):
        return None
    code = file.crs.to_epsg()
    return ImageGrid(f"EPSG:{code}" if code else file.crs.to_wkt(), plane.c, plane.f, plane.a, -plane.e)


def common_meters(grids: Sequence[ImageGrid | None]) -> float:
    """Return the pixel size in meters that all images share; 0 if the sizes differ, or one is unknown.

    Sizes that differ from the first one by at most 2 % count as equal to it; the first one is returned.

    Args:
        grids: Grid of each image; None for an image without one.
    """
    sizes = [0.0 if grid is None else grid.meters for grid in grids]
    if not sizes or min(sizes) <= 0 or max(sizes) / min(sizes) - 1 > EQUAL:
        return 0.0
    return sizes[0]
