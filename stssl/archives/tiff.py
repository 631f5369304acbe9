"""Read the pixels of GeoTIFFs. Read uncompressed strips directly, and all other files through rasterio (`images`).

BigEarthNet has 7.7 million files: each one is a header and a block of 16-bit numbers. GDAL needs milliseconds to open
one, so this module reads such simple files directly. It checks every tag that it uses, and leaves all other files to
rasterio.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stssl.archives.images import opened, read_bytes, read_stored
from stssl.store.schema import BadPatchError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES = 256, 257, 258, 259, 273, 277
_ROWS, _COUNTS, _PLANAR, _PREDICTOR, _TILE, _FORMAT = 278, 279, 284, 317, 322, 339
_TIEPOINT, _GEOKEYS, _PROJECTED = 33922, 34735, 3072
_ASCII = 2
_POINT, _UNITS, _METRE, _USER_DEFINED = 1025, 3076, 9001, 32767
_SIZES = {3: ("H", 2), 4: ("I", 4), 12: ("d", 8)}
TagValues = tuple[Any, ...]
"""Values of a tag: numbers or bytes, by the tag's type in the file."""
_EXPECTED: dict[int, TagValues] = {
    _BITS: (16,),
    _COMPRESSION: (1,),
    _SAMPLES: (1,),
    _PLANAR: (1,),
    _PREDICTOR: (1,),
    _FORMAT: (1,),
}
_NEEDED = (_WIDTH, _HEIGHT, _BITS, _OFFSETS, _COUNTS)
_KIND, _PHOTOMETRIC, _ORIENTATION, _EXTRA, _NODATA = 254, 262, 274, 338, 42113
_EXPECTED |= {_KIND: (0,), _PHOTOMETRIC: (1,), _ORIENTATION: (1,), _NODATA: (b"0",)}
"""Required value of each tag that is present. BigEarthNet v2 declares 0 as its nodata value."""
_ABSENT: dict[int, TagValues] = {_KIND: (0,), _NODATA: (b"0",)}
"""Values of absent tags with a default other than 1."""
_RELEVANT = frozenset({*_NEEDED, *_EXPECTED, _ROWS, _TILE, _TIEPOINT, _GEOKEYS, _EXTRA})


def _tags(data: bytes) -> dict[int, TagValues] | None:
    """Return the relevant tags of a little-endian classic TIFF with one image; None for any other file.

    The result is a dict from the number of a tag to its values.

    Args:
        data: Bytes of the file.

    Raises:
        struct.error: The file is truncated.
    """
    if data[:4] != b"II*\0":
        return None
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    if struct.unpack_from("<I", data, start + 2 + 12 * entries) != (0,):
        return None
    found: dict[int, TagValues] = {}
    for tag, kind, count, value in struct.iter_unpack("<HHI4s", data[start + 2 : start + 2 + 12 * entries]):
        if tag not in _RELEVANT:
            continue
        if tag == _NODATA and kind == _ASCII:
            at = 0 if count <= 4 else struct.unpack("<I", value)[0]
            found[tag] = ((value if count <= 4 else data)[at : at + count].rstrip(b"\0 "),)
            continue
        if kind not in _SIZES:
            return None
        letter, size = _SIZES[kind]
        place = (value, 0) if count * size <= 4 else (data, struct.unpack("<I", value)[0])
        found[tag] = struct.unpack_from(f"<{count}{letter}", *place)
    return found


def strip_spans(data: bytes) -> NDArray[np.uint16] | None:
    """Read the pixels of a TIFF with one 16-bit unsigned band in uncompressed strips.

    Args:
        data: Bytes of the file.

    Returns:
        Pixels [H, W]; None for any other file and for a truncated one. The caller then tries rasterio.
    """
    try:
        tags = _tags(data)
        plain = tags is not None and _plain(tags, len(data))
    except (struct.error, IndexError, ValueError):
        return None
    if tags is None or not plain:
        return None
    height, width, offsets, counts = tags[_HEIGHT][0], tags[_WIDTH][0], tags[_OFFSETS], tags[_COUNTS]
    ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
    # If the strips follow each other in the file, take one view of its bytes: this copies no pixels.
    if ends[:-1] == list(offsets[1:]):
        pixels = np.frombuffer(data, "<u2", height * width, offsets[0])
    else:
        parts = [data[offset:end] for offset, end in zip(offsets, ends, strict=True)]
        pixels = np.frombuffer(b"".join(parts), "<u2")
    return pixels.reshape(height, width).astype(np.uint16, copy=False)


