"""Find the place of an image from its file: from a geotransform, control points, rational polynomials or EXIF.

If a file says nothing about its place, the image has no place, which is no error. If a file gives an unusable place,
this is an error. Examples of unusable places are a projection without a geotransform, a local grid, and a place on
another planet.
"""

import math
import re
from io import BytesIO
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer, from_gcps
from rasterio.warp import transform

from stssl.archives.base import good_place
from stssl.archives.images import exif_of, opened, read_bytes
from stssl.store.schema import BadPatchError

_GPS, _EXIF_GPS = 0x8825, (1, 2, 3, 4)
_FIT = 0.1
"""Largest distance of a control point from the common plane of all points, as a share of their diagonal."""


def place_in(source: Path | BytesIO, name: str) -> tuple[float, float] | None:
    """Find the latitude and longitude of an image's center from its file.

    Args:
        source: Path of the file, or an open file in memory.
        name: Name of the image in messages.

    Returns:
        Latitude and longitude in degrees (WGS 84); None if the file says nothing about its place.

    Raises:
        BadPatchError: The file cannot be read, or its information on the place is unusable.
    """
    data = read_bytes(source, name)
    with opened(data, name) as file:
        found = _center(file, name)
    if found is None:
        found = _exif(data)
    if found is None:
        return None
    lat, lon = found
    if not good_place(lat, lon):
        raise BadPatchError("bad_coordinates", f"{name} lies at latitude {lat:.6g}, longitude {lon:.6g}")
    return lat, lon


def _center(file: DatasetReader, name: str) -> tuple[float, float] | None:
    """Return the latitude and longitude of the center of an open image in degrees (WGS 84).

    Return None if the file says nothing about its place. EXIF tags are not read.

    Args:
        file: The open image.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The file's information on the place is unusable.
    """
    row, column = file.height / 2, file.width / 2
    points, points_crs = file.gcps
    if not file.transform.is_identity:
        if file.crs is None:
            raise BadPatchError("bad_coordinates", f"{name} has a geotransform and no projection")
        return _degrees(file.crs, *_applied(file.transform, column, row), name)
    if points:
        return _from_points(points, points_crs or file.crs, (column, row), name)
    if file.rpcs is not None:
        return _from_rpcs(file.rpcs, row, column, name)
    if file.crs is not None:
        raise BadPatchError("bad_coordinates", f"{name} has a projection and no geotransform")
    return None


def _degrees(crs: CRS, x: float, y: float, name: str) -> tuple[float, float]:
    """Convert a point in a geographic or projected coordinate system to latitude and longitude in degrees (WGS 84).

    Args:
        crs: Coordinate system of the point.
        x: Easting or longitude of the point.
        y: Northing or latitude of the point.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The system is of another kind, or the point lies outside the system's area.
    """
    if not (crs.is_geographic or crs.is_projected):
        raise BadPatchError("bad_coordinates", f"{name} has coordinates that are neither degrees nor a map projection")
    if re.search(r"nadgrids=(?!@null)", crs.to_wkt()):
        # Refuse a projection that names its own grid file: PROJ would open this file, wherever it lies.
        raise BadPatchError("bad_coordinates", f"{name} has a projection that needs another file")
    try:
        lon, lat = transform(crs, CRS.from_epsg(4326), [x], [y])
    except (RasterioError, CPLE_BaseError) as error:
        words = str(error).splitlines()[0] if str(error) else "unknown projection"
        raise BadPatchError("bad_coordinates", f"{name}: its place cannot be projected ({words})") from None
    if not (math.isfinite(lat[0]) and math.isfinite(lon[0])):
        raise BadPatchError("bad_coordinates", f"{name} lies outside its projection's area")
    place = lat[0], _wrapped(lon[0])
    if crs.is_projected and good_place(*place):
        # Project the place back and compare: PROJ returns finite degrees even far outside a projection's area.
        back = transform(CRS.from_epsg(4326), crs, [place[1]], [place[0]])
        if max(abs(back[0][0] - x), abs(back[1][0] - y)) > 1e-3 * max(abs(x), abs(y), 1.0):
            raise BadPatchError("bad_coordinates", f"{name} lies outside its projection's area")
    return place


