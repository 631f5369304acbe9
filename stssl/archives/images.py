"""Open images from unknown sources, and follow what a file says about its values. Refuse a file that is not understood.

Only four formats are read: GeoTIFF, PNG, JPEG and JPEG 2000. GDAL chooses a format by content. So a file called
`B04.tif` may be a VRT or WMS description, which makes GDAL read any file and send requests. To prevent this, the first
bytes of a file choose one of four drivers, and only this driver opens it. The bytes are read first and opened from
memory. In memory, no other file lies beside the image: world files, `.aux.xml`, `.msk` and so on are never opened.

A file may mark pixels as not measured: by a nodata value, a mask or transparency. Such pixels get the mean of the
patch's measured pixels in that band, which is a neutral value for a network. Band statistics leave them out.
"""

import contextlib
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile

from stssl.archives.grids import ImageGrid, grid_of
from stssl.base.arrays import AnyArray
from stssl.store.schema import BadPatchError

DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
"""First bytes of a file, and the one GDAL driver that may open it."""
MOST_BANDS, MOST_PATCH_BYTES = 256, 1 << 27
"""Largest number of bands of an image, and largest size of its file and of its decoded pixels in bytes."""
MOST_TILES = 4096
"""Largest number of tiles in a JPEG 2000 file: its library reserves kilobytes for each tile when it opens the file."""
_CODESTREAM = b"\xff\x4f\xff\x51"
IMAGE_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    # If a PNG is truncated, GDAL's fast reader returns old memory contents in place of the missing pixels.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
}
_SIDECARS = (".aux.xml", ".msk", ".aux", ".rrd", ".wld", ".prj", ".rpb", ".imd", "_rpc.txt")
_WORLD = {".tif": (".tfw", ".tifw"), ".tiff": (".tfw", ".tiffw"), ".png": (".pgw", ".pngw")}
_WORLD |= {".jpg": (".jgw", ".jpgw"), ".jpeg": (".jgw", ".jpegw"), ".jp2": (".j2w", ".jp2w")}
_FOREIGN = frozenset(
    getattr(ColorInterp, name)
    for name in ("hue", "saturation", "lightness", "cyan", "magenta", "yellow", "black", "Y", "Cb", "Cr")
    if hasattr(ColorInterp, name)
)
_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_IN_MEMORY = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:\.\w+)?:? ?"
"""Name that rasterio gives a file in memory. It is random, so it differs in each run."""
_WITH_EXIF = ("JPEG", "PNG", "TIFF")
_TURNED = (2, 3, 4, 5, 6, 7, 8)
"""EXIF orientations of images that are not upright."""


PixelType = TypeVar("PixelType", bound=np.generic)


@dataclass(frozen=True)
class Picture:
    """Hold the pixels of an image file, and what the file states about them.

    Attributes:
        pixels: [bands, H, W] values. Pixels that are not measured have the mean of the band's measured pixels.
        measured: [bands, H, W] True if a pixel is measured; None if all pixels are.
        colors: Color of each band, as the file states it, such as `red` or `undefined`.
        scaling: (scale, offset) of each band, as the file states them; they are not applied to `pixels`.
        names: Names of the bands, as the file states them; an empty text for a band without a name.
        grid: Coordinate system, upper left corner and pixel size, as the file states them; None if it does not.
    """

    pixels: AnyArray
    measured: NDArray[np.bool_] | None
    colors: tuple[str, ...]
    scaling: tuple[tuple[float, float], ...]
    names: tuple[str, ...] = ()
    grid: ImageGrid | None = None


class _Bands(NamedTuple):
    """Hold the bands of a file: pixels and mask [bands, H, W] (True: measured; None if all are), and their colors."""

    values: AnyArray
    measured: NDArray[np.bool_] | None
    colors: tuple[str, ...]


def read_bytes(source: Path | BytesIO, name: str) -> bytes:
    """Return the bytes of an image file. Refuse a file that is larger than any patch.

    Args:
        source: Path of the file, or an open file in memory. The size of the latter is not checked.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The file is missing, too large for a patch, or cannot be read.
    """
    if isinstance(source, BytesIO):
        return source.getvalue()
    try:
        about = source.stat()
        if not stat.S_ISREG(about.st_mode):  # A pipe or device might never end.
            raise BadPatchError("unreadable", f"{name} is not a file")
        if about.st_size > MOST_PATCH_BYTES:
            raise BadPatchError(
                "unreadable", f"{name} is larger than {MOST_PATCH_BYTES >> 20} MiB: no file of one patch is"
            )
        return source.read_bytes()
    except FileNotFoundError:
        raise BadPatchError("missing_band", f"{name} is missing") from None
    except OSError as error:
        raise BadPatchError("unreadable", f"{name}: {error.strerror}") from None