def _plain(tags: dict[int, TagValues], size: int) -> bool:
    """Return True if `strip_spans` can read a TIFF: one uint16 band, in uncompressed strips that are all in the file.

    Args:
        tags: Values of each tag of the TIFF, by the tag's number.
        size: Size of the file in bytes.
    """
    if _TILE in tags or _EXTRA in tags or any(tag not in tags for tag in _NEEDED):
        return False
    if any(
        tags.get(tag, value if tag == _NODATA else (1 if tag != _KIND else 0,)) != value
        for tag, value in _EXPECTED.items()
    ):
        return False
    row = 2 * tags[_WIDTH][0]
    rows, per_strip = tags[_HEIGHT][0], tags.get(_ROWS, tags[_HEIGHT])[0]
    # Check the size before the loop over rows: a damaged header may claim 2**32 rows.
    if row * rows > size:
        return False
    expected = [min(per_strip, rows - start) * row for start in range(0, rows, per_strip)] if per_strip else []
    offsets, counts = tags[_OFFSETS], tags[_COUNTS]
    return (
        list(counts) == expected
        and len(offsets) == len(counts)
        and max(map(sum, zip(offsets, counts, strict=True))) <= size
    )


@dataclass(frozen=True)
class Georeference:
    """Hold the corners of a raster image in its projection.

    Attributes:
        projection: EPSG code, or WKT if the projection has no code.
        upper_left: x and y of the upper left corner, in units of the projection.
        lower_right: x and y of the lower right corner, in units of the projection.
    """

    projection: int | str
    upper_left: tuple[float, float]
    lower_right: tuple[float, float]

    @property
    def center(self) -> tuple[float, float]:
        """Return x and y of the center of the raster image, in units of its projection."""
        (left, top), (right, bottom) = self.upper_left, self.lower_right
        return (left + right) / 2, (top + bottom) / 2


class UtmCorner(NamedTuple):
    """Hold the upper left corner of a raster: EPSG code of the projection, easting and northing in meters."""

    epsg: int
    ulx: float
    uly: float


def georeference(source: Path | BytesIO, name: str) -> Georeference:
    """Return the projection and the corners of a raster image, read from its georeference.

    Args:
        source: Path of the file, or an open file in memory.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The file cannot be read, has no georeference, or is turned against its projection.
    """
    with opened(read_bytes(source, name), name) as file:
        if file.crs is None or file.transform.is_identity:
            raise BadPatchError("bad_coordinates", f"{name} is not georeferenced")
        if file.transform.b or file.transform.d:
            raise BadPatchError("bad_coordinates", f"{name} is turned against its projection")
        bounds = file.bounds
        projection = file.crs.to_epsg() or file.crs.to_wkt()
    return Georeference(projection, (bounds.left, bounds.top), (bounds.right, bounds.bottom))


def utm_corner(data: bytes) -> UtmCorner | None:
    """Return EPSG code and upper left corner of a GeoTIFF in a projected system with units of meters.

    Return None for any other file, which GDAL must read.

    Args:
        data: Bytes of the file.
    """
    try:
        tags = _tags(data)
        if tags is None or not {_TIEPOINT, _GEOKEYS} <= tags.keys():
            return None
        keys = tags[_GEOKEYS]
        entries = {keys[i]: keys[i + 1 : i + 4] for i in range(4, len(keys), 4)}
        location, _, code = entries[_PROJECTED]
        column, row, _, x, y, _ = tags[_TIEPOINT]
    except (struct.error, KeyError, ValueError, IndexError):
        return None
    plain = location == 0 and column == row == 0 and code < _USER_DEFINED
    # Leave two cases to GDAL: points, whose tie point lies half a pixel off the corner, and units other than meters,
    # as the result is in meters.
    plain = plain and entries.get(_POINT, (0, 1, 1))[2] == 1 and entries.get(_UNITS, (0, 1, _METRE))[2] == _METRE
    return UtmCorner(int(code), x, y) if plain else None


def read_band(path: Path, size: int) -> NDArray[np.uint16]:
    """Read a file with one band of 16-bit unsigned pixels. Return the pixels [size, size].

    Args:
        path: Path of the file.
        size: Width and height that the image must have, in pixels.

    Raises:
        BadPatchError: The file is missing, unreadable or truncated, has another size or type, or has pixels that are
            not measured and not 0.
    """
    data = read_bytes(path, path.name)
    pixels = strip_spans(data)
    if pixels is None:
        image, measured = read_stored(path, path.name)
        if len(image) != 1 or image.dtype != np.uint16:
            raise BadPatchError("wrong_size", f"{path.name} has {len(image)} bands of {image.dtype}, not one of uint16")
        if image[~measured].any():
            raise BadPatchError("nodata", f"{path.name} declares {int((~measured).sum()):,} pixels as not measured")
        pixels = image[0].astype(np.uint16, copy=False)
    if pixels.shape != (size, size):
        words = f"{path.name} has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {size}x{size}"
        raise BadPatchError("wrong_size", words)
    return pixels