def _wrapped(lon: float) -> float:
    """Return a longitude beyond 180 degrees, up to 360 east or west, as the equal one from -180 to 180.

    Return other numbers unchanged: the caller refuses those that are no longitude.
    """
    return lon - 360 * math.copysign(1, lon) if 180 < abs(lon) <= 360 else lon


def _applied(plane: Affine, column: float, row: float) -> tuple[float, float]:
    """Return x and y on the ground of a point in an image, computed by an affine transform.

    Args:
        plane: Transform from pixels to the coordinate system of the image.
        column: Column of the point, counted from the left edge.
        row: Row of the point, counted from the upper edge.
    """
    return plane.a * column + plane.b * row + plane.c, plane.d * column + plane.e * row + plane.f


def _from_points(
    points: list[GroundControlPoint], crs: CRS | None, center: tuple[float, float], name: str
) -> tuple[float, float]:
    """Return latitude and longitude of an image's center in degrees, from an affine plane through its control points.

    Args:
        points: Ground control points, each with row and column in the image, and x and y on the ground. In a geographic
            system, their x may be changed in place by multiples of 360.
        crs: Coordinate system of the points; None if the file states none.
        center: Column and row of the center.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The points have no projection, span no area, or do not lie near one plane.
    """
    if crs is None:
        raise BadPatchError("bad_coordinates", f"{name} has control points and no projection")
    pixels = np.array([(point.col, point.row, 1.0) for point in points])
    if crs.is_geographic:
        for point in points:  # -179.9 and 179.9 degrees are neighbors, but the fitted plane takes them for far apart
            point.x -= 360 * round((point.x - points[0].x) / 360)
    ground = np.array([(point.x, point.y) for point in points])
    if len(points) < 3 or np.linalg.matrix_rank(pixels) < 3:
        raise BadPatchError("bad_coordinates", f"{name} has {len(points)} control points, which span no area")
    plane = from_gcps(points)
    # If the points do not fit a plane, it could put the center anywhere. An error is better than a wrong place.
    missed = np.array([_applied(plane, column, row) for column, row, _ in pixels]) - ground
    if np.linalg.norm(missed, axis=1).max() > _FIT * max(float(np.linalg.norm(np.ptp(ground, axis=0))), 1e-12):
        raise BadPatchError("bad_coordinates", f"{name} has control points that lie in no plane")
    return _degrees(crs, *_applied(plane, *center), name)


def _from_rpcs(rpcs: RPC, row: float, column: float, name: str) -> tuple[float, float]:
    """Return latitude and longitude of an image's center in degrees, from its rational polynomials (RPC).

    Args:
        rpcs: The polynomials. Their mean height is taken as the height of the center.
        row: Row of the center.
        column: Column of the center.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The polynomials cannot be used.
    """
    try:
        with RPCTransformer(rpcs) as rays:
            xs, ys = rays.xy([row], [column], zs=[rpcs.height_off], offset="ul")
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise BadPatchError("bad_coordinates", f"{name}: its rational polynomials cannot be used ({error})") from None
    return float(ys[0]), _wrapped(float(xs[0]))


def _exif(data: bytes) -> tuple[float, float] | None:
    """Return the latitude and longitude of the camera in degrees, from the EXIF tags of an image.

    Return None if the tags are missing or unusable.

    Args:
        data: Bytes of the image file.
    """
    about = exif_of(data).get_ifd(_GPS)
    try:
        south, lat, west, lon = (about[key] for key in _EXIF_GPS)
        degrees = [sum(float(part) / 60**i for i, part in enumerate(value)) for value in (lat, lon)]
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        return None
    signs = (-1 if str(south)[:1] == "S" else 1, -1 if str(west)[:1] == "W" else 1)
    return degrees[0] * signs[0], degrees[1] * signs[1]
