"""Pixels of GeoTIFFs: a direct reader of plain uncompressed strips, and rasterio for everything else.

Opening a file through GDAL costs milliseconds; BigEarthNet has 7.7 million files that are all a header and a block of
16-bit numbers. The direct reader checks every tag that it relies on, and hands over what it does not know.
"""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from stssl.schema import BadPatchError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES = 256, 257, 258, 259, 273, 277
_ROWS, _COUNTS, _PLANAR, _PREDICTOR, _TILE, _FORMAT = 278, 279, 284, 317, 322, 339
_SIZES = {3: ("H", 2), 4: ("I", 4)}
_EXPECTED = {_BITS: (16,), _COMPRESSION: (1,), _SAMPLES: (1,), _PLANAR: (1,), _PREDICTOR: (1,), _FORMAT: (1,)}
_NEEDED = (_WIDTH, _HEIGHT, _BITS, _OFFSETS, _COUNTS)
_RELEVANT = frozenset({*_NEEDED, *_EXPECTED, _ROWS, _TILE})


def _tags(data: bytes) -> dict[int, tuple[int, ...]] | None:
    """Integer tags of the first image of a little-endian classic TIFF; None where this is something else."""
    if data[:4] != b"II*\0":
        return None
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    if struct.unpack_from("<I", data, start + 2 + 12 * entries) != (0,):
        return None
    found: dict[int, tuple[int, ...]] = {}
    for tag, kind, count, value in struct.iter_unpack("<HHI4s", data[start + 2 : start + 2 + 12 * entries]):
        if tag not in _RELEVANT:
            continue
        if kind not in _SIZES:
            return None
        letter, size = _SIZES[kind]
        place = (value, 0) if count * size <= 4 else (data, struct.unpack("<I", value)[0])
        found[tag] = struct.unpack_from(f"<{count}{letter}", *place)
    return found


def strips(data: bytes) -> NDArray[np.uint16] | None:
    """Pixels [H, W] of a TIFF of one 16-bit unsigned band in uncompressed strips.

    Returns:
        None where the file is anything else, or not whole: rasterio is the judge of those.
    """
    try:
        tags = _tags(data)
    except struct.error:
        return None
    if tags is None or not _plain(tags, len(data)):
        return None
    height, width, offsets, counts = tags[_HEIGHT][0], tags[_WIDTH][0], tags[_OFFSETS], tags[_COUNTS]
    ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
    if ends[:-1] == list(offsets[1:]):
        pixels = np.frombuffer(data, "<u2", height * width, offsets[0])
    else:
        parts = [data[offset:end] for offset, end in zip(offsets, ends, strict=True)]
        pixels = np.frombuffer(b"".join(parts), "<u2")
    return pixels.reshape(height, width).astype(np.uint16, copy=False)


def _plain(tags: dict[int, tuple[int, ...]], size: int) -> bool:
    """Whether these are the tags of one uint16 band in uncompressed whole strips, all within the file."""
    if _TILE in tags or any(tag not in tags for tag in _NEEDED):
        return False
    if any(tags.get(tag, (1,)) != value for tag, value in _EXPECTED.items()):
        return False
    row = 2 * tags[_WIDTH][0]
    rows, per_strip = tags[_HEIGHT][0], tags.get(_ROWS, tags[_HEIGHT])[0]
    expected = [min(per_strip, rows - start) * row for start in range(0, rows, per_strip)] if per_strip else []
    offsets, counts = tags[_OFFSETS], tags[_COUNTS]
    return (
        list(counts) == expected
        and len(offsets) == len(counts)
        and max(map(sum, zip(offsets, counts, strict=True))) <= size
    )


def read_image(path: Path) -> NDArray[Any]:
    """All bands [bands, H, W] of a raster, through rasterio.

    Raises:
        BadPatchError: It cannot be read, or not to its end.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                return np.asarray(file.read())
    except (RasterioError, OSError, ValueError) as error:
        words = str(error).replace(str(path.parent) + "/", "").replace("\n", " ")
        raise BadPatchError("unreadable", f"{path.name}: {words}") from None


def read_band(path: Path, size: int) -> NDArray[np.uint16]:
    """One band [size, size] of 16-bit unsigned pixels.

    Raises:
        BadPatchError: The file is missing, unreadable or truncated, or has another size or type.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadPatchError("missing_band", f"{path.name} is missing") from None
    except OSError as error:
        raise BadPatchError("unreadable", f"{path.name}: {error.strerror}") from None
    pixels: NDArray[Any] | None = strips(data)
    if pixels is None:
        image = read_image(path)
        if len(image) != 1 or image.dtype != np.uint16:
            raise BadPatchError("wrong_size", f"{path.name} has {len(image)} bands of {image.dtype}, not one of uint16")
        pixels = image[0]
    if pixels.shape != (size, size):
        words = f"{path.name} has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {size}x{size}"
        raise BadPatchError("wrong_size", words)
    return pixels