@contextlib.contextmanager
def opened(data: bytes, name: str) -> Iterator[DatasetReader]:
    """Open an image in memory with one of the allowed GDAL drivers. Return a context with the open image.

    The size in the image's header is checked first.

    Args:
        data: The file's bytes.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The image has none of the four formats, is too large, or is damaged.
    """
    driver = next((driver for start, driver in DRIVERS.items() if data.startswith(start)), None)
    if driver is None:
        raise BadPatchError("unreadable", f"{name} is no GeoTIFF, PNG, JPEG or JPEG 2000 file")
    if driver == "JP2OpenJPEG":
        _refuse_many_tiles(data, name)
    try:
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.Env(**IMAGE_SETTINGS),
            MemoryFile(data) as memory,
            rasterio.open(memory.name, driver=driver, sharing=False) as file,
        ):
            _refuse_giants(file, name)
            yield file
    except (RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError) as error:
        raise BadPatchError("unreadable", _words(name, error)) from None


def _words(name: str, error: Exception) -> str:
    """Return an image's name and an error's message as one line, without folders: these differ between machines."""
    return f"{name}: " + re.sub(rf"\S*/|{_IN_MEMORY}", "", str(error).replace("\n", " "))


def _refuse_giants(file: DatasetReader, name: str) -> None:
    """Raise a BadPatchError if an image states an impossible size: GDAL would fill memory with zeros for minutes.

    `file` is the open image, and `name` is its name in messages.
    """
    each = max(np.dtype(dtype).itemsize for dtype in file.dtypes) if file.count else 1
    # A tile may claim to be larger than its image. GDAL would decode the whole tile.
    block = max((height * width for height, width in file.block_shapes), default=0)
    if file.count > MOST_BANDS or file.count * max(file.height * file.width, block) * each > MOST_PATCH_BYTES:
        raise BadPatchError("unreadable", f"{name} claims to be {file.count}x{file.height}x{file.width}")


