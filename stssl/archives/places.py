"""Convert between projected coordinates and latitude and longitude."""

from functools import lru_cache

import numpy as np
import rasterio
from numpy.typing import ArrayLike, NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform

WGS84 = 4326


@lru_cache(maxsize=256)
def crs_of(definition: str | int) -> CRS:
    """Return rasterio's coordinate system for a WKT text or the number of an EPSG code.

    Raises:
        ValueError: PROJ does not know the system.
    """
    try:
        with rasterio.Env():  # without it, GDAL prints PROJ's messages to the terminal
            return CRS.from_epsg(definition) if isinstance(definition, int) else CRS.from_wkt(definition)
    except (RasterioError, CPLE_BaseError) as error:
        raise ValueError(f"unknown projection: {error}") from None


@lru_cache(maxsize=256)
def epsg_of(definition: str) -> int:
    """Return the EPSG code of a coordinate system that is given as WKT; 0 if it has no code."""
    return crs_of(definition).to_epsg() or 0


def to_degrees(definition: str | int, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert projected coordinates to latitudes and longitudes in degrees (WGS 84).

    Args:
        definition: EPSG code or WKT of the projection.
        x: Eastings in units of the projection: one number or an array.
        y: Northings in units of the projection: one number or an array.

    Returns:
        Latitudes and longitudes, two arrays [n]; n is 1 if one number is given. PROJ may return infinity for a point
        outside the area of the projection.

    Raises:
        ValueError: The projection is unknown, or the coordinates lie outside its area.
    """
    try:
        lon, lat = transform(crs_of(definition), crs_of(WGS84), np.atleast_1d(x).tolist(), np.atleast_1d(y).tolist())
    except (RasterioError, CPLE_BaseError) as error:
        raise ValueError(f"coordinates cannot be projected: {error}") from None
    return np.array(lat), np.array(lon)


def from_degrees(epsg: int, lat: ArrayLike, lon: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert latitudes and longitudes in degrees (WGS 84) to projected coordinates.

    Args:
        epsg: EPSG code of the projection.
        lat: Latitudes: one number or an array.
        lon: Longitudes: one number or an array.

    Returns:
        Eastings and northings in units of the projection, two arrays [n]; n is 1 if one number is given.
    """
    x, y = transform(crs_of(WGS84), crs_of(epsg), np.atleast_1d(lon).tolist(), np.atleast_1d(lat).tolist())
    return np.array(x), np.array(y)