def _refuse_many_tiles(data: bytes, name: str) -> None:
    """Raise a BadPatchError if a JPEG 2000 file states so many tiles or pixels that GDAL would need too much memory.

    `data` are the bytes of the file, and `name` is its name in messages.
    """
    try:
        size = struct.unpack_from(">8IH", data, data.find(_CODESTREAM) + 8)
    except struct.error:
        return
    right, bottom, left, top, width, height, first, over, count = size
    tiles = -(-(right - first) // max(width, 1)) * -(-(bottom - over) // max(height, 1))
    if tiles > MOST_TILES or count > MOST_BANDS or (right - left) * (bottom - top) * count > MOST_PATCH_BYTES:
        claims = f"{name} claims to be {count}x{bottom - top}x{right - left} in {tiles:,} tiles"
        raise BadPatchError("unreadable", claims)


def open_picture(data: bytes) -> Image.Image:
    """Open a JPEG or PNG, given its bytes, with Pillow. Return the image, with pixels that are not decoded yet.

    Raises:
        OSError: The file is neither a JPEG nor a PNG.
    """
    return Image.open(BytesIO(data), formats=("JPEG", "PNG"))


def exif_of(data: bytes) -> Image.Exif:
    """Return the EXIF tags of a JPEG, PNG or TIFF, given its bytes; no tags if there are none, or the file is bad."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(BytesIO(data), formats=("JPEG", "PNG", "TIFF")) as image,
        ):
            return image.getexif()
    except (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError):
        return Image.Exif()


def read_image(source: Path | BytesIO, name: str, size: int | None = None) -> Picture:
    """Read an image, and return its pixels with what its file states about them.

    A palette becomes red, green and blue. Bands of transparency become the mask. If a JPEG or PNG file says that it is
    turned, its pixels are turned upright.

    Args:
        source: Path of the file, or an open file in memory.
        name: Name of the image in messages.
        size: New width and height in pixels; None keeps the size.

    Raises:
        BadPatchError: The file cannot be read to its end, has no measured pixel, or has values of an unsupported kind
            (CMYK, inverted gray, several pages, ...). The message says which.
    """
    data = read_bytes(source, name)
    with opened(data, name) as file:
        _refuse_meanings(file, name)
        values, measured, colors = _expanded(file, name) if _palette(file) else _bands(file, name, data)
        # Let GDAL resample only images without a mask: it would mix masked pixels into their neighbors.
        if measured is None and size is not None and not _palette(file):
            kept = [band for band, color in zip(file.indexes, file.colorinterp, strict=True) if color.name != "alpha"]
            values = file.read(kept, out_shape=(len(kept), size, size), resampling=Resampling.bilinear)
        names = tuple(text or "" for text in file.descriptions)
        stated = zip(map(float, file.scales), map(float, file.offsets), strict=True)
        # Take numbers that are not finite as not stated: NaN would also differ from itself.
        scaling = tuple((scale if isfinite(scale) else 1.0, move if isfinite(move) else 0.0) for scale, move in stated)
        upright = _upright(data, file, name)
        grid = grid_of(file) if upright == 1 else None
        if grid is not None and size is not None:
            grid = grid.resized(file.height / size, file.width / size)
    if measured is not None and not measured.any():
        raise BadPatchError("nodata", f"{name} has no measured pixel: all are nodata, masked or transparent")
    if measured is not None or (size is not None and values.shape[1:] != (size, size)):
        values, filled = fill_unmeasured(values, measured, size)
        measured = None if measured is None else _turned(filled, upright)
    return Picture(_turned(values, upright), measured, colors, scaling[: len(values)], names[: len(values)], grid)


def read_stored(path: Path, name: str) -> tuple[AnyArray, NDArray[np.bool_]]:
    """Return an image's pixels, as its file stores them, and the mask of measured pixels, both [bands, H, W].

    Args:
        path: The file.
        name: Name of the image in messages.

    Raises:
        BadPatchError: The file cannot be read to its end, or has values of an unsupported kind.
    """
    data = read_bytes(path, name)
    with opened(data, name) as file:
        _refuse_meanings(file, name)
        values, measured, _ = _bands(file, name, data)
        _upright(data, file, name)
    return values, np.ones(values.shape, np.bool_) if measured is None else measured


def _refuse_meanings(file: DatasetReader, name: str) -> None:
    """Raise a BadPatchError if the values of an image are no brightness or reflectance, or if it has several pages.

    `file` is the open image, and `name` is its name in messages.
    """
    space = file.tags(ns="IMAGE_STRUCTURE")
    if file.driver == "GTiff" and file.subdatasets:
        raise BadPatchError("unreadable", f"{name} has several pages, of which one alone would be read")
    if space.get("MINISWHITE") == "YES":
        raise BadPatchError("unreadable", f"{name} is inverted (0 is white): invert its values first")
    foreign = sorted({color.name for color in file.colorinterp if color in _FOREIGN})
    if foreign or space.get("SOURCE_COLOR_SPACE", "YCbCr") not in ("YCbCr", "RGB"):
        said = ", ".join(foreign) or space["SOURCE_COLOR_SPACE"]
        raise BadPatchError("unreadable", f"{name} has bands of {said}: convert it to red, green and blue first")
    bits = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    if bits is not None and int(bits) < 8 and not _palette(file):
        raise BadPatchError("unreadable", f"{name} has {bits} bits a pixel, not 8 or 16")


def _palette(file: DatasetReader) -> bool:
    """Return True if the pixels of an image are indices into a table of colors (a palette)."""
    return any(color == ColorInterp.palette for color in file.colorinterp)


def _expanded(file: DatasetReader, name: str) -> _Bands:
    """Read an image with a palette, and return its red, green and blue. Transparent pixels count as not measured.

    `file` is the open image, and `name` is its name in messages. Raise a BadPatchError for an unusual palette.
    """
    if file.count > 2 or file.dtypes[0] != "uint8":
        raise BadPatchError("unreadable", f"{name} has a palette and {file.count} bands of {file.dtypes[0]}")
    table = np.zeros((256, 4), np.uint8)
    for index, color in file.colormap(1).items():
        table[index] = color
    index, masks = file.read(1), file.read_masks(1)
    opaque = (table[index][..., 3] > 0) & (masks > 0)
    return _Bands(
        np.ascontiguousarray(table[index][..., :3].transpose(2, 0, 1)),
        None if opaque.all() else np.repeat(opaque[None], 3, 0),
        ("red", "green", "blue"),
    )


def _bands(file: DatasetReader, name: str, data: bytes) -> _Bands:
    """Return all bands of an image without a palette, with the mask of measured pixels.

    A band of transparency (alpha) is not among the bands: its transparent pixels count as not measured. Raise a
    BadPatchError if no other band is left, or if the values are multiplied by alpha. `name` is for messages.
    """
    alpha = [band for band, color in zip(file.indexes, file.colorinterp, strict=True) if color == ColorInterp.alpha]
    kept = [band for band in file.indexes if band not in alpha]
    if not kept:
        raise BadPatchError("unreadable", f"{name} holds nothing but transparency")
    values = file.read(kept)
    # GDAL combines the file's nodata values, masks and alpha in this mask, so none of them is read again for it.
    masks = file.read_masks(kept) > 0
    premultiplied = bool(alpha) and file.driver == "GTiff" and _premultiplied(data)
    for band in alpha:
        opacity = file.read(band)
        if premultiplied and ((opacity > 0) & (opacity < np.iinfo(opacity.dtype).max)).any():
            raise BadPatchError("unreadable", f"{name} has values that are multiplied with their transparency")
        masks &= opacity > 0
    colors = tuple(file.colorinterp[band - 1].name for band in kept)
    return _Bands(values, None if masks.all() else masks, colors)


def _premultiplied(data: bytes) -> bool:
    """Return True if the bytes of a TIFF state that its colors are multiplied by alpha. GDAL does not report this."""
    with warnings.catch_warnings(action="ignore"):
        try:
            with Image.open(BytesIO(data), formats=("TIFF",)) as image:
                return 1 in image.tag_v2.get(338, ())  # type: ignore[attr-defined]  # only TIFFs have it
        except (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError):
            return False


def fill_unmeasured(
    values: AnyArray, measured: NDArray[np.bool_] | None, size: int | None
) -> tuple[AnyArray, NDArray[np.bool_]]:
    """Return a copy of pixels in which those that are not measured have the mean of the measured ones in their band.

    If `size` is given, the pixels are resampled first. A band without measured pixels becomes 0.

    Args:
        values: [bands, H, W] pixels.
        measured: [bands, H, W] True if a pixel is measured; None if all pixels are.
        size: New width and height in pixels; None keeps the size.

    Returns:
        The filled pixels, and the mask of measured pixels, both [bands, H, W] or [bands, size, size].
    """
    shown = np.ones(values.shape, np.bool_) if measured is None else measured
    out, there = [], []
    for band, known in zip(values, shown, strict=True):
        plane, seen = (band.astype(np.float64), known) if size is None else _resampled(band, known, size)
        mean = plane[seen].mean() if seen.any() else 0.0
        out.append(np.rint(np.where(seen, plane, mean)).astype(values.dtype))
        there.append(seen)
    return np.stack(out), np.stack(there)


def _resampled(band: AnyArray, known: NDArray[np.bool_], size: int) -> tuple[AnyArray, NDArray[np.bool_]]:
    """Resample a band bilinearly to a new size. Pixels that are not measured have no weight.

    `band` and `known` (True if a pixel is measured) are [H, W]; `size` is the new width and height in pixels.

    Returns:
        Values [size, size], and a mask [size, size]: True if measured pixels have at least half of the weight. Values
        outside the mask mean nothing.
    """

    def plane(array: AnyArray) -> NDArray[np.float64]:
        image = Image.fromarray(array.astype(np.float32), mode="F")
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float64)

    weight = plane(known)
    return plane(np.where(known, band, 0)) / np.maximum(weight, 1e-6), weight >= 0.5


def _upright(data: bytes, file: DatasetReader, name: str) -> int:
    """Return the EXIF orientation of an image, from 2 to 8 for a turned one; 1 if it is upright or has no such tag.

    `data` are the bytes of the file, and `file` is the open image; `name` is for messages.

    Raises:
        BadPatchError: The image is a turned TIFF. Its georeference would have to turn with the pixels.
    """
    value = exif_of(data).get(0x0112, 1)
    orientation = value if isinstance(value, int) else 1
    if orientation in _TURNED and file.driver == "GTiff":
        raise BadPatchError("unreadable", f"{name} says it is turned (orientation {orientation}): turn it first")
    return orientation if orientation in _TURNED else 1


def _turned(values: NDArray[PixelType], orientation: int) -> NDArray[PixelType]:
    """Return pixels [bands, H, W] upright, given their EXIF orientation, 1 to 8. For 1, they are returned unchanged."""
    if orientation == 1:
        return values
    if orientation in (5, 6, 7, 8):
        values = values.transpose(0, 2, 1)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(values, flips) if flips else values)


def in_color_order(colors: tuple[str, ...]) -> list[int] | None:
    """Return the sequence in which to take the bands of an image, so that red, green and blue come first.

    Args:
        colors: Color of each band, as the file states it.

    Returns:
        Positions of the bands in the image; None if the first three bands are not red, green and blue in any sequence.
    """
    names = [color.name for color in _RGB]
    if sorted(colors[:3]) != sorted(names):
        return None
    return [colors.index(name) for name in names] + list(range(3, len(colors)))


def sidecars(path: Path, beside: frozenset[str]) -> list[str]:
    """List the names of the files beside an image from which GDAL would read a place, mask or palette.

    Args:
        path: Path of the image.
        beside: Names of all files in the folder of the image, in small letters.
    """
    name, stem = path.name.lower(), path.stem.lower()
    endings = (*_SIDECARS, *_WORLD.get(path.suffix.lower(), ()))
    wanted = dict.fromkeys(base + ending for base in (name, stem) for ending in endings)
    return [one for one in wanted if one in beside]
